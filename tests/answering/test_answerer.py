"""`QuestionAnswerer`: what its answers are, and that they do not depend on what they should not."""

import json
import logging
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from transformers import TrainerCallback

from qa_flax import QuestionAnswerer, Trainer, TrainingArguments, prepare_train_features
from qa_flax.answering import answerer as answerer_module
from qa_flax.answering.questions import STREAM_QUESTIONS
from qa_flax.answers.calibration import Calibration

ROWS = [{"question": row["question"], "context": row["context"]} for row in tiny.rows()]
# One number of rows and one padded length: a single program is compiled for most tests.
SHORT = {"max_seq_len": 64, "doc_stride": 16, "batch_size": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ask(checkpoint):
    return QuestionAnswerer(checkpoint, **SHORT)


def assert_same(actual, expected):
    """The same answers; scores may differ by the rounding of other shapes."""
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            approximate = isinstance(value, float)
            assert ours[name] == (pytest.approx(value, rel=1e-4) if approximate else value)


def test_an_answer_is_a_dict_as_of_the_pipeline(ask):
    for row in ROWS:
        answer = ask(**row)
        assert list(answer) == ["score", "start", "end", "answer"]
        assert row["context"][answer["start"] : answer["end"]] == answer["answer"]
        assert type(answer["score"]) is float
        assert type(answer["start"]) is type(answer["end"]) is int
        assert json.loads(json.dumps(answer)) == answer


def test_scores_are_the_probabilities_of_the_span_in_its_window(checkpoint):
    """Computed here from the model's own logits of a single window."""
    model, tokenizer = tiny.model(), tiny.tokenizer()
    question, context = "Who wrote it?", tiny.CONTEXTS[1]
    inputs = tokenizer(question, context, return_tensors="np")
    output = model(**inputs)
    is_candidate = np.array([n == 1 for n in inputs.sequence_ids(0)])
    is_candidate[0] = True
    start, end = (
        np.where(is_candidate, np.asarray(x[0], np.float64), -np.inf)
        for x in (output.start_logits, output.end_logits)
    )
    p_start, p_end = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (start, end))
    null = p_start[0] * p_end[0]
    p_start[0] = p_end[0] = 0
    p = np.triu(np.outer(p_start, p_end))
    i, j = np.unravel_index(p.argmax(), p.shape)
    ask = QuestionAnswerer(model, tokenizer, align_to_words=False, max_answer_len=100)
    best = ask(question=question, context=context)
    assert best["score"] == pytest.approx(p[i, j], rel=1e-4)
    assert (best["start"], best["end"]) == (
        inputs[0].offsets[i][0],
        inputs[0].offsets[j][1],
    )
    answers = ask(question, context, handle_impossible_answer=True, top_k=5000)
    (no_answer,) = [answer for answer in answers if answer["answer"] == ""]
    assert no_answer["score"] == pytest.approx(null, rel=1e-4)
    assert (no_answer["start"], no_answer["end"]) == (0, 0)


def test_the_form_of_the_result_follows_the_form_of_the_questions(ask):
    single = [ask(row) for row in ROWS]
    assert_same(ask(ROWS), single)
    asked = {name: [row[name] for row in ROWS] for name in ("question", "context")}
    assert_same(ask(**asked), single)
    stream = ask(iter(ROWS))
    assert not isinstance(stream, list)
    assert_same(list(stream), single)
    assert ask([]) == []
    three = ask(ROWS[0], top_k=3)
    assert isinstance(three, list)
    assert len(three) == 3
    # The pipeline adds up the spans that become the same words: the more it looks at, the more.
    assert three[0]["answer"] == single[0]["answer"]
    assert three[0]["score"] >= single[0]["score"]
    assert three[0]["score"] >= three[1]["score"] >= three[2]["score"]


def test_results_depend_neither_on_blocks_nor_on_batches(ask, monkeypatch):
    expected = ask(ROWS, top_k=5)
    monkeypatch.setattr("qa_flax.answering.answerer.BLOCK_QUESTIONS", 5)
    monkeypatch.setattr(answerer_module, "WINDOWS_AT_ONCE", 3)
    for actual, theirs in zip(ask(ROWS, top_k=5, batch_size=4), expected, strict=True):
        assert_same(actual, theirs)


def test_a_stream_reads_no_further_than_its_block(ask):
    read = 0

    def rows():
        nonlocal read
        while True:
            read += 1
            yield ROWS[read % 3]

    first = next(ask(rows()))
    assert_same([first], [ask(ROWS[1])])
    assert read <= STREAM_QUESTIONS + 1


