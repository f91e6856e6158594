"""`qa-flax demo`: fine-tune and evaluate a tiny BERT on generated questions."""

import argparse

SUMMARY = "fine-tune a tiny BERT on generated questions"


def parser() -> argparse.ArgumentParser:
    """The parser of `--seed` and `--output_dir`."""
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
        default="qa_flax_demo",
        help="directory for the data, the model and the answers (default: qa_flax_demo)",
    )
    return parser


def main(parsed: argparse.Namespace) -> None:
    """Run the demo on all cores of this machine."""
    from qa_flax.commands.demo.demo import run_demo
    from qa_flax.device.parallel import use_host_cores

    use_host_cores()
    run_demo(seed=parsed.seed, output_dir=parsed.output_dir)
