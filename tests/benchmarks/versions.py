"""Compare the speed of two checkouts of this package: training, evaluation and start-up.

    python tests/benchmarks/versions.py OLD NEW --model DIR --data FILE [--repeats 3]

OLD and NEW are folders with a checkout each. Their processes take turns; the best time of each
counts. Training and evaluation are timed after a first call that compiles. Start-up is the whole
time of `qa-flax run` with one update on sixteen questions.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS, STEPS, WINDOWS = 8, 12, 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkouts", nargs="*", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--job", action="store_true", help="measure once, in this process")
    parsed = parser.parse_args()
    if parsed.job:
        print(json.dumps(measure(parsed.model, parsed.data)))
        return
    times: dict[Path, list[dict[str, float]]] = {path: [] for path in parsed.checkouts}
    for _ in range(parsed.repeats):
        for checkout in times:
            times[checkout].append(in_checkout(checkout, parsed.model, parsed.data))
    old, new = ({k: min(t[k] for t in runs) for k in runs[0]} for runs in times.values())
    for name, seconds in new.items():
        print(f"{name:<12} old {old[name]:.3f} s, new {seconds:.3f} s: {seconds / old[name]:.3f}")


def in_checkout(checkout: Path, model: str, data: str) -> dict[str, float]:
    """The seconds of each measurement, with the package of a checkout."""
    path = str(checkout.absolute())
    env = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--job", "--model", model, "--data", data]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    times = json.loads(done.stdout.splitlines()[-1])
    with tempfile.TemporaryDirectory() as folder:
        tiny_run(Path(folder), model, data)
        command = [sys.executable, "-m", "qa_flax", "run", f"{folder}/arguments.json"]
        began = time.perf_counter()
        subprocess.run(command, env=env, capture_output=True, check=True, cwd=folder)
        return times | {"start-up": time.perf_counter() - began}


def tiny_run(folder: Path, model: str, data: str) -> None:
    """Write the data and the arguments of a run on sixteen questions."""
    articles = json.loads(Path(data).read_text())["data"][:16]
    first = [{"title": "", "paragraphs": [{**a["paragraphs"][0]}]} for a in articles]
    for article in first:
        article["paragraphs"][0]["qas"] = article["paragraphs"][0]["qas"][:1]
    (folder / "train.json").write_text(json.dumps({"data": first}))
    arguments = {
        "model_name_or_path": model,
        "train_file": str(folder / "train.json"),
        "validation_file": str(folder / "train.json"),
        "do_train": True,
        "do_eval": True,
        "max_steps": 1,
        "output_dir": str(folder / "out"),
        "save_strategy": "no",
        "max_seq_length": 128,
        "doc_stride": 32,
    }
    (folder / "arguments.json").write_text(json.dumps(arguments))


def measure(model_path: str, data: str) -> dict[str, float]:
    """Time training and evaluation in this process, after a first call of each that compiles."""
    import transformers

    from qa_flax import (
        AutoModelForQuestionAnswering,
        Trainer,
        TrainingArguments,
        load_examples,
        prepare_train_features,
    )

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    examples = load_examples(data).select(range(200))
    windows = prepare_train_features(examples, tokenizer, 384, 128).select(range(WINDOWS))
    model = AutoModelForQuestionAnswering.from_pretrained(model_path)
    args = TrainingArguments(
        output_dir="unused",
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        per_device_eval_batch_size=ROWS,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, train_dataset=windows)
    times = {}
    for name, call in (
        ("training", trainer.train),
        ("evaluation", lambda: trainer.predict(windows)),
    ):
        call()
        began = time.perf_counter()
        call()
        times[name] = time.perf_counter() - began
    return times


if __name__ == "__main__":
    main()
