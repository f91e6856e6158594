"""Answers are searched while the cores compute."""

import threading

import numpy as np
import pytest
import tiny
from tiny_trainers import WINDOW, arguments, compute_metrics, post_process

from qa_flax import QuestionAnsweringTrainer, prepare_validation_features
from qa_flax.answers.arrivals import Arrivals, Cancelled
from qa_flax.answers.postprocess import find_answers
from qa_flax.answers.spans import Candidates, SearchSettings, TopTokens
from qa_flax.data import batches
from qa_flax.data.features import make_windows
from qa_flax.distributed import preemption
from qa_flax.train.answers_ahead import AnswersAhead, runs_ahead

SETTINGS = SearchSettings(False, 20, 30, False)


def trainer_of(folder, function, **changes):
    examples = tiny.repeated_examples(40)
    windows = prepare_validation_features(examples, tiny.tokenizer(), disable_tqdm=True, **WINDOW)
    return QuestionAnsweringTrainer(
        model=tiny.model(),
        args=arguments(folder, per_device_eval_batch_size=1, **changes),
        eval_dataset=windows,
        eval_examples=examples,
        post_process_function=function,
        compute_metrics=compute_metrics,
        search_settings=SETTINGS,
    )


def watched(seen):
    """A `post_process_function` that may run ahead, and notes where and when it was called."""

    def function(examples, windows, logits):
        seen.append((threading.current_thread().name, logits.arrivals is not None))
        answers = find_answers(examples, windows, logits, SETTINGS).texts
        predictions = [{"id": id_, "prediction_text": text} for id_, text in answers.items()]
        scored = post_process(examples, windows, logits)
        return scored._replace(predictions=predictions) if hasattr(scored, "_replace") else scored

    function.runs_ahead = True
    return function


@pytest.mark.parametrize("packing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_answers_are_those_of_a_search_afterwards(tmp_path, monkeypatch, packing):
    monkeypatch.setattr(batches, "EVAL_POOL", 64)
    seen = []
    function = watched(seen)
    ahead = trainer_of(tmp_path, function, packing=packing).evaluate()
    function.runs_ahead = False
    afterwards = trainer_of(tmp_path, function, packing=packing).evaluate()
    assert seen[0][0].startswith("qa_flax answers")
    assert seen[0][1]
    assert seen[1] == ("MainThread", False)
    names = [name for name in afterwards if name.endswith(("match", "f1", "loss"))]
    assert names
    assert [ahead[name] for name in names] == [afterwards[name] for name in names]


def test_the_first_answers_are_found_before_the_last_windows_arrive():
    examples = tiny.repeated_examples(150)
    windows = make_windows(examples, tiny.tokenizer(), labels=False, disable_tqdm=True, **WINDOW)
    count, tokens = len(windows), np.ones((len(windows), 20), np.int32)
    logits = np.zeros((count, 20), np.float32)
    arrivals, read = Arrivals(count), []

    class Watched(np.ndarray):
        def __getitem__(self, rows):
            read.append(np.arange(count)[rows].max())
            return np.asarray(super().__getitem__(rows))

    nulls = np.zeros(count, np.float32)
    top = TopTokens(tokens, logits, tokens, logits)
    candidates = Candidates(top, nulls.view(Watched), nulls, 64)
    with AnswersAhead(lambda c: find_answers(examples, windows, c, SETTINGS)) as ahead:
        ahead.begin(candidates, arrivals)
        arrivals.add(slice(0, count // 2))
        while not read:
            threading.Event().wait(0.01)
        assert not ahead._found.done()
        assert max(read) < count // 2
        arrivals.add_all()
        answers = ahead.result()
    assert list(answers.texts) == list(examples["id"])


def test_an_evaluation_that_is_stopped_ends_the_search(tmp_path, monkeypatch):
    checks = []

    def check():
        checks.append(1)
        if len(checks) == 3:
            raise preemption.Preempted

    trainer = trainer_of(tmp_path, watched([]))
    monkeypatch.setattr(preemption, "check", check)
    with pytest.raises(preemption.Preempted):
        trainer.evaluate()
    assert not any(t.name.startswith("qa_flax answers") for t in threading.enumerate())


def test_an_error_of_the_search_is_raised(tmp_path):
    def fail(examples, windows, logits):
        raise KeyError("of the script")

    fail.runs_ahead = True
    with pytest.raises(KeyError, match="of the script"):
        trainer_of(tmp_path, fail).evaluate()


def test_a_script_s_own_function_is_called_afterwards():
    assert not runs_ahead(post_process)
    assert issubclass(Cancelled, Exception)
