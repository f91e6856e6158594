"""`qa-flax demo`: fine-tune and evaluate a tiny BERT on generated questions."""

import argparse

from qa_flax.commands.hidden_torch import show_torch

SUMMARY = "fine-tune a tiny BERT on generated questions"


def parser() -> argparse.ArgumentParser:
    """The parser of the demo's arguments."""
    parser = argparse.ArgumentParser(
        prog="qa-flax demo",
        description="Fine-tune a tiny BERT on generated questions and print its scores before and "
        "after. Needs no network and takes about a minute on a CPU.",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the data and the training (default: 0)"
    )
    parser.add_argument(
        "--output_dir",
        default=None,
        help="directory for the data, the model and the answers (default: qa_flax_demo, or "
        "qa_flax_study with --study)",
    )
    parser.add_argument(
        "--study",
        choices=["overfitting"],
        help="overfitting: fine-tune on 300 questions with and without regularisation, and "
        "compare; takes several minutes",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="number of seeds of the study, from --seed upwards (default: 3, or fewer if they do "
        "not fit into 8 minutes)",
    )
    return parser


def main(parsed: argparse.Namespace) -> None:
    """Run the demo or the study on all cores of this machine.

    Raises:
        UsageError: `--seeds` is below 1, or given without `--study`.
    """
    from qa_flax.commands.errors import UsageError
    from qa_flax.device.parallel import use_host_cores

    if parsed.seeds is not None and parsed.study is None:
        raise UsageError("--seeds has no effect without --study overfitting")
    if parsed.seeds is not None and parsed.seeds < 1:
        raise UsageError(f"--seeds is {parsed.seeds}; it must be at least 1")
    use_host_cores()
    if parsed.study is None:
        from qa_flax.commands.demo.demo import run_demo

        show_torch()
        run_demo(seed=parsed.seed, output_dir=parsed.output_dir or "qa_flax_demo")
    else:
        from qa_flax.commands.demo.study import run_study

        show_torch()
        run_study(parsed.output_dir or "qa_flax_study", parsed.seed, parsed.seeds)
