"""Count compilations, steps and copies to the host for `debug=tpu_metrics_debug` (device, JAX)."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax


class DeviceReport:
    """Counts compilations, steps and bytes copied to the host, for performance debugging.

    It plays the role of `torch_xla`'s metrics report, which transformers prints for the same
    option. It reveals repeated compilations and unnecessary copies. The caller sets `steps` and
    `bytes_to_host`.
    """

    def __init__(self):
        self.bytes_to_host = 0
        self.steps = 0
        self._compilations: list[float] = []
        self._began = time.monotonic()

    def start(self) -> None:
        """Start to count JAX's compilations."""
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def stop(self) -> None:
        """Stop counting compilations."""
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def text(self) -> str:
        """The report, one line for each number."""
        seconds = time.monotonic() - self._began
        compiling = sum(self._compilations)
        per_step = (seconds - compiling) / self.steps if self.steps else 0.0
        lines = [
            f"compiled: {len(self._compilations)} times, {compiling:.1f} s",
            f"steps: {self.steps}, {1000 * per_step:.1f} ms each without compilation",
            f"copied to the host: {self.bytes_to_host:,} bytes",
        ]
        for device in jax.local_devices():
            stats = device.memory_stats() or {}
            if "bytes_in_use" in stats:
                in_use, peak = stats["bytes_in_use"], stats.get("peak_bytes_in_use", 0)
                lines.append(f"{device}: {in_use:,} bytes in use, {peak:,} at the peak")
        return "\n".join(f"  {line}" for line in lines)

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            self._compilations.append(duration_secs)


@contextmanager
def device_report(label: str, is_enabled: bool) -> Iterator[DeviceReport]:
    """Yield a `DeviceReport` to count in; if enabled, print it to stderr on exit.

    Args:
        label: names the measured work in the printed report, such as `training`.
        is_enabled: whether compilations are counted and the report is printed.
    """
    report = DeviceReport()
    if not is_enabled:
        yield report
        return
    report.start()
    try:
        yield report
    finally:
        report.stop()
        print(f"Device, {label}:\n{report.text()}", file=sys.stderr, flush=True)
