"""`qa-flax env`: versions, devices, processes, memory, cache, and what is wrong with them."""

import argparse

from qa_flax.commands.arguments import DistributedArguments, dataclass_parser

SUMMARY = "versions, devices, processes, and what is wrong with them"


def parser() -> argparse.ArgumentParser:
    """The arguments of the processes, as of `qa-flax run`."""
    return dataclass_parser(
        DistributedArguments,
        prog="qa-flax env",
        description="Versions, devices, processes, memory, cache, and what is wrong with them; "
        "exits with 1 if anything is.",
    )


def main(parsed: argparse.Namespace) -> int:
    """Print the report; returns 1 if there are problems, else 0."""
    from qa_flax.commands.env.report import report
    from qa_flax.distributed import processes

    lines, problems = report(*parsed.dataclasses)
    if processes.is_main() or problems:
        print("\n".join(lines))
        print("\n".join(f"problem: {problem}" for problem in problems) or "no problem found")
    return 1 if problems else 0
