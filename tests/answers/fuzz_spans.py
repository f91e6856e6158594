"""Compare post-processing with the oracle on any number of random cases; run by hand.

    python tests/answers/fuzz_spans.py --cases 1000000 --processes 2

The cases have random windows, texts, rows of different lengths, equal logits and NaN. They use
SQuAD v1 and v2, `hf_compatible` True and False, and windows as lists, `datasets` and `Features`.
Answers are compared; in every tenth case the bytes of all files are compared, too.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import numpy as np
import test_spans
from oracle import postprocess_plain

from qa_flax.answers.postprocess import postprocess_qa_predictions

BLOCK = 500


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=10_000_000, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    blocks = range(args.first, args.first + args.cases, BLOCK)
    started, compared = time.time(), 0
    with multiprocessing.Pool(args.processes) as pool:
        for done, count in enumerate(pool.imap_unordered(compare_block, blocks), start=1):
            compared += count
            if done % 100 == 0:
                print(f"{compared:,} cases in {time.time() - started:.0f} s", flush=True)
    print(f"{compared:,} random cases, no difference, {time.time() - started:.0f} s")


def compare_block(first):
    return sum(compare(seed) for seed in range(first, first + BLOCK))


def compare(seed):
    """Compare one case; return 1, or 0 where Hugging Face's code crashes.

    Raises:
        AssertionError: the two results differ; the message has the seed.
    """
    rng = np.random.default_rng(seed)
    rows, features, predictions, settings = test_spans.case(seed)
    settings["hf_compatible"] = bool(rng.integers(2))
    kind = rng.integers(3)
    if kind == 1:  # many equal logits
        predictions = tuple(np.round(logits) for logits in predictions)
    elif kind == 2:
        for logits in predictions:
            mask = rng.random(logits.shape) < 0.03
            logits[mask] = rng.choice([np.nan, np.inf, -np.inf, -0.0, 0.0], int(mask.sum()))
    if rng.random() < 0.5:
        for feature in features:
            feature["cls_index"] = int(rng.integers(test_spans.LENGTH))
    windows = features
    if rng.random() < 0.05:  # rarely, because building a data set is slow
        windows = test_spans.as_dataset(features)
    elif "token_is_max_context" not in features[0] and "cls_index" not in features[0]:
        windows = test_spans.as_struct(features)
    reference = {"argsort": test_spans.left_first}
    try:
        if rng.random() < 0.1:
            with tempfile.TemporaryDirectory() as folder:
                test_spans.assert_same(
                    Path(folder), rows, features, predictions, settings, windows, **reference
                )
        else:
            with np.errstate(all="ignore"):
                expected = postprocess_plain(rows, features, predictions, **settings, **reference)
            actual = postprocess_qa_predictions(rows, windows, predictions, **settings)
            assert actual == expected
    except StopIteration:  # Hugging Face's code raises IndexError: no span has a text
        return 0
    except AssertionError as error:
        raise AssertionError(f"seed {seed} differs") from error
    return 1


if __name__ == "__main__":
    main()
