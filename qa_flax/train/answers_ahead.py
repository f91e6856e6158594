"""Search answers in a thread of their own, while the cores compute other windows (host)."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from qa_flax.answers.arrivals import Arrivals, Cancelled
from qa_flax.answers.spans import Candidates
from qa_flax.distributed import processes


def runs_ahead(post_process: Any) -> bool:
    """Whether a `post_process_function` may be called while results are still arriving.

    It may if it has the attribute `runs_ahead`, and reads `predictions` only through this package.
    With several processes it is called afterwards: it exchanges answers, and at that time the
    evaluation would exchange other things.
    """
    return bool(getattr(post_process, "runs_ahead", False)) and processes.count() == 1


class AnswersAhead:
    """Calls a function with candidates that have not all arrived; it waits for those it needs.

    It is a context manager: if its body raises, the function gets `Cancelled` and is waited for.

    Args:
        search: called with the candidates in another thread.
    """

    def __init__(self, search: Callable[[Candidates], Any]):
        self._search = search
        self._pool = ThreadPoolExecutor(1, "qa_flax answers")
        self._arrivals: Arrivals | None = None
        self._found: Future[Any] | None = None

    def __enter__(self) -> "AnswersAhead":
        return self

    def __exit__(self, *error: object) -> None:
        if self._arrivals is not None:
            self._arrivals.cancel()
        self._pool.shutdown()

    def begin(self, candidates: Candidates, arrivals: Arrivals) -> None:
        """Call the function with candidates, of which `arrivals` says which are there."""
        self._arrivals = arrivals
        # `_replace` does not work, because the length of candidates is their number of windows.
        arrays = candidates.tokens, candidates.null_starts, candidates.null_ends
        live = Candidates(*arrays, candidates.padded_length, arrivals)
        self._found = self._pool.submit(self._search, live)

    @property
    def has_begun(self) -> bool:
        """Whether the function has been called."""
        return self._found is not None

    def result(self) -> Any:
        """Wait for the function's result, after all candidates have arrived.

        Raises:
            Exception: what the function raised.
        """
        assert self._found is not None
        try:
            return self._found.result()
        except Cancelled as cancelled:
            raise RuntimeError("the candidates did not arrive") from cancelled
