"""Windows, answers and files equal Hugging Face's for five languages and three tokenizers."""

import itertools

import numpy as np
import oracle
import pytest
from conftest import shared_path
from test_features import assert_equal
from test_spans import as_dataset, assert_same
from trained import byte_level, metaspace, word_piece

from qa_flax.data.examples import load_examples
from qa_flax.data.features import make_windows
from qa_flax.data.windows import Features

KINDS = {"word_piece": word_piece, "byte_level": byte_level, "metaspace": metaspace}
# (max_seq_length, doc_stride). At 384, the usual length, most contexts fit into one window.
LENGTHS = [
    pytest.param(384, 128, marks=pytest.mark.slow),
    (128, 64),
    pytest.param(64, 16, marks=pytest.mark.slow),
]
ABOVE_WINDOW_LENGTH = 400
# n_best_size, max_answer_length, version_2_with_negative: every combination is tested for every
# language, tokenizer and length. The form of the windows and the threshold are random.
SETTINGS = list(itertools.product([1, 5, 20, ABOVE_WINDOW_LENGTH], [1, 8, 30], [False, True]))
THRESHOLDS = [0.0, 2.5, -2.5]
FORMS = ["rows", "data set", "features", "windows"]

# The other pairs run with `pytest -m slow`.
DEFAULT = {("en", "word_piece"), ("zh", "metaspace")}
PAIRS = [
    pytest.param(pair, id="-".join(pair), marks=[] if pair in DEFAULT else [pytest.mark.slow])
    for pair in itertools.product(["en", "de", "es", "zh", "ar"], KINDS)
]


@pytest.fixture(scope="module", params=PAIRS)
def language_and_kind(request):
    return request.param


@pytest.fixture(scope="module")
def questions(language_and_kind):
    """One question for each of 40 contexts."""
    path = shared_path("data", "xquad", f"xquad.{language_and_kind[0]}.json")
    return list({row["context"]: row for row in oracle.nested_to_rows(path)}.values())[:40]


@pytest.fixture(scope="module")
def tokenizer(language_and_kind, questions):
    texts = [row[name] for row in questions for name in ("context", "question")]
    # A Unigram vocabulary must hold every character: over a thousand in Chinese.
    return KINDS[language_and_kind[1]](texts=texts, vocab_size=800 + len(set("".join(texts))))


@pytest.mark.parametrize(("length", "stride"), LENGTHS)
def test_windows_answers_and_files_equal_hugging_face(
    tmp_path, questions, tokenizer, length, stride
):
    texts = [row["question"] for row in questions]
    question_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    # Leave out questions that are too long for the window.
    pairs = zip(questions, question_ids, strict=True)
    rows = [row for row, ids in pairs if length - len(ids) - 4 > stride]
    assert len(rows) > 15
    lengths = {"max_seq_length": length, "doc_stride": stride}
    windows = make_windows(
        load_examples(rows), tokenizer, labels=True, disable_tqdm=True, **lengths
    )
    assert_equal(windows.features(), oracle.prepare_plain(rows, tokenizer, **lengths, labels=True))
    assert len(windows) > 1.5 * len(rows) or length == 384
    rng = np.random.default_rng([length, len(windows), int(windows.lengths.sum())])
    for n, (n_best, max_answer_length, version_2) in enumerate(SETTINGS):
        some_rows = rows[n % 5 :: 13] if n_best == ABOVE_WINDOW_LENGTH else rows[n % 3 :: 5]
        form = rng.choice(FORMS)
        plain_windows, same_windows = windows_in_form(rng, form, some_rows, tokenizer, lengths)
        settings = {
            "n_best_size": n_best,
            "max_answer_length": max_answer_length,
            "version_2_with_negative": version_2,
            "null_score_diff_threshold": rng.choice(THRESHOLDS),
        }
        predictions = distinct_logits(rng, plain_windows, length)
        case, orders = (some_rows, plain_windows, predictions), {"argsort": np.argsort}
        # Where Hugging Face's loops raise an IndexError, compare with the fixed version of them.
        if not assert_same(tmp_path / f"{n}", *case, settings, same_windows, **orders):
            settings["hf_compatible"] = False
            assert assert_same(tmp_path / f"{n} fixed", *case, settings, same_windows, **orders)


def windows_in_form(rng, form, rows, tokenizer, lengths):
    """Hugging Face's windows as a list of dicts, and the same windows in one of `FORMS`."""
    columns = oracle.prepare_plain(rows, tokenizer, padding=rng.random() < 0.6, **lengths)
    windows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if form == "windows":
        settings = {"labels": False, "disable_tqdm": True}
        return windows, make_windows(load_examples(rows), tokenizer, **settings, **lengths)
    if form == "features":
        return windows, Features.from_dataset(as_dataset(windows))
    for window in windows if rng.random() < 0.7 else ():
        marks = rng.random(len(window["input_ids"])) < 0.7
        window["token_is_max_context"] = {str(t): bool(m) for t, m in enumerate(marks)}
    return windows, as_dataset(windows) if form == "data set" else windows


def distinct_logits(rng, windows, length):
    """Float32 start and end logits without ties, highest near a random token of each window.

    Hugging Face's order of equal logits is undefined, so ties could not be compared.
    """
    count = len(windows)
    centre = rng.integers(length // 8, length, (count, 1))
    scores = rng.normal(0, 2, (2, count, length)) - 0.2 * np.abs(np.arange(length) - centre)
    rank = np.argsort(np.argsort(scores, axis=-1), axis=-1)
    numbers = [np.sort(rng.choice(1 << 22, length, replace=False)) for _ in range(2 * count)]
    values = np.array(numbers, np.float32).reshape(2, count, length) / (1 << 18) - 12
    return tuple(np.take_along_axis(values, rank, axis=-1))
