"""`QuestionAnswerer.calibrate`, and which calibration an answerer uses."""

import dataclasses
import logging

import numpy as np
import pytest
import tiny

from qa_flax import QuestionAnswerer, load_examples
from qa_flax.answers.calibration import CALIBRATION_FILE, Calibration
from qa_flax.answers.calibration_fit import correct_answers
from qa_flax.answers.confidence import confidences
from qa_flax.models.fingerprint import fingerprint

SETTINGS = {"max_seq_len": 64, "doc_stride": 16}
CONTEXT = tiny.CONTEXTS[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model and a calibration for it."""
    folder = tmp_path_factory.mktemp("model")
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    Calibration(3.0, fingerprint=fingerprint(tiny.model())).write(folder)
    return folder


def confidence(answerer):
    return answerer(question="Who?", context=CONTEXT)["confidence"]


def test_the_file_beside_the_model_is_used(folder, caplog):
    answerer = QuestionAnswerer(folder, **SETTINGS)
    assert answerer.calibration == Calibration.read(folder)
    low = QuestionAnswerer(folder, calibration=Calibration(0.5), **SETTINGS)
    assert 0 < confidence(answerer) < confidence(low) < 1
    assert not caplog.records


def test_a_calibration_for_other_weights_is_ignored_with_one_warning(folder, caplog):
    answerer = QuestionAnswerer(tiny.model(1), tiny.tokenizer(), calibration=folder, **SETTINGS)
    for _ in range(2):
        assert "confidence" not in answerer(question="Who?", context=CONTEXT)
    assert answerer.calibration is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "QuestionAnswerer.calibrate(examples, folder=...)" in caplog.text
    unknown = dataclasses.replace(Calibration.read(folder), fingerprint=None)
    answerer.calibration = unknown
    assert confidence(answerer) > 0, "it does not say which weights it is for"


def test_weights_that_change_while_the_answerer_lives_make_it_stale(folder, caplog):
    model = tiny.model()
    answerer = QuestionAnswerer(model, tiny.tokenizer(), calibration=folder, **SETTINGS)
    assert confidence(answerer) > 0
    with caplog.at_level(logging.WARNING):
        model.head.outputs.bias[...] = np.float32([1, 2])
        assert "confidence" not in answerer(question="Who?", context=CONTEXT)
    assert len(caplog.records) == 1


def test_calibrating_uses_and_writes_what_it_returns(folder, tmp_path):
    answerer = QuestionAnswerer(tiny.model(), tiny.tokenizer(), **SETTINGS)
    examples = load_examples(tiny.rows())
    scored = answerer.score_examples(examples)
    report = answerer.calibrate(tiny.rows(), tmp_path)
    assert answerer.calibration is report
    assert Calibration.read(tmp_path) == report
    assert report.fingerprint == fingerprint(tiny.model())
    assert (report.fitted_questions, report.fitted_contexts) == (12, 6)
    # The scores are those from which an answer's confidence is computed.
    shares = confidences(scored.answers, report, has_null=False)
    row = examples[0]
    answers = answerer(question=row["question"], context=row["context"], top_k=50)
    assert max(a["confidence"] for a in answers) == pytest.approx(shares[0, :-1].max(), rel=1e-5)
    assert scored.correct[:, -1].tolist() == [False] * 11 + [True]
    assert len(set(scored.groups.tolist())) == 6


def test_whether_answers_are_right_does_not_depend_on_the_order(folder):
    answerer = QuestionAnswerer(folder, **SETTINGS)
    examples = load_examples(tiny.rows())
    scored = answerer.score_examples(examples)
    order = np.array([5, 0, 11, 3, 7])
    part = answerer.score_examples(examples.select(order))
    for column, whole in zip(
        (*part.answers, *part[1:]), (*scored.answers, *scored[1:]), strict=True
    ):
        np.testing.assert_allclose(column, whole[order], rtol=1e-5)
    texts = [["1843", "in 1843"]]
    assert correct_answers(texts, [examples[1]["answers"]["text"]]).tolist() == [
        [True, False, False]
    ]


def test_examples_that_say_nothing_are_refused(folder):
    answerer = QuestionAnswerer(folder, **SETTINGS)
    row = {"id": "a", "question": "Who?", "context": CONTEXT}
    with pytest.raises(ValueError, match="answers"):
        answerer.calibrate([row])
    with pytest.raises(ValueError, match="none of the 1 questions has an answer"):
        answerer.calibrate([row | {"answers": []}])


def test_a_damaged_file_is_an_error_with_a_way_around(folder, tmp_path):
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / CALIBRATION_FILE).write_text('{"temperature": 2}')
    with pytest.raises(ValueError, match=r"calibration\.json is not of this program.*without"):
        QuestionAnswerer(tmp_path)
    assert QuestionAnswerer(tmp_path, calibration=Calibration()).calibration == Calibration()
    with pytest.raises(FileNotFoundError, match="is not calibrated"):
        QuestionAnswerer(folder, calibration=tmp_path / "nothing")
    with pytest.raises(TypeError, match="calibration is a float"):
        QuestionAnswerer(folder, calibration=2.5)