def test_start_and_end_count_code_points_of_the_raw_context(ask):
    context = "\r\nA👍🏽é (e\u0301) قال\tTokyo  \r\n  ende. \u200f عن \U0001f468\u200d\U0001f469 x"
    for align in (True, False):
        answers = ask("Who?", context, top_k=200, max_answer_len=100, align_to_words=align)
        assert len(answers) > 20
        for answer in answers:
            assert context[answer["start"] : answer["end"]] == answer["answer"]
    whole = max(answers, key=lambda answer: answer["end"] - answer["start"])
    assert whole["answer"] == context.strip()


def test_words_that_differ_in_case_only_are_one_answer(ask):
    answers = ask("Who?", "Tokyo, TOKYO", top_k=50, max_answer_len=1)
    assert sorted(answer["answer"].lower() for answer in answers) == [",", "tokyo"]
    assert sum(answer["score"] for answer in answers) < 1


def test_a_long_context_is_searched_in_all_its_windows(ask):
    far = "One two. " * 300 + "Tokyo"
    answers = ask("Where?", far, top_k=500)
    assert max(answer["end"] for answer in answers) == len(far)
    done = []
    ask.progress = lambda *counts: done.append(counts)
    ask("Where?", far)
    ask.progress = None
    assert done[-1][0] == done[-1][1] > 10
    assert done == sorted(done)


def test_an_explicit_question_length_truncates_the_question(ask):
    long = ask(
        question="Who " + "wrote " * 30 + "?", context=ROWS[0]["context"], max_question_len=2
    )
    short = ask(question="Who wr", context=ROWS[0]["context"], max_question_len=2)
    assert long == short


# ---- the model ---------------------------------------------


def test_a_model_answers_with_its_present_weights(checkpoint):
    model = tiny.model()
    ask = QuestionAnswerer(model, tiny.tokenizer(), **SHORT)
    before = ask(ROWS[0])
    assert ask(ROWS[0]) == before
    other = tiny.model(seed=1)
    model.set_params(nnx.state(other, nnx.Param))
    assert ask(ROWS[0]) != before
    assert_same([ask(ROWS[0])], [QuestionAnswerer(other, tiny.tokenizer(), **SHORT)(ROWS[0])])


def test_the_tokenizer_is_that_of_the_models_folder(checkpoint, tmp_path):
    from qa_flax import AutoModelForQuestionAnswering

    loaded = AutoModelForQuestionAnswering.from_pretrained(checkpoint)
    expected = QuestionAnswerer(checkpoint, **SHORT)(ROWS[0])
    assert_same([QuestionAnswerer(loaded, **SHORT)(ROWS[0])], [expected])
    assert_same([QuestionAnswerer(tiny.model(), checkpoint, **SHORT)(ROWS[0])], [expected])
    with pytest.raises(ValueError, match="its tokenizer is unknown; pass tokenizer="):
        QuestionAnswerer(tiny.model())
    tiny.model().save_pretrained(tmp_path)
    with pytest.raises(OSError, match="has no tokenizer"):
        QuestionAnswerer(tmp_path)
    other = tiny.tokenizer()
    other.add_tokens(["zzz"])
    with pytest.raises(ValueError, match="do not belong together"):
        QuestionAnswerer(tiny.model(vocab_size=len(other) - 1), other)


def test_bfloat16_computes_in_bfloat16(checkpoint):
    ask = QuestionAnswerer(checkpoint, dtype="bfloat16")
    assert ask.model.dtype == jnp.bfloat16
    exact, rounded = (
        {a["answer"]: a["score"] for a in answerer(ROWS[0], top_k=300)}
        for answerer in (QuestionAnswerer(checkpoint), ask)
    )
    assert rounded.keys() == exact.keys()
    assert rounded != exact
    for answer, score in exact.items():
        assert rounded[answer] == pytest.approx(score, rel=0.3)


def test_what_is_no_model_of_qa_flax_is_refused():
    with pytest.raises(TypeError, match="model is a dict, which qa_flax cannot ask; pass a folder"):
        QuestionAnswerer({})
    with pytest.raises(OSError, match="does not exist, and it is not a valid hub id"):
        QuestionAnswerer("./nowhere")


def test_logits_that_are_not_finite_give_no_answers_and_a_warning(caplog):
    model = tiny.model()
    bias = model.head.outputs.bias
    bias[...] = jnp.full_like(bias[...], jnp.nan)
    with caplog.at_level(logging.WARNING):
        answers = QuestionAnswerer(model, tiny.tokenizer())(ROWS[0], handle_impossible_answer=True)
    assert answers == []
    assert "are not finite" in caplog.text


