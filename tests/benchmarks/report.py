"""Time `qa-flax report` for many questions: to make the page, and to open it in Chromium.

    python tests/benchmarks/report.py [--questions 100000] [--spans 20] [--data FILE]

The questions are those of a SQuAD file, repeated under new ids until there are enough, each with
random spans of its context as its n-best list. Prints the seconds and the peak memory of the
command, the size of the page, and, at 1,280 and 390 pixels, the seconds until Chromium has run the
`load` event, has drawn the first questions, and has unpacked all rows. Chromium is driven through
the extra `[browser]`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import qa_flax

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from browser import browser


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    shared = Path(os.environ.get("QA_FLAX_SHARED", "../shared"))
    parser.add_argument("--data", default=str(shared / "data/squadshifts/reddit_v1.0.json"))
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--spans", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_evaluation(folder, args.data, args.questions, args.spans)
        began = time.perf_counter()
        data = str(folder / "data.json")
        command = [sys.executable, "-m", "qa_flax", "report", name, "--data", data]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        page = folder / "eval_report.html"
        print(f"{args.questions:,} questions: {seconds:.0f} s, {peak:,.0f} MB of memory")
        print(f"page: {page.stat().st_size / 1e6:.1f} MB")
        for width in (1280, 390):
            opened = open_page(folder / str(width), page, width)
            print(f"{width} pixels: " + ", ".join(f"{k} {v:.1f} s" for k, v in opened.items()))


def write_evaluation(folder: Path, data: str, count: int, spans: int) -> None:
    """Write the answers and n-best lists of `count` questions, and their data."""
    rng = np.random.default_rng(0)
    examples = list(qa_flax.load_examples(data))
    rows, answers, n_best = [], {}, {}
    for number in range(count):
        example = examples[number % len(examples)]
        id_, context, gold = f"q{number}", example["context"], example["answers"]["text"][0]
        starts = rng.integers(0, max(1, len(context) - 40), spans)
        texts = [
            context[a : a + n] for a, n in zip(starts, rng.integers(3, 40, spans), strict=True)
        ]
        if rng.random() < 0.6:
            texts[0] = gold
        shares = np.sort(rng.dirichlet(np.full(spans, 0.3)))[::-1]
        rows.append(example | {"id": id_, "context": f"{context} ({number // len(examples)})"})
        answers[id_] = texts[0]
        n_best[id_] = [
            {"text": text, "probability": share, "start_logit": 1.0, "end_logit": 1.0}
            for text, share in zip(texts, shares.tolist(), strict=True)
        ]
    (folder / "data.json").write_text(json.dumps({"data": rows}))
    (folder / "eval_predictions.json").write_text(json.dumps(answers))
    (folder / "eval_nbest_predictions.json").write_text(json.dumps(n_best))


def open_page(folder: Path, page: Path, width: int) -> dict[str, float]:
    """Return the seconds until the page has loaded, is drawn, and has unpacked all rows."""
    folder.mkdir()
    with browser(folder, width=width) as tab:
        began = time.perf_counter()
        tab.open(page)
        loaded = time.perf_counter() - began
        tab.wait("document.querySelector('.question')")
        drawn = time.perf_counter() - began
        tab.wait("document.documentElement.dataset.loaded", seconds=300)
        return {"load": loaded, "drawn": drawn, "all rows": time.perf_counter() - began}


if __name__ == "__main__":
    main()
