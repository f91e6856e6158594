"""`qa-flax demo`: generated questions, a tiny BERT, and the whole of the package at work."""

import argparse

SUMMARY = "fine-tune a tiny BERT on generated questions"


def parser() -> argparse.ArgumentParser:
    """A seed and a folder."""
    parser = argparse.ArgumentParser(prog="qa-flax demo", description="Fine-tune a tiny BERT.")
    parser.add_argument("--seed", type=int, default=0, help="of the data and the training (0)")
    parser.add_argument("--output_dir", default="qa_flax_demo", help="for the model and the files")
    return parser


def main(parsed: argparse.Namespace) -> None:
    """Run the demo on every core of this machine."""
    from qa_flax.commands.demo.demo import run_demo
    from qa_flax.device.parallel import use_host_cores

    use_host_cores()
    run_demo(seed=parsed.seed, output_dir=parsed.output_dir)