# ---- settings ---------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "^top_k=0: it must be a whole number of at least 1$"),
        ({"max_answer_len": 0}, "^max_answer_len=0: it must be"),
        ({"align_to_words": "yes"}, "^align_to_words='yes': it must be True or False$"),
        ({"normalize": "some"}, "^normalize='some': it must be one of"),
        ({"padding": "left"}, "^padding='left': it must be one of"),
        ({"threshold": 2, "answers": 1}, "^threshold=2: it must be a number from 0 to 1$"),
        ({"threshold": 0.5}, "pass answers=..., too"),
        ({"answers": 2, "top_k": 3}, "^answers and top_k both say"),
        ({"max_seq_len": 500}, "^max_seq_len is 500, but the model has positions for windows of"),
        ({"max_seq_len": 12, "doc_stride": 12}, "^doc_stride=12 is too large for max_seq_len=12:"),
    ],
)
def test_a_wrong_setting_is_refused_in_words(ask, settings, message):
    row = {"question": "Who wrote it?", "context": tiny.CONTEXTS[0] * 3}
    with pytest.raises(ValueError, match=message):
        ask(**row, **settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max_seq_length", "it is called max_seq_len$"),
        ("n_best_size", "it is called top_k$"),
        ("topp_k", "did you mean 'top_k'"),
        ("nonsense", "there are top_k, doc_stride"),
    ],
)
def test_an_unknown_setting_is_refused_with_a_hint(ask, checkpoint, name, message):
    with pytest.raises(TypeError, match=message):
        ask(ROWS[0], **{name: 3})
    with pytest.raises(TypeError, match=message):
        QuestionAnswerer(checkpoint, **{name: 3})


def test_settings_of_the_answerer_are_defaults_of_its_calls(checkpoint):
    ask = QuestionAnswerer(checkpoint, top_k=3, max_answer_len=2, **SHORT)
    assert len(ask(ROWS[0])) == 3
    assert len(ask(ROWS[0], top_k=2)) == 2
    assert isinstance(ask(ROWS[0], top_k=1), dict)
    with pytest.warns(UserWarning, match="topk is deprecated; use top_k"):
        assert len(ask(ROWS[0], topk=4)) == 4


def test_padding_and_workers_of_the_pipeline_change_nothing(ask):
    expected = ask(ROWS[0])
    for padding in ("max_length", "longest", "do_not_pad", True, False):
        assert ask(ROWS[0], padding=padding, num_workers=2) == expected


def test_the_settings_of_the_tokenizer_are_left_as_they_were():
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(9)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    before = tokenizer.backend_tokenizer.to_str()
    QuestionAnswerer(tiny.model(), tokenizer, **SHORT)(ROWS[0])
    assert tokenizer.backend_tokenizer.to_str() == before


# ---- confidence, separate answers, several contexts ---------------------------------------------


def test_confidence_is_there_if_the_model_is_calibrated(checkpoint, ask):
    with pytest.raises(KeyError, match="this model is not calibrated"):
        ask(ROWS[0])["confidence"]
    with pytest.raises(KeyError, match=r"^'x'$"):
        ask(ROWS[0])["x"]
    calibrated = QuestionAnswerer(checkpoint, calibration=Calibration(temperature=2.0), **SHORT)
    for row in ROWS:
        plain, answers = ask(row, top_k=400), calibrated(row, top_k=400)
        without = [{n: v for n, v in answer.items() if n != "confidence"} for answer in answers]
        assert_same(without, plain)  # in the order and with the scores of the pipeline
        assert sum(answer["confidence"] for answer in answers) >= 1 - 1e-6
        few = calibrated(row, top_k=3)  # confidence does not depend on the number of answers
        all_ = {answer["answer"]: answer["confidence"] for answer in answers}
        assert {a["answer"]: a["confidence"] for a in few} == pytest.approx(
            {a["answer"]: all_[a["answer"]] for a in few}, rel=1e-3
        )


def test_the_temperature_divides_the_logits(checkpoint):
    by_temperature = {}
    for temperature in (1.0, 2.0):
        ask = QuestionAnswerer(
            checkpoint, calibration=Calibration(temperature=temperature), **SHORT
        )
        answers = ask(ROWS[0], top_k=300, handle_impossible_answer=True)
        by_temperature[temperature] = {a["answer"]: np.log(a["confidence"]) for a in answers}
    one, two = by_temperature[1.0], by_temperature[2.0]
    for answer in one:
        difference = one[answer] - one[""]
        assert two[answer] - two[""] == pytest.approx(difference / 2, abs=1e-4)


def test_a_fitted_threshold_decides_whether_there_is_an_answer(checkpoint):
    def first(threshold, **settings):
        calibration = Calibration(no_answer_threshold=threshold)
        ask = QuestionAnswerer(checkpoint, calibration=calibration, **SHORT, **settings)
        return ask(ROWS[0], handle_impossible_answer=True)

    assert first(-1000.0)["answer"] == ""
    assert first(-1000.0)["confidence"] == pytest.approx(1)
    assert first(1000.0)["answer"] != ""
    assert first(1000.0, top_k=2)[1]["confidence"] < 1
    assert first(-1000.0, answers=3) == [first(-1000.0)]


