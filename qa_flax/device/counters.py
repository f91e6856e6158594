"""What the device did: `debug=tpu_metrics_debug` prints it (device, JAX)."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax


class DeviceReport:
    """Counts compilations, steps, and bytes that came to the host, from `start` on.

    The counterpart of what `torch_xla`'s metrics report said after an evaluation: what is compiled
    again and again, or copied without need, is seen here.
    """

    def __init__(self):
        self.bytes_to_host = 0
        self.steps = 0
        self._compilations: list[float] = []
        self._began = time.monotonic()

    def start(self) -> None:
        """Listen to JAX's compilations."""
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def stop(self) -> None:
        """Listen no longer."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def text(self) -> str:
        """A line for each figure."""
        seconds = time.monotonic() - self._began
        compiling = sum(self._compilations)
        each = (seconds - compiling) / self.steps if self.steps else 0.0
        lines = [
            f"compiled: {len(self._compilations)} times, {compiling:.1f} s",
            f"steps: {self.steps}, {1000 * each:.1f} ms each without compiling",
            f"to the host: {self.bytes_to_host:,} bytes",
        ]
        for device in jax.local_devices():
            found = device.memory_stats() or {}
            if "bytes_in_use" in found:
                in_use, most = found["bytes_in_use"], found.get("peak_bytes_in_use", 0)
                lines.append(f"{device}: {in_use:,} bytes in use, {most:,} at most")
        return "\n".join(f"  {line}" for line in lines)

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            self._compilations.append(duration_secs)


@contextmanager
def device_report(what: str, is_wanted: bool) -> Iterator[DeviceReport]:
    """Report on what is done inside, where that is wanted; a report to count with in any case."""
    report = DeviceReport()
    if not is_wanted:
        yield report
        return
    report.start()
    try:
        yield report
    finally:
        report.stop()
        print(f"Device, {what}:\n{report.text()}", file=sys.stderr, flush=True)
