"""How many of the labels that were moved at random does `qa-flax check` find?

    export QA_FLAX_SHARED=DIR
    python tests/benchmarks/label_check.py start --output_dir OUT
    python tests/benchmarks/label_check.py check --output_dir OUT [--seeds 0 1] [--data FILE]

`start` trains MiniLM, which has no span head, on 1,200 questions about reviews. `check` takes 300
questions of other texts with one answer each, moves a twentieth of the answers to another place in
their contexts, with as many words, and runs `qa-flax check` from that start. Repeating a command
resumes it. Arguments that the parser does not know are passed to `qa-flax run` or `qa-flax check`;
`--model_name_or_path` there is another start.
"""

import argparse
import json
import os
import random
import re
from pathlib import Path
from time import perf_counter
from typing import Any

import qa_flax
from qa_flax.cli import main as qa_flax_main

PER_TEXT = 5
"""Questions about one text, at most."""
START_QUESTIONS = 1200


def main() -> None:
    shared = Path(os.environ.get("QA_FLAX_SHARED", ""))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=["start", "check"])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--data", default=str(shared / "data/squadshifts/reddit_v1.0.json"))
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--moved", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args, further = parser.parse_known_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.part == "start":
        train_start(shared, args.output_dir, further)
        return
    print(
        "| data | seed | EM / F1 | among the first 10% | first 20% | minutes |\n" + "|---" * 6 + "|"
    )
    for seed in args.seeds:
        check(args, seed, further)


def train_start(shared: Path, folder: Path, further: list[str]) -> None:
    """Train the model that the checks start from."""
    data = str(shared / "data/squadshifts/amazon_reviews_v1.0.json")
    file = folder / "start.json"
    file.write_text(json.dumps(chosen(data, START_QUESTIONS, seed=0)))
    arguments = ["--num_train_epochs=1", "--learning_rate=2e-4", "--warmup_steps=0.1"]
    arguments += ["--per_device_train_batch_size=8", f"--output_dir={folder / 'start'}"]
    model = f"--model_name_or_path={shared / 'models/all-MiniLM-L6-v2'}"
    began = perf_counter()
    qa_flax_main(["run", model, f"--train_file={file}", "--do_train", *arguments, *further])
    print(f"{START_QUESTIONS} questions in {(perf_counter() - began) / 60:.1f} minutes")


def check(args: argparse.Namespace, seed: int, further: list[str]) -> None:
    """Move labels, check them, and print how many of them come first."""
    name = Path(args.data).stem
    folder = args.output_dir / f"check-{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = chosen(args.data, args.questions, seed)
    moved = move_labels(rows, args.moved, seed)
    file = folder / "moved.json"
    file.write_text(json.dumps(rows))
    began = perf_counter()
    arguments = [f"--seed={seed}", f"--output_dir={folder}", "--show=0", "--num_train_epochs=1"]
    arguments += ["--learning_rate=1e-4"]
    if not any(argument.startswith("--model_name_or_path") for argument in further):
        arguments.append(f"--model_name_or_path={args.output_dir / 'start'}")
    qa_flax_main(["check", str(file), *arguments, *further])
    minutes = (perf_counter() - began) / 60
    ranked = json.loads((folder / "label_check.json").read_text())
    folds = [json.loads(f.read_text())["results"] for f in folder.glob("fold-*/fold.json")]
    em, f1 = (
        sum(fold[f"eval_{metric}"] * fold["eval_examples"] for fold in folds) / len(rows)
        for metric in ("exact_match", "f1")
    )
    found = [
        sum(row["id"] in moved for row in ranked[: round(len(ranked) * share)])
        for share in (0.1, 0.2)
    ]
    shares = [f"{count} of {len(moved)} ({count / len(moved):.0%})" for count in found]
    print(
        f"| {name} | {seed} | {em:.1f} / {f1:.1f} | {' | '.join(shares)} | {minutes:.1f} |",
        flush=True,
    )


def chosen(data: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Choose questions of random texts, each with its first answer."""
    rng = random.Random(seed)
    by_text: dict[str, list[dict[str, Any]]] = {}
    for row in qa_flax.load_examples(data):
        by_text.setdefault(row["context"], []).append(row)
    texts = sorted(by_text)
    rng.shuffle(texts)
    rows: list[dict[str, Any]] = []
    for text in texts:
        rows += rng.sample(by_text[text], min(PER_TEXT, len(by_text[text])))
    first = [{name: row["answers"][name][:1] for name in row["answers"]} for row in rows[:count]]
    return [row | {"answers": answers} for row, answers in zip(rows, first, strict=False)]


def move_labels(rows: list[dict[str, Any]], share: float, seed: int) -> set[str]:
    """Move a share of the answers to other places of their contexts; return the ids."""
    rng = random.Random(1000 + seed)
    movable = [row for row in rows if len(row["context"].split()) > 20]
    moved = rng.sample(movable, round(share * len(rows)))
    for row in moved:
        (text,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        words = [match.span() for match in re.finditer(r"\S+", row["context"])]
        count = min(max(1, len(text.split())), len(words) // 4)
        while True:
            first = rng.randrange(len(words) - count + 1)
            begin, end = words[first][0], words[first + count - 1][1]
            if end <= start or begin >= start + len(text):
                break
        row["answers"] = {"text": [row["context"][begin:end]], "answer_start": [begin]}
    return {row["id"] for row in moved}


if __name__ == "__main__":
    main()
