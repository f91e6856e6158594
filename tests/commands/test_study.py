"""The study of overfitting: its data, its clock, and what the command prints and writes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qa_flax.commands import demo
from qa_flax.commands.demo import study
from qa_flax.commands.demo.study_data import (
    SOURCE_RELATIONS,
    TARGET_RELATIONS,
    source_stories,
    target_data,
)
from qa_flax.commands.errors import UsageError
from qa_flax.commands.run import parse_arguments

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data():
    return target_data(0)


def questions(stories):
    return [question for story in stories for question in story.questions]


# ---- data -------------------------------------------------------------------------------------


def test_the_training_set_has_300_questions_and_5_percent_wrong_answers(data):
    assert len(questions(data.train)) == 300
    assert data.wrong == 15
    wrong = 0
    for story in data.train:
        for q in story.questions:
            assert story.context[q.start : q.start + len(q.answer)] == q.answer
            right = {
                fact.values[slot]
                for fact in story.facts
                for slot in fact.relation.questions
                if q.text in fact.questions(slot)
            }
            wrong += q.answer not in right
    assert wrong == data.wrong


def test_validation_and_third_set_are_right_and_about_other_texts(data):
    sets = [data.train, data.validation, data.test]
    contexts = [{story.context for story in stories} for stories in sets]
    assert len(set.union(*contexts)) == sum(map(len, contexts))
    for stories in sets[1:]:
        for story in stories:
            answers = {
                text: fact.values[slot]
                for fact in story.facts
                for slot in fact.relation.questions
                for text in fact.questions(slot)
            }
            assert all(answers[q.text] == q.answer for q in story.questions)


def test_the_start_model_has_seen_no_question_of_this_kind(data):
    assert {r.name for r in SOURCE_RELATIONS}.isdisjoint(r.name for r in TARGET_RELATIONS)
    source = source_stories(0)[:50]
    for stories, relations in ((source, SOURCE_RELATIONS), (data.train, TARGET_RELATIONS)):
        used = {fact.relation.name for story in stories for fact in story.facts}
        assert used == {relation.name for relation in relations}


def test_the_data_depend_on_the_seed_alone(data):
    assert target_data(0) == data
    other = {story.context for story in target_data(1).train}
    assert other.isdisjoint(story.context for story in data.train)


# ---- settings ---------------------------------------------------------------------------------


def test_the_regularised_run_is_the_baseline_with_all_means_of_the_ablation():
    means = {name for settings in study.MEANS.values() for name in settings}
    changed = {n for n, v in study.REGULARISED.items() if study.BASELINE.get(n) != v}
    assert changed == means | {"num_train_epochs"}
    assert study.BASELINE.keys() - means == study.REGULARISED.keys() - means


def test_seeds_are_left_out_only_if_they_do_not_fit(monkeypatch):
    now = 0.0
    monkeypatch.setattr(study.time, "perf_counter", lambda: now)
    clock = study._Clock(100.0)
    with clock.measured("seed"):
        now = 20.0
    assert clock.has_time_for(seeds=1, ablations=9)  # 20 + 15 + 9 * 6.75
    assert not clock.has_time_for(seeds=1, ablations=10)
    with clock.measured("seed"):
        now = 40.0
    assert clock.has_time_for(seeds=1, ablations=4)  # 40 + 20 + 4 * 9
    assert not clock.has_time_for(seeds=1, ablations=5)
    with clock.measured("ablation"):
        now = 45.0
    assert clock.has_time_for(seeds=0, ablations=11)
    assert not clock.has_time_for(seeds=0, ablations=12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "2"], "no effect without --study"),
        (["--study", "overfitting", "--seeds", "0"], "at least 1"),
    ],
)
def test_a_number_of_seeds_that_cannot_be_used_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        demo.main(demo.parser().parse_args(arguments))


# ---- the command ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_study_shows_the_gap_and_closes_it(tmp_path):
    """With one seed; the number of seeds depends on the machine otherwise."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    output = tmp_path / "study"
    command = [sys.executable, "-m", "qa_flax", "demo", "--study", "overfitting"]
    finished = subprocess.run(
        [*command, "--seeds", "1", "--output_dir", str(output)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert not finished.stderr.strip(), finished.stderr
    content = json.loads((output / "study.json").read_text())
    assert content["seeds"] == [0]
    baseline, regularised = content["baseline"], content["regularised"]
    assert baseline["train_accuracy"][0] >= 95
    assert baseline["validation_accuracy"][0] <= baseline["train_accuracy"][0] - 15
    assert regularised["validation_accuracy"][0] >= 85
    assert regularised["train_accuracy"][0] < 92
    assert content["ablation"].keys() == study.MEANS.keys()
    printed = f"{regularised['train_accuracy'][0]:.1f} ±0.0"
    assert printed in finished.stdout
    for name in ("baseline", "regularised"):
        folder = output / "seed-0" / name
        assert (folder / "learning_curves.svg").read_text().startswith("<svg")
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        assert any("train_accuracy_start" in entry for entry in history)
        assert (folder / "model.safetensors").exists()

    # The command that it prints for own data is one that `qa-flax run` accepts.
    printed = re.search(r"first two lines\):\n +qa-flax run ((?:.*\\\n)*.*)\n", finished.stdout)
    assert printed, finished.stdout
    _, data, training, _ = parse_arguments(shlex.split(printed[1].replace("\\\n", " ")))
    assert Path(data.train_file).exists()
    assert training.layerwise_lr_decay == study.REGULARISED["layerwise_lr_decay"]
