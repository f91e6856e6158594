"""Time the host side: windows, answers and scores, compared with Hugging Face's loops.

    python tests/benchmarks/host.py --tokenizer DIR --data FILE [FILE ...]
    python tests/benchmarks/host.py --tokenizer DIR --data FILE [FILE ...] --million

Both run in this process, one after the other, on the same questions, windows and logits. Each time
is the best of `--repeats`. The results are compared before a ratio is printed. Hugging Face's loops
are those of `tests/support/oracle.py`, over `datasets` rows as in `run_qa.py`.

`--million` only measures post-processing with files on a million windows: copies of the data's
windows under other ids. It needs 8 GB of memory, 5 GB of disk and Linux, which tells a process the
peak of its memory.
"""

import argparse
import dataclasses
import multiprocessing
import random
import re
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
    parser.add_argument("--questions", type=int, default=None, help="use only the first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--million", action="store_true", help="measure a million windows only")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    datasets.disable_caching()
    if args.million:
        return measure_million(args)
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
    """Times a reference and our functions, and prints their ratio."""

    def __init__(self, repeats):
        self.repeats = repeats
        print("| step | Hugging Face's loops, s | qa_flax, s | ratio |\n|---|---|---|---|")

    def compare(self, reference, functions, same):
        """Time `reference` and each of `functions`, a dict by name; return the results of all.

        They run in turn, so that other load on the machine slows down all of them.
        """
        names = list(functions)
        functions = {"": reference} | functions
        times, results = {name: [] for name in functions}, {}
        for _ in range(self.repeats):
            for name, function in functions.items():
                started = time.perf_counter()
                results[name] = function()
                times[name].append(time.perf_counter() - started)
        slow = min(times[""])
        for name in names:
            if not same(results[""], results[name]):
                raise AssertionError(f"{name}: the two results differ")
            fast = min(times[name])
            print(f"| {name} | {slow:.2f} | {fast:.3f} | {slow / fast:.1f}x |", flush=True)
        return list(results.values())


def mapped(examples, tokenizer):
    """Return `examples.map(prepare_validation_features, batched=True)`."""

    def prepare(batch):
        table = zip(*batch.values(), strict=True)
        rows = [dict(zip(batch, values, strict=True)) for values in table]
        return oracle.prepare_plain(rows, tokenizer, **LENGTHS)

    return examples.map(prepare, batched=True, remove_columns=examples.column_names)


def time_windows(bench, rows, tokenizer):
    """Compare `map(prepare_validation_features)` with `make_windows`."""
    dataset, examples = datasets.Dataset.from_list(rows), load_examples(rows)

    def hugging_face():
        return mapped(dataset, tokenizer)

    def ours():
        return make_windows(examples, tokenizer, labels=False, disable_tqdm=True, **LENGTHS)

    def same(table, windows):
        expected = Features.from_dataset(table)
        is_dataset = isinstance(windows, datasets.Dataset)
        actual = Features.from_dataset(windows) if is_dataset else windows.features()
        fields = ("input_ids", "attention_mask", "token_type_ids", "offsets")
        return all(np.array_equal(getattr(expected, f), getattr(actual, f)) for f in fields)

    def ours_as_dataset():
        return ours().features().to_dataset()

    functions = {"windows": ours, "windows, as a data set": ours_as_dataset}
    table, windows, _ = bench.compare(hugging_face, functions, same)
    arrow, numpy = table.data.nbytes / len(table), bytes_of(windows) / len(windows)
    print(
        f"{len(rows):,} questions, {len(windows):,} windows; memory per window: {arrow:,.0f} bytes "
        f"in Arrow, {numpy:,.0f} in NumPy, {arrow / numpy:.1f}x"
    )
    return table, windows


def bytes_of(value):
    """Return the bytes of all arrays in a dataclass, and of its ids, counting each string once."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list):
        return sys.getsizeof(value) + sum(map(sys.getsizeof, set(value)))
    return sum(map(bytes_of, vars(value).values())) if dataclasses.is_dataclass(value) else 0


def random_logits(windows, seed=0):
    """Return float32 logits that peak at one token of each context, like a model's."""
    rng = np.random.default_rng(seed)
    inside = windows.features().offsets[..., 0] >= 0
    centre = np.array([rng.choice(np.flatnonzero(row)) if row.any() else 0 for row in inside])
    far = np.abs(np.arange(inside.shape[1]) - centre[:, None])
    peak = np.where(inside, 4 - 0.3 * np.minimum(far, 30), -6)
    noise = rng.normal(0, 2, (2, *inside.shape))
    return tuple((noise + peak).astype(np.float32))


def time_spans(bench, rows, windows):
    """Compare `postprocess_qa_predictions` on windows as a data set and on `Windows`."""
    table, own = windows
    logits = random_logits(own)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("hugging_face", "ours")]
        for path in paths:
            path.mkdir()

        def hugging_face(path=None):
            return oracle.postprocess_plain(rows, table, logits, output_dir=path)

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
            hugging_face,
            {
                "answers, from a data set of windows": lambda: ours(table),
                "answers, from our windows": lambda: ours(own),
            },
            same,
        )
        bench.compare(
            lambda: hugging_face(paths[0]),
            {
                "answers and files, from a data set of windows": lambda: ours(table, paths[1]),
                "answers and files, from our windows": lambda: ours(own, paths[1]),
            },
            same_files,
        )


