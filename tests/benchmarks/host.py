"""How fast is the host side? Windows, answers and scores against Hugging Face's plain loops.

    python tests/benchmarks/host.py --tokenizer DIR --data FILE [FILE ...]

Both run in this process, one after the other, on the same questions, windows and logits; each time
is the best of `--repeats`, and the answers are compared before a ratio is printed. The loops are
those of `tests/oracle.py`, over `datasets` rows as in `run_qa.py`.
"""

import argparse
import dataclasses
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import datasets
import numpy as np
import oracle
from transformers import AutoTokenizer

from qa_flax.answers.metrics import squad_metric
from qa_flax.answers.postprocess import postprocess_qa_predictions
from qa_flax.data.examples import load_examples
from qa_flax.data.features import make_windows
from qa_flax.data.windows import Features

LENGTHS = {"max_seq_length": 384, "doc_stride": 128}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--questions", type=int, default=None, help="the first only")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    datasets.disable_progress_bars()
    datasets.disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    rows = [row for path in args.data for row in oracle.nested_to_rows(path)][: args.questions]
    bench = Bench(args.repeats)
    windows = time_windows(bench, rows, tokenizer)
    time_spans(bench, rows, windows)
    time_scores(bench, rows)
    time_all(bench, rows, tokenizer, windows[1])
    time_growth(rows, windows[1])
    measure_long_contexts(rows, args.tokenizer)


class Bench:
    """Times two ways to do one thing and prints their ratio."""

    def __init__(self, repeats):
        self.repeats = repeats
        print("| what | Hugging Face's loops, s | qa_flax, s | ratio |\n|---|---|---|---|")

    def compare(self, theirs, ours, same):
        """Times `theirs` and each of `ours`, named functions, in turn, so that a busy machine is
        busy for all. Returns the result of each.
        """
        functions = {"": theirs} | ours
        times, results = {name: [] for name in functions}, {}
        for _ in range(self.repeats):
            for name, function in functions.items():
                started = time.perf_counter()
                results[name] = function()
                times[name].append(time.perf_counter() - started)
        slow = min(times[""])
        for name in ours:
            if not same(results[""], results[name]):
                raise AssertionError(f"{name}: the two results differ")
            fast = min(times[name])
            print(f"| {name} | {slow:.2f} | {fast:.3f} | {slow / fast:.1f}x |", flush=True)
        return list(results.values())


def mapped(examples, tokenizer):
    """`examples.map(prepare_validation_features, batched=True)`."""

    def prepare(batch):
        table = zip(*batch.values(), strict=True)
        rows = [dict(zip(batch, values, strict=True)) for values in table]
        return oracle.prepare_plain(rows, tokenizer, **LENGTHS)

    return examples.map(prepare, batched=True, remove_columns=examples.column_names)


def time_windows(bench, rows, tokenizer):
    """`map(prepare_validation_features)` against `make_windows`."""
    examples, own_examples = datasets.Dataset.from_list(rows), load_examples(rows)

    def theirs():
        return mapped(examples, tokenizer)

    def ours():
        return make_windows(own_examples, tokenizer, labels=False, disable_tqdm=True, **LENGTHS)

    def same(plain, own):
        read = Features.from_dataset(plain)
        own = Features.from_dataset(own) if isinstance(own, datasets.Dataset) else own.features()
        fields = ("input_ids", "attention_mask", "token_type_ids", "offsets")
        return all(np.array_equal(getattr(read, f), getattr(own, f)) for f in fields)

    def ours_as_dataset():
        return ours().features().to_dataset()

    both = {"windows": ours, "windows, as a data set": ours_as_dataset}
    plain, own, _ = bench.compare(theirs, both, same)
    held = plain.data.nbytes / len(plain), bytes_of(own) / len(own)
    print(
        f"{len(rows):,} questions, {len(own):,} windows; held: {held[0]:,.0f} bytes a window in "
        f"Arrow, {held[1]:,.0f} in NumPy, {held[0] / held[1]:.1f}x"
    )
    return plain, own


def bytes_of(value):
    """Of all arrays inside, and of the ids, each string once."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list):
        return sys.getsizeof(value) + sum(map(sys.getsizeof, set(value)))
    return sum(map(bytes_of, vars(value).values())) if dataclasses.is_dataclass(value) else 0


def random_logits(windows, seed=0):
    """Distinct float32 logits with a peak inside each context, as a model's."""
    rng = np.random.default_rng(seed)
    inside = windows.features().offsets[..., 0] >= 0
    centre = np.array([rng.choice(np.flatnonzero(row)) if row.any() else 0 for row in inside])
    far = np.abs(np.arange(inside.shape[1]) - centre[:, None])
    peak = np.where(inside, 4 - 0.3 * np.minimum(far, 30), -6)
    noise = rng.normal(0, 2, (2, *inside.shape))
    return tuple((noise + peak).astype(np.float32))