def test_separate_answers_do_not_overlap(ask):
    for row in ROWS:
        answers = ask(row, answers=4, threshold=0)
        assert isinstance(answers, list)
        assert 1 <= len(answers) <= 4
        places = sorted((answer["start"], answer["end"]) for answer in answers)
        assert all(end <= start for (_, end), (start, _) in pairwise(places))
        confidences = [answer["confidence"] for answer in answers]
        assert confidences == sorted(confidences, reverse=True)
        best = ask(row, answers=1, threshold=0)
        assert_same(best, answers[:1])
        threshold = confidences[0] * 0.999
        assert_same(ask(row, answers=4, threshold=threshold), best)
    assert ask(ROWS[0], answers=4, threshold=1.0) == []


CONTEXTS = {"ada": tiny.CONTEXTS[0], "elbe": tiny.CONTEXTS[1], "tokyo": tiny.CONTEXTS[3]}


def test_the_best_answers_over_several_contexts_say_where_they_are_from(ask):
    question = "Who wrote the first program?"
    answers = ask(question=question, contexts=CONTEXTS, top_k=2000)
    for answer in answers:
        context = CONTEXTS[answer["context"]]
        assert context[answer["start"] : answer["end"]] == answer["answer"]
    assert {answer["context"] for answer in answers} == CONTEXTS.keys()
    confidences = [answer["confidence"] for answer in answers]
    assert confidences == sorted(confidences, reverse=True)
    best = {name: ask(question, text, top_k=1) for name, text in CONTEXTS.items()}
    for name, single in best.items():
        (same,) = [a for a in answers if a["context"] == name and a["answer"] == single["answer"]]
        assert same["start"] == single["start"]
    in_order = ask(question=question, contexts=list(CONTEXTS.values()))
    assert list(CONTEXTS)[in_order["context"]] == answers[0]["context"]


def test_confidences_are_shares_of_all_contexts_or_of_each(checkpoint, ask):
    question = "Who wrote the first program?"
    calibrated = QuestionAnswerer(checkpoint, calibration=Calibration(), **SHORT)
    alone = {
        (name, answer["answer"]): answer["confidence"]
        for name, text in CONTEXTS.items()
        for answer in calibrated(question, text, top_k=5000)
    }
    shares = {}
    for normalize in ("all", "each"):
        answers = ask(question=question, contexts=CONTEXTS, top_k=5000, normalize=normalize)
        shares[normalize] = {(a["context"], a["answer"]): a["confidence"] for a in answers}
        assert shares[normalize].keys() == alone.keys()
    assert shares["each"] == pytest.approx(alone, rel=1e-3)
    assert sum(shares["all"].values()) >= 1 - 1e-6
    for name in CONTEXTS:
        ratios = [shares["all"][key] / alone[key] for key in alone if key[0] == name]
        assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-3)
        assert ratios[0] < 1


def test_no_answer_of_several_contexts_is_from_none(ask):
    answers = ask(question="Who?", contexts=CONTEXTS, top_k=5000, handle_impossible_answer=True)
    (no_answer,) = [answer for answer in answers if answer["answer"] == ""]
    assert no_answer["context"] is None
    assert 0 < no_answer["confidence"] < 1


def test_many_contexts_are_combined_over_blocks(ask, monkeypatch):
    expected = ask(question=["Who?", "Where?"], contexts=CONTEXTS, top_k=7)
    monkeypatch.setattr("qa_flax.answering.answerer.BLOCK_QUESTIONS", 2)
    for actual, theirs in zip(
        ask(question=["Who?", "Where?"], contexts=CONTEXTS, top_k=7), expected, strict=True
    ):
        assert_same(actual, theirs)


@pytest.mark.slow
def test_a_model_that_is_being_trained_answers_with_the_weights_of_its_latest_update(tmp_path):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    ask, seen = QuestionAnswerer(model, tokenizer), []
    seen.append(ask(ROWS[0]))

    class Asks(TrainerCallback):
        def on_step_end(self, args, state, control, **keywords):
            seen.append(ask(ROWS[0]))

    windows = prepare_train_features(tiny.examples(answerable=True), tokenizer, 64, 16)
    settings = {"max_steps": 2, "per_device_train_batch_size": 1, "learning_rate": 1e-2}
    args = TrainingArguments(tmp_path, save_strategy="no", report_to="none", **settings)
    trainer = Trainer(model, args, train_dataset=windows, callbacks=[Asks()])
    trainer.train()
    assert len({answer["score"] for answer in seen}) == 3
    assert ask(ROWS[0]) == seen[-1]
    assert_same([QuestionAnswerer(trainer.model, tokenizer)(ROWS[0])], seen[-1:])
