"""Which windows' results have arrived on the host, while the cores compute the others (host)."""

from threading import Condition

import numpy as np
from jaxtyping import Int


class Cancelled(Exception):
    """The results that somebody waits for will not arrive."""


class Arrivals:
    """Lets one thread wait for the results of some windows, which another thread reports.

    Args:
        count: the number of windows.

    Example:
        >>> arrivals = Arrivals(3)
        >>> arrivals.add(np.array([2, 0]))
        >>> arrivals.wait_for(np.array([0, 2]))  # returns at once
    """

    def __init__(self, count: int):
        self._are_here = np.zeros(count, bool)
        self._is_cancelled = False
        self._changed = Condition()

    def add(self, rows: Int[np.ndarray, " w"] | slice) -> None:
        """The results of the windows `rows` have arrived."""
        with self._changed:
            self._are_here[rows] = True
            self._changed.notify_all()

    def add_all(self) -> None:
        """All results have arrived."""
        self.add(slice(None))

    def cancel(self) -> None:
        """The others will not arrive: whoever waits for them gets `Cancelled`."""
        with self._changed:
            self._is_cancelled = True
            self._changed.notify_all()

    def wait_for(self, rows: Int[np.ndarray, " w"]) -> None:
        """Wait until the results of the windows `rows` have arrived.

        Raises:
            Cancelled: they will not.
        """
        with self._changed:
            while not self._are_here[rows].all():
                if self._is_cancelled:
                    raise Cancelled
                self._changed.wait()