def time_scores(bench, rows):
    """Compare the official v1.1 and v2.0 scorers with `squad_metric`."""
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


def time_all(bench, rows, tokenizer, windows):
    """Compare the way from questions to EM and F1, without the model."""
    logits = random_logits(windows)
    dataset, examples = datasets.Dataset.from_list(rows), load_examples(rows)

    def hugging_face():
        table = mapped(dataset, tokenizer)
        return oracle.squad_v1_plain(oracle.postprocess_plain(rows, table, logits), rows)

    def ours():
        windows = make_windows(examples, tokenizer, labels=False, disable_tqdm=True, **LENGTHS)
        answers = postprocess_qa_predictions(examples, windows, logits)
        return squad_metric(
            [{"id": id_, "prediction_text": text} for id_, text in answers.items()], rows
        )

    bench.compare(hugging_face, {"questions to EM and F1": ours}, lambda a, b: a == b)


def time_growth(rows, own):
    """Print time and temporary memory of post-processing 1, 4 and 16 copies of some examples."""
    base_ids = set(own.example_ids[: len(own) // 16])
    base = [row for row in rows if row["id"] in base_ids]
    base_windows = [n for n, id_ in enumerate(own.example_ids) if id_ in base_ids]
    print("| windows | answers, s | peak memory, MB | of which answers and ids, MB |")
    print("|---|---|---|---|")
    for times in (1, 4, 16):
        examples, windows = copies(base, own.select(np.array(base_windows)), times)
        logits = random_logits(windows)
        started = time.perf_counter()
        postprocess_qa_predictions(examples, windows, logits)
        seconds = time.perf_counter() - started
        tracemalloc.start()
        answers = postprocess_qa_predictions(examples, windows, logits)
        remaining, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(answers) == len(examples)
        print(
            f"| {len(windows):,} | {seconds:.3f} | {peak / 1e6:.1f} | {remaining / 1e6:.1f} |",
            flush=True,
        )


def copies(rows, own, times):
    """Return several copies of examples and of their windows, with the copy's number in the ids."""
    examples = [row | {"id": f"{row['id']}-{n}"} for n in range(times) for row in rows]
    ids = [f"{id_}-{n}" for n in range(times) for id_ in own.example_ids]
    slices = own.slices[np.tile(np.arange(len(own)), times)]
    return examples, dataclasses.replace(own, example_ids=ids, slices=slices)


def measure_million(args):
    """Print time and memory of post-processing with files, on 250,000 and 1,000,000 windows.

    Each number is measured in a new process, so that its peak memory is that of this number alone.
    """
    print(
        "| windows | files, MB | answers and files, s | peak beside the input, MB | answers, MB |"
    )
    print("|---|---|---|---|---|", flush=True)
    for count in (250_000, 1_000_000):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            figures = process.submit(postprocess_copies, count, args).result()
        print("| {:,} | {:,.0f} | {:.1f} | {:.0f} | {:.0f} |".format(*figures), flush=True)


def postprocess_copies(count, args):
    """Return the number of windows, MB of files, seconds, MB of memory and MB of answers."""
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    rows = [row for path in args.data for row in oracle.nested_to_rows(path)][: args.questions]
    own = make_windows(load_examples(rows), tokenizer, labels=False, disable_tqdm=True, **LENGTHS)
    times = -(-count // len(own))
    logits = tuple(np.tile(array, (times, 1)) for array in random_logits(own))
    examples, windows = copies(rows, own, times)
    with tempfile.TemporaryDirectory() as folder:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what the process holds
        before = peak_memory()
        started = time.perf_counter()
        answers = postprocess_qa_predictions(examples, windows, logits, output_dir=folder)
        seconds = time.perf_counter() - started
        growth = peak_memory() - before
        written = sum(path.stat().st_size for path in Path(folder).iterdir())
    assert len(answers) == len(examples)
    returned = sys.getsizeof(answers) + sum(map(sys.getsizeof, answers.values()))
    return len(windows), written / 1e6, seconds, growth / 1e6, returned / 1e6


def peak_memory():
    """Return the largest number of bytes that this process has held since the peak was cleared."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def measure_long_contexts(rows, tokenizer):
    """Print time and memory of cutting a context of millions of characters into windows.

    Each size is measured in a new process, so that its peak memory is that of this size alone.
    """
    text = " ".join(dict.fromkeys(row["context"] for row in rows))
    print("| characters in a context | windows | s | growth of the process, MB |")
    print("|---|---|---|---|", flush=True)
    for millions in (1, 4, 16):
        context = (text * (1 + millions * 1_000_000 // len(text)))[: millions * 1_000_000]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            windows, seconds, growth = process.submit(window_one, context, tokenizer).result()
        print(f"| {len(context):,} | {windows:,} | {seconds:.1f} | {growth:.0f} |", flush=True)


def window_one(context, tokenizer):
    """Return the number of windows, the seconds, and the growth of this process in MB."""
    answers = {"text": [], "answer_start": []}
    row = {"id": "a", "question": "What is it?", "context": context, "answers": answers}
    examples, tokenizer = load_examples([row]), AutoTokenizer.from_pretrained(tokenizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    windows = make_windows(examples, tokenizer, labels=False, disable_tqdm=True, **LENGTHS)
    seconds = time.perf_counter() - started
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return len(windows), seconds, growth / 1e3


if __name__ == "__main__":
    main()
