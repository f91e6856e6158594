"""Compare EM and F1 after fine-tuning with gradients exchanged in bfloat16 and in float32.

    export QA_FLAX_SHARED=DIR
    python tests/benchmarks/bf16_gradients.py [--questions 1000] [--epochs 2] [--seeds 0 1]

The CPU is split into two simulated cores, so that there is something to exchange. Each pair of runs
starts with the same weights and has the same rows and dropout masks. The model answers questions of
other contexts than those it was trained on. A CPU adds up the rounded gradients in float32 and
rounds the sum; whether a TPU rounds in between is not known, so it may lose a little more.
"""

import argparse
import os
from pathlib import Path
from statistics import mean
from time import perf_counter

from packing_quality import fine_tuned, split

import qa_flax
from qa_flax.device import parallel


def main() -> None:
    shared = Path(os.environ.get("QA_FLAX_SHARED", ""))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=str(shared / "models/all-MiniLM-L6-v2"))
    parser.add_argument("--data", default=str(shared / "data/squadshifts/reddit_v1.0.json"))
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--eval_questions", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--batch_size", type=int, default=16, help="windows of an update")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    if args.cores < 2 or args.batch_size % args.cores:
        parser.error("--cores must be at least 2, and --batch_size a multiple of it")
    parallel.use_host_cores(args.cores)
    if parallel.core_count() != args.cores:
        parser.error(f"JAX has {parallel.core_count()} cores; unset XLA_FLAGS")
    train, heldout = split(qa_flax.load_examples(args.data), args.questions, args.eval_questions)
    print(f"{len(train):,} questions to train on, {len(heldout):,} to answer", flush=True)
    print("\n| seed | gradients | EM | F1 | mean loss | minutes |\n|---|---|---|---|---|---|")
    results: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for seed in args.seeds:
        for on in (True, False):
            began = perf_counter()
            batch = args.batch_size // args.cores
            settings = {"per_device_train_batch_size": batch, "packing": True}
            found = fine_tuned(args, train, heldout, seed, bf16_gradients=on, **settings)
            results[on].append(found)
            values = f"{found['exact_match']:.1f} | {found['f1']:.1f} | {found['loss']:.4f}"
            minutes = (perf_counter() - began) / 60
            print(f"| {seed} | {name_of(on)} | {values} | {minutes:.1f} |", flush=True)
    for on, found in results.items():
        means = [mean(r[name] for r in found) for name in ("exact_match", "f1")]
        print(f"mean, {name_of(on)}: EM {means[0]:.1f}, F1 {means[1]:.1f}")


def name_of(on: bool) -> str:
    return "bfloat16" if on else "float32"


if __name__ == "__main__":
    main()
