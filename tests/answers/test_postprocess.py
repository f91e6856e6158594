"""Examples without any logit that means something have no answer."""

import json

import numpy as np
import pytest

from qa_flax import postprocess_qa_predictions
from qa_flax.answers.spans import PADDING_LOGIT, Candidates, TopTokens

CONTEXT = "The mill burned"
OFFSETS = [None, (0, 3), (4, 8), (9, 15), None]
EXAMPLES = [{"id": name, "context": CONTEXT} for name in ("broken", "sound", "half")]
FEATURES = [
    {"example_id": name, "offset_mapping": OFFSETS}
    for name in ("broken", "sound", "half", "half", "broken")
]
ANSWERS = {"broken": "", "sound": "mill", "half": "mill"}


def logits(nan):
    array = np.tile(np.array([0, 1, 5, 2, 0], np.float32), (5, 1))
    array[[0, 3, 4]] = nan
    return array


@pytest.mark.parametrize("nan", [np.nan, -np.inf])
@pytest.mark.parametrize("version_2", [False, True])
def test_an_example_without_finite_logits_has_no_answer(tmp_path, nan, version_2):
    settings = {"version_2_with_negative": version_2, "hf_compatible": False}
    pair = (logits(nan), logits(nan))
    assert postprocess_qa_predictions(EXAMPLES, FEATURES, pair, **settings) == ANSWERS
    written = postprocess_qa_predictions(EXAMPLES, FEATURES, pair, output_dir=tmp_path, **settings)
    assert written == ANSWERS
    contents = {
        path.stem: json.loads(path.read_text(), parse_constant=pytest.fail)
        for path in tmp_path.iterdir()
    }
    assert contents["predictions"] == ANSWERS
    assert contents["nbest_predictions"]["broken"] == []
    assert contents["nbest_predictions"]["half"][0]["text"] == "mill"
    if version_2:
        assert contents["null_odds"]["broken"] == float(np.finfo(np.float32).max)


def test_candidates_from_the_cores_have_no_answer_either():
    """The cores have replaced NaN by the logit of padding."""
    starts = np.tile(np.arange(2, dtype=np.int32) + 1, (5, 1))
    values = np.tile(np.array([5, 1], np.float32), (5, 1))
    values[[0, 3, 4]] = PADDING_LOGIT
    tokens = TopTokens(starts + 1, values, starts + 1, values)
    candidates = Candidates(tokens, np.zeros(5, np.float32), np.zeros(5, np.float32), 5)
    found = postprocess_qa_predictions(
        EXAMPLES, FEATURES, candidates, n_best_size=2, hf_compatible=False
    )
    assert found == ANSWERS


# ---- examples and windows of different sets ------------------------------------------------------


@pytest.mark.parametrize("hf_compatible", [True, False])
@pytest.mark.parametrize("version_2", [False, True])
def test_examples_without_windows_are_counted_and_named(caplog, hf_compatible, version_2):
    features = [row for row in FEATURES if row["example_id"] == "sound"]
    pair = (np.zeros((1, 5), np.float32), np.zeros((1, 5), np.float32))
    settings = {"version_2_with_negative": version_2, "hf_compatible": hf_compatible}
    found = postprocess_qa_predictions(EXAMPLES, features, pair, **settings)
    assert found.keys() == {"broken", "sound", "half"}
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("2 of 3 examples")
    assert '"broken", "half"' in line
    caplog.clear()
    postprocess_qa_predictions(EXAMPLES, FEATURES, (logits(0), logits(0)), **settings)
    assert not caplog.records


# ---- spans with their characters -----------------------------------------------------------------


def spans_of(folder, context, offsets, logits, **settings):
    """The answer and the list of spans of one question with one window."""
    rows = [{"id": "a", "context": context}]
    features = [{"example_id": "a", "offset_mapping": [None, *offsets]}]
    array = np.array([logits], np.float32)
    settings |= {"output_dir": folder, "save_spans": True}
    answers = postprocess_qa_predictions(rows, features, (array, array), **settings)
    return answers["a"], json.loads((folder / "spans.json").read_text())["a"]


def test_white_space_is_cut_off_and_the_offsets_move_with_it(tmp_path):
    context, offsets = "🙂 \u00a0Åse \r\n", [(0, 1), (1, 7), (7, 10)]
    settings = {"max_answer_length": 1, "n_best_size": 3}
    for compatible, expected in [
        (True, [(" \u00a0Åse ", 1, 7), ("🙂", 0, 1), ("\r\n", 7, 9)]),
        (False, [("Åse", 3, 6), ("🙂", 0, 1), ("", 7, 7)]),
    ]:
        _, found = spans_of(
            tmp_path, context, offsets, [0, 2, 3, 1], hf_compatible=compatible, **settings
        )
        assert [(span["text"], span["start"], span["end"]) for span in found] == expected
        assert all(context[span["start"] : span["end"]] == span["text"] for span in found)
        assert sum(span["score"] for span in found) == pytest.approx(1)


def test_the_null_prediction_is_nothing_at_0_and_the_placeholder_is_no_span(tmp_path):
    offsets = [(0, 3), (4, 8)]
    logits = [9, 1, 2]
    answer, found = spans_of(tmp_path, CONTEXT, offsets, logits, version_2_with_negative=True)
    assert answer == ""
    assert [(span["text"], span["start"], span["end"]) for span in found] == [
        ("", 0, 0),
        ("mill", 4, 8),
        ("The mill", 0, 8),
        ("The", 0, 3),
    ]
    answer, found = spans_of(tmp_path, CONTEXT, [None, None], [9, 1, 2])
    assert (answer, found) == ("empty", [])


def test_spans_without_a_folder_are_refused():
    pair = (logits(0), logits(0))
    with pytest.raises(ValueError, match=r"save_spans=True .* output_dir is None; give"):
        postprocess_qa_predictions(EXAMPLES, FEATURES, pair, save_spans=True)


def test_only_the_main_process_writes_spans(tmp_path):
    settings = {"output_dir": tmp_path, "save_spans": True, "is_world_process_zero": False}
    postprocess_qa_predictions(EXAMPLES, FEATURES, (logits(0), logits(0)), **settings)
    assert not list(tmp_path.iterdir())