def time_spans(bench, rows, windows):
    """`postprocess_qa_predictions` from `datasets` windows and from our own."""
    plain, own = windows
    logits = random_logits(own)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("theirs", "ours")]
        for path in paths:
            path.mkdir()

        def theirs(path=None):
            return oracle.postprocess_plain(rows, plain, logits, output_dir=path)

        def ours(features, path=None):
            return postprocess_qa_predictions(rows, features, logits, output_dir=path)

        def same(a, b):
            return list(a.items()) == list(b.items())

        def same_files(a, b):
            names = [path.name for path in paths[0].iterdir()]
            return same(a, b) and all(
                (paths[0] / n).read_bytes() == (paths[1] / n).read_bytes() for n in names
            )

        bench.compare(
            theirs,
            {
                "answers, from a data set of windows": lambda: ours(plain),
                "answers, from our windows": lambda: ours(own),
            },
            same,
        )
        bench.compare(
            lambda: theirs(paths[0]),
            {
                "answers and files, from a data set of windows": lambda: ours(plain, paths[1]),
                "answers and files, from our windows": lambda: ours(own, paths[1]),
            },
            same_files,
        )


def time_scores(bench, rows):
    """The official v1.1 and v2.0 scorers against `squad_metric`."""
    rng = random.Random(0)
    answers = {}
    for row in rows:
        words = row["context"].split()
        first = rng.randrange(len(words))
        guess = " ".join(words[first : first + rng.randint(1, 8)])
        answers[row["id"]] = rng.choice([guess, row["answers"]["text"][0]])
    formatted = [
        {"id": id_, "prediction_text": text, "no_answer_probability": 0.0}
        for id_, text in answers.items()
    ]
    for version, official in ((1, oracle.squad_v1_plain), (2, oracle.squad_v2_plain)):
        bench.compare(
            lambda official=official: official(answers, rows),
            {f"scores, v{version}": lambda v=version: squad_metric(formatted, rows, v == 2)},
            lambda a, b: a == b,
        )


def time_all(bench, rows, tokenizer, own):
    """Questions to EM and F1, without the model."""
    logits = random_logits(own)
    examples, own_examples = datasets.Dataset.from_list(rows), load_examples(rows)

    def theirs():
        plain = mapped(examples, tokenizer)
        return oracle.squad_v1_plain(oracle.postprocess_plain(rows, plain, logits), rows)

    def ours():
        windows = make_windows(own_examples, tokenizer, labels=False, disable_tqdm=True, **LENGTHS)
        answers = postprocess_qa_predictions(own_examples, windows, logits)
        return squad_metric(
            [{"id": id_, "prediction_text": text} for id_, text in answers.items()], rows
        )

    bench.compare(theirs, {"questions to EM and F1": ours}, lambda a, b: a == b)


def time_growth(rows, own):
    """Time and extra memory of post-processing at 1, 4 and 16 times the data."""
    few = len(own) // 16
    known = set(own.example_ids[:few])
    base = [row for row in rows if row["id"] in known]
    kept = [n for n, id_ in enumerate(own.example_ids) if id_ in known]
    print(
        "| windows | answers, s | extra memory, MB | of it answers and ids, MB |\n|---|---|---|---|"
    )
    for times in (1, 4, 16):
        examples = [row | {"id": f"{row['id']}-{n}"} for n in range(times) for row in base]
        ids = [f"{own.example_ids[k]}-{n}" for n in range(times) for k in kept]
        index = np.tile(kept, times)
        windows = dataclasses.replace(own, example_ids=ids, cut=own.cut[index])
        logits = random_logits(windows)
        started = time.perf_counter()
        postprocess_qa_predictions(examples, windows, logits)
        seconds = time.perf_counter() - started
        tracemalloc.start()
        answers = postprocess_qa_predictions(examples, windows, logits)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(answers) == len(examples)
        print(
            f"| {len(windows):,} | {seconds:.3f} | {peak / 1e6:.1f} | {held / 1e6:.1f} |",
            flush=True,
        )


def measure_long_contexts(rows, tokenizer):
    """Windows of one context of millions of characters: the memory that takes, each in a process
    of its own.
    """
    text = " ".join(dict.fromkeys(row["context"] for row in rows))
    print("| characters in a context | windows | s | memory of the process grew by, MB |")
    print("|---|---|---|---|", flush=True)
    for millions in (1, 4, 16):
        context = (text * (1 + millions * 1_000_000 // len(text)))[: millions * 1_000_000]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            windows, seconds, grown = process.submit(window_one, context, tokenizer).result()
        print(f"| {len(context):,} | {windows:,} | {seconds:.1f} | {grown:.0f} |", flush=True)


def window_one(context, tokenizer):
    """How many windows a context gives, the time, and by how much the process grew, in MB."""
    answers = {"text": [], "answer_start": []}
    row = {"id": "a", "question": "What is it?", "context": context, "answers": answers}
    examples, tokenizer = load_examples([row]), AutoTokenizer.from_pretrained(tokenizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    windows = make_windows(examples, tokenizer, labels=False, disable_tqdm=True, **LENGTHS)
    seconds = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return len(windows), seconds, grown / 1e3


if __name__ == "__main__":
    main()
