"""`postprocess_qa_predictions` returns the oracle's answers and writes the same bytes."""

import json
import logging
import tempfile
import tracemalloc
from pathlib import Path

import datasets
import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import oracle
import pytest

from qa_flax.answers import spans
from qa_flax.answers.postprocess import postprocess_qa_predictions
from qa_flax.data.windows import Features

LENGTH = 48


def logits(rng, *shape):
    """Random float32 logits; two equal starts, ends or scores in one case are unlikely."""
    return rng.normal(0.0, 3.0, shape).astype(np.float32)


def window(rng, example, context, has_max_context=False, ragged=False):
    """A window: question tokens, consecutive words of the context, padding (unless `ragged`)."""
    question = int(rng.integers(1, 6))
    words = [(m, m + 3) for m in range(0, len(context) - 3, 4)]
    first = int(rng.integers(0, max(1, len(words) // 2)))
    pairs = words[first : first + int(rng.integers(0, LENGTH - question))]
    outside = [None, []][int(rng.integers(2))]
    offsets = [outside] * question + pairs
    if rng.random() < 0.2 and pairs:  # a token without characters, as from some normalisers
        offsets[question] = (pairs[0][0], pairs[0][0])
    if rng.random() < 0.1 and pairs:
        offsets[question] = (0, 0)
    if not ragged:
        offsets += [outside] * (LENGTH - len(offsets))
    row = {"example_id": example, "offset_mapping": offsets}
    if has_max_context:
        allowed = {str(t): bool(rng.integers(2)) for t in range(0, LENGTH, 2)}
        row["token_is_max_context"] = None if rng.random() < 0.3 else allowed
    return row


def case(seed):
    """Random examples, windows in random order, logits and settings."""
    rng = np.random.default_rng(seed)
    has_max_context, ragged = rng.random() < 0.3, rng.random() < 0.4
    rows, features = [], []
    for n in range(int(rng.integers(1, 6))):
        letters = rng.choice(list('abc de"\\\n\té漢😀 '), int(rng.integers(4, 200)))
        rows.append({"id": f"q{n}", "context": "".join(letters)})
        count = int(rng.integers(0 if n else 1, 4))
        context = rows[n]["context"]
        features += [window(rng, f"q{n}", context, has_max_context, ragged) for _ in range(count)]
    if rng.random() < 0.1:  # offsets beyond the end of the text
        rows[0]["context"] = rows[0]["context"][: len(rows[0]["context"]) // 2]
    order = rng.permutation(len(features))
    features = [features[i] for i in order]
    if rng.random() < 0.3:  # a repeated window: its spans are twice in the n-best list
        features.append(features[0])
    predictions = logits(rng, 2, len(features), LENGTH)
    if rng.random() < 0.3:
        predictions[:, :, 0] += 20  # the null prediction wins
    settings = {
        "version_2_with_negative": bool(rng.integers(2)),
        "n_best_size": int(rng.choice([1, 5, 20, LENGTH + 10])),
        "max_answer_length": int(rng.choice([1, 8, 30])),
        "null_score_diff_threshold": float(rng.choice([-6.5, 0.0, 6.5])),
        "prefix": [None, "eval"][int(rng.integers(2))],
    }
    return rows, features, tuple(predictions), settings


def as_dataset(features):
    names = dict.fromkeys(name for row in features for name in row)
    return datasets.Dataset.from_dict({n: [row.get(n) for row in features] for n in names})


def as_struct(features):
    offsets = np.full((len(features), LENGTH, 2), -1, np.int32)
    for n, row in enumerate(features):
        for token, pair in enumerate(row["offset_mapping"]):
            if pair:
                offsets[n, token] = pair
    ids = np.zeros((len(features), LENGTH), np.int32)
    return Features([row["example_id"] for row in features], ids, ids, offsets=offsets)


def assert_same(folder, rows, features, predictions, settings, windows=None, **oracle_settings):
    """Compare answers and the bytes of every file with the oracle's.

    The oracle gets `features`. Our function gets `windows`, the same in another form, if not None.
    Returns False without comparing where Hugging Face's loops raise IndexError: no span has a text.
    """
    folders = folder / "oracle", folder / "ours"
    for path in folders:
        path.mkdir(parents=True)
    try:
        with np.errstate(all="ignore"):
            expected = oracle.postprocess_plain(
                rows, features, predictions, output_dir=folders[0], **settings, **oracle_settings
            )
    except StopIteration:
        return False
    windows = features if windows is None else windows
    actual = postprocess_qa_predictions(
        rows, windows, predictions, output_dir=folders[1], **settings
    )
    assert list(actual.items()) == list(expected.items())
    names = sorted(path.name for path in folders[0].iterdir())
    assert len(names) == 2 + settings["version_2_with_negative"]
    assert sorted(path.name for path in folders[1].iterdir()) == names
    for name in names:
        assert (folders[1] / name).read_bytes() == (folders[0] / name).read_bytes(), name
    assert postprocess_qa_predictions(rows, windows, predictions, **settings) == expected
    return True


# ------------------------------------------------------------------------------------- parity


# `pytest -m slow` runs more of them.
BLOCKS = [pytest.param(n, marks=[] if n < 4 else [pytest.mark.slow]) for n in range(10)]


@pytest.mark.parametrize("block", BLOCKS)
def test_random_cases_equal_the_oracle(tmp_path, block):
    compared = 0
    for seed in range(block * 40, block * 40 + 40):
        rows, features, predictions, settings = case(seed)
        forms = [list, as_dataset]
        if not any("token_is_max_context" in row for row in features):
            forms.append(as_struct)
        windows = forms[seed % len(forms)](features)
        compared += assert_same(
            tmp_path / str(seed), rows, features, predictions, settings, windows
        )
    assert compared >= 30


@pytest.mark.parametrize("compatible", [True, False])
def test_the_file_of_spans_has_the_entries_of_the_n_best_list(tmp_path, monkeypatch, compatible):
    """The same texts and probabilities in the same order, and the text is where the file says."""
    monkeypatch.setattr(spans, "CHUNK_WINDOWS", 3)
    moved = placeholders = 0
    for seed in range(5000, 5040):
        rows, features, predictions, settings = case(seed)
        settings |= {"hf_compatible": compatible, "output_dir": tmp_path, "prefix": None}
        answers = postprocess_qa_predictions(rows, features, predictions, **settings)
        names = ("predictions.json", "nbest_predictions.json")
        before = [(tmp_path / name).read_bytes() for name in names]
        settings |= {"save_spans": True}
        assert postprocess_qa_predictions(rows, features, predictions, **settings) == answers
        assert [(tmp_path / name).read_bytes() for name in names] == before
        text = (tmp_path / "spans.json").read_text()
        lists, nbest = json.loads(text), json.loads(before[1])
        assert text == json.dumps(lists, indent=4) + "\n"
        assert list(lists) == list(nbest)
        for row in rows:
            entries, context = nbest[row["id"]], row["context"]
            if entries and next(iter(entries[0])) == "text":  # the placeholder
                placeholders += 1
                del entries[0]
            for span, entry in zip(lists[row["id"]], entries, strict=True):
                assert list(span) == ["text", "start", "end", "score"]
                assert (span["text"], span["score"]) == (entry["text"], entry["probability"])
                assert context[span["start"] : span["end"]] == span["text"]
                moved += context[: span["start"]].endswith(" ") and len(span["text"]) > 0
    assert moved
    assert bool(placeholders) == compatible


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunk_sizes_do_not_change_the_result(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(spans, "CHUNK_WINDOWS", chunk)
    monkeypatch.setattr(spans, "CHUNK_PAIRS", 400 * chunk)
    compared = 0
    for seed in range(1000, 1030):
        rows, features, predictions, settings = case(seed)
        compared += assert_same(tmp_path / str(seed), rows, features, predictions, settings)
    assert compared >= 20


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_dtypes_are_not_converted(tmp_path, dtype):
    compared = 0
    for seed in range(2000, 2020):
        rows, features, predictions, settings = case(seed)
        predictions = tuple(array.astype(dtype) for array in predictions)
        compared += assert_same(
            tmp_path / str(seed), rows, features, predictions, settings, argsort=left_first
        )
    assert compared >= 15


def left_first(values):
    """Ascending argsort which, read from its end, gives equal values from left to right."""
    return len(values) - 1 - np.argsort(values[::-1], kind="stable")


def test_equal_logits_are_ordered_from_left_to_right(tmp_path):
    compared = 0
    for seed in range(3000, 3040):
        rows, features, predictions, settings = case(seed)
        predictions = tuple(np.round(array) for array in predictions)
        compared += assert_same(
            tmp_path / str(seed), rows, features, predictions, settings, argsort=left_first
        )
    assert compared >= 30


def test_nan_and_infinite_logits_are_sorted_as_python_does(tmp_path):
    compared = 0
    for seed in range(4000, 4040):
        rows, features, predictions, settings = case(seed)
        rng = np.random.default_rng(seed)
        for array in predictions:
            array[rng.random(array.shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf])
        compared += assert_same(
            tmp_path / str(seed), rows, features, predictions, settings, argsort=left_first
        )
    assert compared >= 30


@pytest.mark.parametrize("version_2", [False, True])
def test_a_window_whose_spans_all_score_minus_infinity(tmp_path, version_2):
    """The search for the best span alone, without files, chooses a pair that is a span, too."""
    start, end = [5.0, -np.inf, -np.inf], [-np.inf, -np.inf, 5.0]
    settings = {"max_answer_length": 1, "version_2_with_negative": version_2}
    offsets = [(0, 2), (3, 5), (6, 8)]
    context = [{"id": "a", "context": "aa bb cc"}]
    answers = [
        answer_one(start, end, offsets, context, output_dir=folder, **settings)
        for folder in (None, tmp_path)
    ]
    assert answers == [{"a": "aa"}, {"a": "aa"}]


def test_examples_may_be_a_dataset_with_a_format():
    rows, features, predictions, settings = case(3)
    expected = postprocess_qa_predictions(rows, features, predictions, **settings)
    examples, windows = datasets.Dataset.from_list(rows), as_dataset(features)
    windows.set_format("numpy", columns=["example_id"])  # as older HF Trainers leave it
    assert postprocess_qa_predictions(examples, windows, predictions, **settings) == expected
    flipped = windows.select(range(len(windows))[::-1])
    flipped_logits = tuple(array[::-1] for array in predictions)
    actual = postprocess_qa_predictions(examples, flipped, flipped_logits, **settings)
    assert actual == expected


def test_bfloat16_is_computed_in_float32():
    import jax.numpy as jnp

    rows, features, predictions, settings = case(5)
    rounded = tuple(jnp.asarray(array, jnp.bfloat16) for array in predictions)
    widened = tuple(np.asarray(array, np.float32) for array in rounded)
    expected = postprocess_qa_predictions(rows, features, widened, **settings)
    assert postprocess_qa_predictions(rows, features, rounded, **settings) == expected


@pytest.mark.parametrize("block", BLOCKS[2:7])
def test_the_fixed_result_equals_the_fixed_oracle(tmp_path, block):
    """With NaN and infinities, the CLS token at any position, and texts of whitespace only."""
    for seed in range(5000 + block * 40, 5040 + block * 40):
        rows, features, predictions, settings = case(seed)
        rng = np.random.default_rng(seed)
        for array in predictions:
            share = rng.choice([0.0, 0.05])
            array[rng.random(array.shape) < share] = rng.choice([np.nan, np.inf, -np.inf])
        for feature in features:
            feature["cls_index"] = int(rng.integers(LENGTH))
        for row in rows:
            row["context"] = "".join(rng.permutation(list(row["context"][:150] + " " * 50)))
        settings |= {"hf_compatible": False}
        windows = [features, as_dataset(features)][seed % 2]
        assert_same(
            tmp_path / str(seed), rows, features, predictions, settings, windows, argsort=left_first
        )
    assert np.isfinite(list(null_odds(tmp_path))).all()


def null_odds(folder):
    for path in folder.glob("*/ours/*null_odds.json"):
        yield from json.loads(path.read_text()).values()


SMALL_LENGTH = 10  # tokens of a window that Hypothesis generates


@st.composite
def small_cases(draw):
    """Any texts, any windows over them; logits from a few values, so that many are equal."""
    rows, features = [], []
    for n in range(draw(st.integers(1, 3))):
        context = draw(st.text(min_size=1, max_size=30))
        rows.append({"id": f"q{n}", "context": context})
        for _ in range(draw(st.integers(0, 3))):
            place = st.integers(0, len(context))
            pairs = draw(st.lists(st.tuples(place, place), max_size=SMALL_LENGTH - 1))
            outside = [draw(st.sampled_from([None, []]))]
            outside *= draw(st.integers(0, SMALL_LENGTH - len(pairs)))
            cls = draw(st.integers(0, SMALL_LENGTH - 1))
            features.append(
                {"example_id": f"q{n}", "offset_mapping": outside + pairs, "cls_index": cls}
            )
    values = st.sampled_from([-2.0, -0.0, 0.0, 0.25, 1.0, 3.0])
    shape = (2, len(features), SMALL_LENGTH)
    predictions = tuple(draw(hypothesis.extra.numpy.arrays(np.float32, shape, elements=values)))
    settings = {
        "version_2_with_negative": draw(st.booleans()),
        "n_best_size": draw(st.sampled_from([1, 2, 5, 20])),
        "max_answer_length": draw(st.sampled_from([1, 3, 30])),
        "null_score_diff_threshold": draw(st.sampled_from([-1.0, 0.0, 1.0])),
        "hf_compatible": draw(st.booleans()),
    }
    return rows, draw(st.permutations(features)), predictions, settings


def check_small_case(case):
    rows, features, predictions, settings = case
    try:
        oracle.postprocess_plain(rows, features, predictions, argsort=left_first, **settings)
    except (StopIteration, TypeError):  # HF crashes: no span has a text; no window before
        hypothesis.assume(False)
    with tempfile.TemporaryDirectory() as folder:
        assert_same(Path(folder), rows, features, predictions, settings, argsort=left_first)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(small_cases())
def test_any_small_case_equals_the_oracle(case):
    check_small_case(case)


@pytest.mark.slow
@hypothesis.settings(max_examples=1000, deadline=None)
@hypothesis.given(small_cases())
def test_many_small_cases_equal_the_oracle(case):
    check_small_case(case)


# --------------------------------------------------------------------------------- edge cases


CONTEXT = "Paris is big"
WORDS = [None, (0, 5), (6, 8), (9, 12), None]


def answer_one(start, end, offsets=WORDS, rows=None, **settings):
    rows = [{"id": "a", "context": CONTEXT}] if rows is None else rows
    predictions = np.array([start], np.float32), np.array([end], np.float32)
    features = [{"example_id": rows[-1]["id"], "offset_mapping": offsets}]
    return postprocess_qa_predictions(rows, features, predictions, **settings)


def test_the_documented_example(tmp_path):
    settings = {"version_2_with_negative": True, "n_best_size": 3, "output_dir": tmp_path}
    answers = answer_one([0, 3, 1, 0.5, -1], [0, 0.25, 1, 4, -1], **settings)
    assert answers == {"a": "Paris is big"}
    assert json.loads((tmp_path / "null_odds.json").read_text()) == {"a": -7.0}
    entries = json.loads((tmp_path / "nbest_predictions.json").read_text())["a"]
    assert [entry["text"] for entry in entries] == ["Paris is big", "is big", "big", ""]
    assert list(entries[0]) == ["start_logit", "end_logit", "text", "probability"]
    assert sum(entry["probability"] for entry in entries) == pytest.approx(1)


@pytest.mark.parametrize(("null", "answer"), [(-1.0, "empty"), (1.0, "")])
def test_no_span_at_all(tmp_path, null, answer):
    flat = [null, 0, 0, 0, 0]
    assert answer_one(flat, flat, offsets=[None] * 5) == {"a": "empty"}
    settings = {"version_2_with_negative": True, "output_dir": tmp_path, "prefix": "x"}
    assert answer_one(flat, flat, offsets=[None] * 5, **settings) == {"a": answer}
    assert json.loads((tmp_path / "x_null_odds.json").read_text()) == {"a": 2 * null}
    entries = json.loads((tmp_path / "x_nbest_predictions.json").read_text())["a"]
    assert [entry["text"] for entry in entries] == ["empty", ""]


def test_an_example_without_windows(tmp_path):
    rows = [{"id": "none", "context": "x"}, {"id": "a", "context": CONTEXT}]
    flat = [5, 0, 0, 1, 0]
    assert answer_one(flat, flat, rows=rows)["none"] == "empty"
    settings = {"version_2_with_negative": True, "output_dir": tmp_path}
    assert answer_one(flat, flat, rows=rows, **settings) == {"none": "", "a": ""}
    odds = json.loads((tmp_path / "null_odds.json").read_text())
    assert odds == {"none": float(np.finfo(np.float32).max), "a": 8.0}
    assert np.isfinite(odds["none"])


def test_no_span_has_a_text_where_hugging_face_crashes(tmp_path):
    offsets = [None, (2, 2), (2, 2), None, None]
    settings = {"version_2_with_negative": True, "output_dir": tmp_path}
    assert answer_one([0, 2, 1, 0, 0], [0, 1, 2, 0, 0], offsets=offsets, **settings) == {"a": ""}
    assert json.loads((tmp_path / "null_odds.json").read_text()) == {"a": -4.0}


def test_duplicate_ids_get_the_first_place_and_the_last_context():
    rows = [{"id": i, "context": c} for i, c in (("a", "xxxxxxxx"), ("b", "y"), ("a", CONTEXT))]
    assert list(answer_one([0, 3, 0, 0, 0], [0, 3, 0, 0, 0], rows=rows).items()) == [
        ("a", "Paris"),
        ("b", "empty"),
    ]


def test_fixed_no_span_at_all_is_no_answer(tmp_path):
    flat, settings = [-1.0, 0, 0, 0, 0], {"output_dir": tmp_path, "hf_compatible": False}
    assert answer_one(flat, flat, offsets=[None] * 5, **settings) == {"a": ""}
    assert json.loads((tmp_path / "nbest_predictions.json").read_text()) == {"a": []}
    settings["version_2_with_negative"] = True
    assert answer_one(flat, flat, offsets=[None] * 5, **settings) == {"a": ""}
    odds = json.loads((tmp_path / "null_odds.json").read_text())
    assert odds == {"a": float(np.finfo(np.float32).max)}


def test_fixed_an_example_without_windows_gets_no_other_null_score(tmp_path):
    rows = [{"id": "none", "context": "x"}, {"id": "a", "context": CONTEXT}]
    flat, settings = [5, 0, 0, 1, 0], {"version_2_with_negative": True, "output_dir": tmp_path}
    answer_one(flat, flat, rows=rows[::-1] + rows[1:], **settings)
    compatible = json.loads((tmp_path / "null_odds.json").read_text())
    answer_one(flat, flat, rows=rows, hf_compatible=False, **settings)
    fixed = json.loads((tmp_path / "null_odds.json").read_text())
    assert compatible["none"] == 10.0
    assert fixed == {"none": float(np.finfo(np.float32).max), "a": 8.0}


def test_fixed_the_null_prediction_is_the_cls_token():
    features = [{"example_id": "a", "offset_mapping": WORDS, "cls_index": 4}]
    flat = np.array([[0, 1, 0, 0, 5]], np.float32)
    rows = [{"id": "a", "context": CONTEXT}]
    settings = {"version_2_with_negative": True}
    for windows in (features, as_dataset(features)):
        for compatible, expected in ((True, "Paris"), (False, "")):
            settings["hf_compatible"] = compatible
            actual = postprocess_qa_predictions(rows, windows, (flat, flat), **settings)
            assert actual == {"a": expected}


def test_fixed_duplicate_ids_are_rejected():
    rows = [{"id": i, "context": CONTEXT} for i in ("a", "b", "a", "c", "b", "z")]
    with pytest.raises(ValueError, match=r"2 ids are shared by several of the 6 .*first: a, b"):
        answer_one([0] * 5, [0] * 5, rows=rows, hf_compatible=False)


def test_no_examples(tmp_path):
    empty = np.zeros((0, 8), np.float32)
    assert postprocess_qa_predictions([], [], (empty, empty), output_dir=tmp_path) == {}
    assert (tmp_path / "nbest_predictions.json").read_text() == "{}\n"


def test_integer_ids_stay_integers(tmp_path):
    rows = [{"id": 7, "context": CONTEXT}]
    answers = answer_one([0, 3, 0, 0, 0], [0, 3, 0, 0, 0], rows=rows, output_dir=tmp_path)
    assert answers == {7: "Paris"}
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"7": "Paris"}


def test_the_null_odds_must_exceed_the_threshold():
    flat = [1, 1, 0, 0, 0]
    settings = {"version_2_with_negative": True}
    assert answer_one(flat, flat, null_score_diff_threshold=0.0, **settings) == {"a": "Paris"}
    assert answer_one(flat, flat, null_score_diff_threshold=-0.5, **settings) == {"a": ""}


def test_log_level_and_is_world_process_zero(caplog):
    flat = [0, 1, 0, 0, 0]
    answer_one(flat, flat, log_level=logging.INFO)
    assert "1 example predictions split into 1 features" in caplog.text
    caplog.clear()
    answer_one(flat, flat, log_level=logging.INFO, is_world_process_zero=False)
    assert caplog.text == ""


# ------------------------------------------------------------------------------- invalid input


FLAT = np.zeros((1, 5), np.float32)
VALID = {
    "examples": [{"id": "a", "context": CONTEXT}],
    "features": [{"example_id": "a", "offset_mapping": WORDS}],
    "predictions": (FLAT, FLAT),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": (FLAT,)}, "1 parts"),
        ({"predictions": (FLAT, FLAT[:, :4])}, r"\(1, 5\) and end logits \(1, 4\)"),
        ({"predictions": (FLAT[0], FLAT[0])}, r"\[windows, tokens\]"),
        ({"features": VALID["features"] * 3}, "1 windows, but there are 3 features"),
        ({"examples": [{"id": "b", "context": ""}]}, "1 example ids of the 1 features.*first: a"),
        ({"examples": [{"id": "a"}]}, "examples have no column 'context'.*: id"),
        ({"examples": datasets.Dataset.from_list([{"x": 1}])}, "no column 'id'.*: x"),
        ({"features": [{"example_id": "a"}]}, "features have no column 'offset_mapping'"),
        ({"features": datasets.Dataset.from_list([{"example_id": "a"}])}, "'offset_mapping'"),
        ({"features": Features(["a"], FLAT.astype(np.int32), FLAT.astype(np.int32))}, "no offsets"),
        (
            {"features": [{"example_id": "a", "offset_mapping": [None, (None, 5)]}]},
            "offset_mapping: 1 of its numbers are None",
        ),
        ({"n_best_size": 0}, "n_best_size is 0"),
        ({"max_answer_length": -1}, "max_answer_length is -1"),
    ],
)
def test_invalid_input_is_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        postprocess_qa_predictions(**(VALID | change))


def test_a_missing_folder_is_rejected(tmp_path):
    with pytest.raises(EnvironmentError, match="is not a folder: create it"):
        postprocess_qa_predictions(**VALID, output_dir=tmp_path / "none")


def test_after_an_error_the_folder_is_unchanged(tmp_path):
    (tmp_path / "predictions.json").write_text("old")
    change = {"examples": [{"id": "a", "context": None}], "output_dir": tmp_path}
    with pytest.raises(TypeError):
        postprocess_qa_predictions(**(VALID | change))
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    assert (tmp_path / "predictions.json").read_text() == "old"


# ------------------------------------------------------------------------------------- memory


def test_temporary_memory_does_not_grow_with_the_number_of_windows(monkeypatch):
    monkeypatch.setattr(spans, "CHUNK_WINDOWS", 64)
    peaks = []
    for count in (256, 2048):
        rng = np.random.default_rng(count)
        rows = [{"id": str(n // 2), "context": CONTEXT} for n in range(0, count, 2)]
        offsets = np.tile(
            np.array([(-1, -1), (0, 5), (6, 8), (9, 12)] * 8, np.int32), (count, 1, 1)
        )
        ids = np.zeros((count, 32), np.int32)
        features = Features([str(n // 2) for n in range(count)], ids, ids, offsets=offsets)
        predictions = tuple(logits(rng, 2, count, 32))
        tracemalloc.start()
        postprocess_qa_predictions(rows, features, predictions)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Only the ids and the answers grow with the number of windows, by about 300 bytes per window.
    assert peaks[1] - peaks[0] < 1792 * 400
