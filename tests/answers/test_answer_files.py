"""The files of answers have the bytes of `json.dumps(..., indent=4)` and a newline."""

import json

import numpy as np
import pytest

from qa_flax.answers import files
from qa_flax.answers.files import ChunkAnswers, answer_files, merge_files
from qa_flax.answers.spans import Chunk, Spans

FILES = ("predictions", "nbest_predictions", "null_odds", "spans")
ALL = ("version_2_with_negative", "save_spans")
LETTERS = list('ab \t\n"\\/\x00\x1f\x7f\u2028é漢😀\ud800\udfff')
IDS = ["q", 7, None, 1.5, True, 'a"b', "漢\ud800", "", float("nan")]


def chunk(rng, examples, dtype=np.float32):
    """Random spans of random texts, with numbers of every size, and examples without spans."""
    contexts = ["".join(rng.choice(LETTERS, int(rng.integers(1, 30)))) for _ in range(examples)]
    counts = rng.integers(0, 5, examples)
    owner = np.repeat(np.arange(examples), counts)
    begins = rng.integers(0, 30, len(owner))
    chars = np.stack([begins, begins + rng.integers(0, 9, len(owner))], axis=1).astype(np.int32)
    logits = rng.normal(0, 1, (3, len(owner))) * 10.0 ** rng.integers(-7, 5, (3, len(owner)))
    loud = rng.random(logits.shape) < 0.2
    values = [0.0, -0.0, 1.0, -3.0, 1e-4, 9.9e-5, 1e4, 65504.0, np.nan, np.inf, -np.inf]
    logits[loud] = rng.choice(values, int(loud.sum()))
    with np.errstate(over="ignore"):
        spans = Spans(owner, chars, *logits.astype(dtype))
    bounds = np.concatenate([[0], np.cumsum(counts)])
    has_placeholder = (counts < 2) & (rng.random(examples) < 0.5)
    odds = rng.choice([0.5, -1e-9, 3.4028234663852886e38, np.inf, np.nan, 12.0], examples).tolist()
    texts = [context[:5] for context in contexts]
    strip = bool(rng.integers(2))
    answers = ChunkAnswers(texts, texts, odds, has_placeholder, strip, False)
    return Chunk(np.arange(examples), bounds, spans, np.zeros(examples, dtype)), contexts, answers


def softmax(scores):
    exponentials = np.exp(scores - np.max(scores))
    return exponentials / exponentials.sum()


def expected(ids, spans_of, contexts, answers):
    """The content of the files, written out one example and one span at a time."""
    content = {name: {} for name in FILES}
    for i, id_ in enumerate(ids):
        key = id_ if isinstance(id_, str) else json.dumps(id_)
        content["predictions"][key] = answers.texts[i]
        content["null_odds"][key] = answers.null_odds[i]
        rows = range(*spans_of.bounds[i : i + 2].tolist())
        scores = spans_of.spans.scores[rows]
        if answers.has_placeholder[i]:
            scores = np.array([0.0, *scores.astype(np.float64)])
        probabilities = [float(p) for p in softmax(scores)] if len(scores) else []
        nbest = content["nbest_predictions"][key] = []
        if answers.has_placeholder[i]:
            first = {"text": "empty", "start_logit": 0.0, "end_logit": 0.0}
            nbest.append(first | {"probability": probabilities.pop(0)})
        places = content["spans"][key] = []
        for row, probability in zip(rows, probabilities, strict=True):
            first, last = spans_of.spans.chars[row].tolist()
            text = contexts[i][first:last]
            start = min(first, len(contexts[i]))
            if answers.strip:
                start += len(text) - len(text.lstrip()) if text.strip() else 0
                text = text.strip()
            logits = [
                float(a[row]) for a in (spans_of.spans.start_logits, spans_of.spans.end_logits)
            ]
            start_logit, end_logit = logits
            nbest.append(
                {"start_logit": start_logit, "end_logit": end_logit, "text": text}
                | {"probability": probability}
            )
            end = start + len(text)
            places.append({"text": text, "start": start, "end": end, "score": probability})
    return content


def as_bytes(content):
    return {name: (json.dumps(value, indent=4) + "\n").encode() for name, value in content.items()}


def read(folder, prefix=""):
    return {name: (folder / f"{prefix}{name}.json").read_bytes() for name in FILES}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("compatible", [True, False])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_loud_chunks_have_the_bytes_of_json_dumps(tmp_path, dtype, compatible):
    empty_lists = placeholders = 0
    for seed in range(12):
        rng = np.random.default_rng((seed, compatible))
        parts, content = [], {name: {} for name in FILES}
        for n in range(int(rng.integers(0, 4))):
            spans_of, contexts, answers = chunk(rng, int(rng.integers(0, 6)), dtype)
            answers = answers._replace(
                has_placeholder=answers.has_placeholder & compatible, strip=not compatible
            )
            ids = [f"{n}-{i}" if i else IDS[(n + seed) % len(IDS)] for i in range(len(contexts))]
            parts.append((ids, spans_of, contexts, answers))
            for name, entries in expected(*parts[-1]).items():
                content[name] |= entries
            empty_lists += b"[]" in as_bytes(content)["nbest_predictions"]
            placeholders += b"empty" in as_bytes(content)["nbest_predictions"]
        with answer_files(tmp_path, "eval", ALL) as write:
            for part in parts:
                write(*part)
        assert read(tmp_path, "eval_") == as_bytes(content)
    assert empty_lists > 2
    assert (placeholders > 2) == compatible


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_files_of_several_processes_are_merged_to_those_of_one(tmp_path):
    rng = np.random.default_rng(3)
    content, written = {name: {} for name in FILES}, {name: [] for name in FILES}
    for process, examples in enumerate([0, 3, 0, 2, 5, 0]):
        spans_of, contexts, answers = chunk(rng, examples)
        ids = [f"{process}-{i}" for i in range(examples)]
        with answer_files(tmp_path, None, ALL) as write:
            write(ids, spans_of, contexts, answers)
        for name, entries in expected(ids, spans_of, contexts, answers).items():
            content[name] |= entries
            written[name].append(read(tmp_path)[name])
    assert {name: merge_files(parts) for name, parts in written.items()} == as_bytes(content)
    assert merge_files([b"{}\n", b"{}\n"]) == b"{}\n"


def test_numbers_are_written_as_python_writes_them():
    """Both write the fewest digits; of two such numbers, Arrow could write the other one."""
    rng = np.random.default_rng(0)
    powers = 2.0 ** np.arange(-1074.0, 1024.0)
    halves = (rng.integers(1, 1 << 24, 20_000) * 2 + 1) * 2.0 ** -rng.integers(11, 39, 20_000)
    values = np.concatenate(
        [
            powers,
            np.nextafter(powers, 0),
            np.nextafter(powers, np.inf),
            10.0 ** np.arange(-323, 309),
            np.nextafter([1e-4, 1e10], 0),
            np.nextafter([1e-4, 1e10], np.inf),
            rng.random(10_000).astype(np.float32).astype(np.float64),
            rng.normal(0, 5, 10_000),
            halves,  # ties: the exact number has one digit more than the shortest one, a 5
            np.round(rng.normal(0, 100, 2000), 2),
            [0.0, np.nan, np.inf],
        ]
    )
    values = np.concatenate([values, -values])
    assert files._numbers(values).to_pylist() == [json.dumps(value) for value in values.tolist()]
