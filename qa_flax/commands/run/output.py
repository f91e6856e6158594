"""What `qa-flax run` prints about itself (host)."""

from typing import Any

from qa_flax.distributed import processes


def print_on_main(line: str, file: Any = None) -> None:
    """Print a line in the main process only."""
    if processes.is_main():
        print(line, file=file, flush=True)
