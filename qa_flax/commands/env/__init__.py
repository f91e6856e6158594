"""`qa-flax env`: report versions, devices, processes, memory and problems."""

import argparse

from qa_flax.commands.arguments import DistributedArguments, dataclass_parser

SUMMARY = "report versions, devices and processes, and check them for problems"


def parser() -> argparse.ArgumentParser:
    """The arguments that `qa-flax run` has for several processes and for the backend."""
    return dataclass_parser(
        DistributedArguments,
        prog="qa-flax env",
        description="Report versions, devices, processes, memory and the compilation cache, and "
        "check them for problems. The exit status is 1 if there are problems, else 0.",
    )


def main(parsed: argparse.Namespace) -> int:
    """Print the report and the problems; return 1 if there are problems, else 0."""
    from qa_flax.commands.env.report import report
    from qa_flax.distributed import processes
    from qa_flax.messages import printable

    lines, problems = report(*parsed.dataclasses)
    if processes.is_main() or problems:
        print(printable("\n".join(lines)))
        print("\n".join(f"problem: {problem}" for problem in problems) or "no problem found")
    return 1 if problems else 0
