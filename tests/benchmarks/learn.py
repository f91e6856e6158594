"""Compare the learning results of PyTorch's Trainer and `qa-flax run` on the same questions.

    python tests/benchmarks/learn.py --model_name_or_path DIR --train_file FILE
        --validation_file FILE

For each seed both stacks start from the same checkpoint, including the span head. They do not share
the order of the examples and the dropout masks. Each stack and seed runs in its own process, one
after the other. Results that already exist in `--output_dir` are not computed again, so an
interrupted comparison can be repeated and continues. This takes hours on a few CPU cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from transformers import AutoTokenizer

from qa_flax import AutoModelForQuestionAnswering

SETTINGS = {
    "max_train_samples": 2000,
    "per_device_train_batch_size": 16,
    "max_seq_length": 384,
    "doc_stride": 128,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("model_name_or_path", "train_file", "validation_file"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--num_train_epochs", type=float, default=2)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--output_dir", type=Path, default=Path("out/learn"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43])
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=list(STACKS))
    args = parser.parse_args()
    for seed in args.seeds:
        make_start(args, seed)
    results = {
        (stack, seed): STACKS[stack](args, seed) for seed in args.seeds for stack in args.stacks
    }
    print_table(results, args)


def make_start(args, seed):
    """Save the checkpoint with a new span head, so that both stacks start with the same head."""
    start = args.output_dir / f"start-{seed}"
    if not (start / "tokenizer_config.json").exists():
        source = args.model_name_or_path
        AutoModelForQuestionAnswering.from_pretrained(source, seed=seed).save_pretrained(start)
        AutoTokenizer.from_pretrained(source).save_pretrained(start)


def torch_result(args, seed):
    output = args.output_dir / f"torch-{seed}"
    if not (output / "result.json").exists():
        script = str(Path(__file__).with_name("learn_torch.py"))
        subprocess.run([sys.executable, script, *flags(args, seed, output)], check=True)
    return json.loads((output / "result.json").read_text())


def qa_flax_result(args, seed):
    output = args.output_dir / f"qa_flax-{seed}"
    if not (output / "eval_results.json").exists():
        command = [sys.executable, "-m", "qa_flax", "run", *flags(args, seed, output)]
        subprocess.run([*command, "--do_train", "--do_eval", "--save_strategy=no"], check=True)
    results = json.loads((output / "all_results.json").read_text())
    return {
        "exact_match": results["eval_exact_match"],
        "f1": results["eval_f1"],
        "train_loss": results["train_loss"],
        "train_windows": results["train_samples"],
        "train_seconds": round(results["train_runtime"], 1),
        "predict_seconds": round(results["eval_runtime"], 1),
    }


STACKS = {"torch": torch_result, "qa_flax": qa_flax_result}


def flags(args, seed, output):
    names = ["train_file", "validation_file", "num_train_epochs", "learning_rate"]
    values = SETTINGS | {name: getattr(args, name) for name in names}
    values["model_name_or_path"] = args.output_dir / f"start-{seed}"
    values |= {"seed": seed, "output_dir": output}
    return [f"--{name}={value}" for name, value in values.items()]


def print_table(results, args):
    columns = ["exact_match", "f1", "train_loss", "train_seconds", "predict_seconds"]
    print(f"| stack | seed | windows | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 3) + "|")
    for (stack, seed), result in results.items():
        values = [f"{result[name]:.2f}" for name in columns]
        print(f"| {stack} | {seed} | {result['train_windows']} | {' | '.join(values)} |")
    for name in ("exact_match", "f1"):
        scores = {s: [results[s, seed][name] for seed in args.seeds] for s in args.stacks}
        for stack, values in scores.items():
            spread = max(values) - min(values)
            print(f"{name}, {stack}: mean {mean(values):.2f}, spread over seeds {spread:.2f}")


if __name__ == "__main__":
    main()
