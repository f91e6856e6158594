"""Record what the cores do during some steps, and summarise it (host and device).

The trace is JAX's: TensorBoard's profile plugin, XProf and Perfetto show it.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

GAPS = 5
"""How many gaps the summary names."""
SHORTEST_GAP = 1e-4
"""In seconds: cores pause for shorter times between two operations."""
# A CPU has no plane of its own, but each program has such an event in one of the host's threads.
_CPU_THREADS = re.compile(r"tf_XLA\w*CpuClient")
_CPU_PROGRAMS = re.compile(r"ThunkExecutor::Execute")


class Gap(NamedTuple):
    """A time in which no core computed, in seconds since the first work of the trace."""

    begin: float
    seconds: float


class Summary(NamedTuple):
    """How busy the cores of this process were."""

    seconds: float
    """From the beginning of the first work to the end of the last."""
    busy: float
    """The share of this time in which a core computed, from 0 to 1; the mean of the cores."""
    gaps: list[Gap]
    """The longest times in which no core computed, longest first."""

    def text(self) -> str:
        """The summary in one or two lines."""
        line = f"the cores computed {self.busy:.1%} of {self.seconds:.2f} s"
        if not self.gaps:
            return f"{line}, without gaps"
        gaps = ", ".join(f"{1000 * gap.seconds:.1f} ms at {gap.begin:.2f} s" for gap in self.gaps)
        return f"{line}\nlargest gaps: {gaps}"


def start_trace(folder: Path) -> None:
    """Begin to record; the trace is written below `folder` by `stop_trace`.

    Raises:
        RuntimeError: a trace is being recorded already.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # to record every call of Python would make the gaps longer
    jax.profiler.start_trace(str(folder), profiler_options=options)


def stop_trace(folder: Path) -> Summary | None:
    """Stop recording and summarise the trace; None: it has no work of a core."""
    jax.profiler.stop_trace()
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    return summary_of(files[-1]) if files else None


def summary_of(file: Path) -> Summary | None:
    """Summarise a trace of `jax.profiler`; None: it has no work of a core.

    Args:
        file: its `.xplane.pb`.
    """
    cores = [busy for work in _work(file) if len(busy := union(work))]
    if not cores:
        return None
    begin, end = min(busy[0, 0] for busy in cores), max(busy[-1, 1] for busy in cores)
    shares = [np.diff(busy).sum() / (end - begin) for busy in cores]
    together = union(np.concatenate(cores))
    gaps = [
        Gap((last - begin) / 1e9, (first - last) / 1e9)
        for last, first in zip(together[:-1, 1], together[1:, 0], strict=True)
    ]
    gaps = sorted((gap for gap in gaps if gap.seconds >= SHORTEST_GAP), key=lambda g: -g.seconds)
    return Summary((end - begin) / 1e9, float(np.mean(shares)), gaps[:GAPS])


def union(intervals: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "m 2"]:
    """Join intervals that overlap or touch; the result is sorted.

    Example:
        >>> union(np.array([[5.0, 6.0], [0.0, 2.0], [1.0, 3.0]])).tolist()
        [[0.0, 3.0], [5.0, 6.0]]
    """
    if not len(intervals):
        return intervals
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    ends = np.maximum.accumulate(intervals[:, 1])
    is_first = np.concatenate([[True], intervals[1:, 0] > ends[:-1]])
    is_last = np.concatenate([is_first[1:], [True]])
    return np.stack([intervals[is_first, 0], ends[is_last]], axis=1)


def _work(file: Path) -> Iterator[Float[np.ndarray, "n 2"]]:
    """Yield begin and end, in ns, of what each core computed."""
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices:
        # "XLA Modules" has one event for each program, the others those of its operations.
        yield _intervals(event for line in plane.lines for event in line.events)
    if devices:
        return
    lines = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
    threads = (line for line in lines if _CPU_THREADS.match(line.name))
    events = (event for line in threads for event in line.events)
    yield _intervals(event for event in events if _CPU_PROGRAMS.match(event.name))


def _intervals(events: Iterable) -> Float[np.ndarray, "n 2"]:
    times = [(event.start_ns, event.start_ns + event.duration_ns) for event in events]
    return np.array(times, np.float64).reshape(-1, 2)
