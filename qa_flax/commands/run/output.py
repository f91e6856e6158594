"""What `qa-flax run` prints about itself (host)."""

import logging
from typing import Any

from qa_flax.commands.wording import in_flags
from qa_flax.device import parallel
from qa_flax.distributed import processes
from qa_flax.messages import printable

logger = logging.getLogger(__name__)


def warn(message: str, *values: Any) -> None:
    """Log a warning of the library in the words of the command line."""
    logger.warning("%s", in_flags(message % values if values else message))


def warn_on_main(message: str, *values: Any) -> None:
    """Log a warning in the main process only; see `warn`."""
    if processes.is_main():
        warn(message, *values)


def report_backend() -> None:
    """Say which cores the command runs on, and warn if an accelerator of the host is unused."""
    print_on_main(f"Running on {parallel.describe_backend()}")
    if (line := parallel.unused_accelerator()) is not None:
        logger.warning("%s", line)


def print_on_main(line: str, file: Any = None) -> None:
    """Print a line in the main process only."""
    if processes.is_main():
        print(printable(line), file=file, flush=True)
