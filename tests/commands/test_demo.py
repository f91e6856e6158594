"""The demo: its data, its encoder, and that it learns."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qa_flax.commands.demo import encoder_text as pretraining
from qa_flax.commands.demo.data import ENDINGS, RELATIONS, Story, make_stories, squad_json
from qa_flax.commands.demo.demo import ENCODER, WINDOWS
from qa_flax.commands.demo.make_encoder import make_tokenizer
from qa_flax.data.examples import load_examples
from qa_flax.models.model import AutoModelForQuestionAnswering

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stories() -> tuple[list[Story], list[Story]]:
    """The whole data of the default seed."""
    return make_stories(0)


def questions(stories: list[Story]):
    return [question for story in stories for question in story.questions]


# ---- data -------------------------------------------------------------------------------------


def test_training_and_heldout_stories_share_no_context_question_or_fact(stories):
    train, heldout = stories
    for part in (
        lambda story: {story.context},
        lambda story: {question.text for question in story.questions},
        lambda story: {fact.key for fact in story.facts},
        # Not even a question that was not asked, but that a fact would answer.
        lambda story: story.claims(),
    ):
        first, second = ({x for story in side for x in part(story)} for side in (train, heldout))
        assert first
        assert second
        assert first.isdisjoint(second)


def test_some_heldout_names_never_occur_in_training(stories):
    train, heldout = stories
    text = " ".join(story.context + " ".join(q.text for q in story.questions) for story in train)
    names = {name for story in heldout for name in story.names}
    new = {name for name in names if name not in text}
    assert len(new) > 100
    assert len(names - new) > 10  # and some do


def test_every_answer_stands_at_its_offset(stories):
    for side in stories:
        for story in side:
            for q in story.questions:
                if q.answer:
                    assert story.context[q.start : q.start + len(q.answer)] == q.answer
                else:
                    assert q.start == -1


def test_an_always_empty_model_stays_under_20(stories):
    for side in stories:
        asked = questions(side)
        assert 0.05 < sum(not q.answer for q in asked) / len(asked) < 0.18


def test_an_unanswerable_question_is_answered_by_no_fact_of_its_story(stories):
    for side in stories:
        for story in side:
            answered = set().union(*(fact.all_questions() for fact in story.facts))
            for q in story.questions:
                assert (q.text in answered) == bool(q.answer)


def test_a_question_has_one_answer_in_its_story(stories):
    for side in stories:
        for story in side:
            answers: dict[str, set[str]] = {}
            for fact in story.facts:
                for slot in fact.relation.questions:
                    for text in fact.questions(slot):
                        answers.setdefault(text, set()).add(fact.values[slot])
            assert all(len(found) == 1 for found in answers.values())


def test_stories_have_several_sentences_and_distractors(stories):
    for side in stories:
        assert all(story.context.count(". ") + 1 >= 3 for story in side)
        rivals = [len({f.relation.name for f in story.facts}) < len(story.facts) for story in side]
        assert sum(rivals) / len(rivals) > 0.7


def test_every_kind_of_question_is_asked_in_every_phrasing_on_both_sides(stories):
    forms = {form for r in RELATIONS for group in r.questions.values() for form in group}
    patterns = {form: re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(form))) for form in forms}
    assert len(forms) > 30
    for side in stories:
        texts = {q.text for q in questions(side)}
        unused = [f for f, p in patterns.items() if not any(p.fullmatch(text) for text in texts)]
        assert not unused


def test_training_and_heldout_stories_are_of_one_kind(stories):
    """Keeping them apart must not keep a relation or the long stories out of the held-out side."""
    shares = []
    for side in stories:
        told = Counter(fact.relation.name for story in side for fact in story.facts)
        shares.append({name: count / told.total() for name, count in told.items()})
        lengths = [len(story.facts) for story in side]
        assert sum(lengths) / len(lengths) == pytest.approx(4.5, abs=0.25)
    assert shares[0].keys() == shares[1].keys() == {relation.name for relation in RELATIONS}
    for name, share in shares[0].items():
        assert share == pytest.approx(1 / len(RELATIONS), abs=0.02)
        assert shares[1][name] == pytest.approx(share, abs=0.05)


def test_the_seed_decides_the_data(stories):
    first, again = (make_stories(3, train=40, heldout=10) for _ in range(2))
    assert first == again
    for one, two in zip(first, stories, strict=True):
        two = two[: len(one)]
        assert {s.context for s in one}.isdisjoint(s.context for s in two)
        share = {n for s in one for n in s.names} & {n for s in two for n in s.names}
        assert len(share) < 10


def test_the_data_are_squad_v2_that_load_examples_accepts(stories, tmp_path):
    _, heldout = stories
    path = tmp_path / "heldout.json"
    path.write_text(json.dumps(squad_json(heldout, "heldout")))
    rows = load_examples(path, misaligned="refuse")
    asked = questions(heldout)
    assert [row["question"] for row in rows] == [q.text for q in asked]
    assert [row["answers"]["text"] for row in rows] == [
        [q.answer] if q.answer else [] for q in asked
    ]
    assert len(set(rows["id"])) == len(asked)


# ---- encoder ----------------------------------------------------------------------------------


def test_the_encoder_is_at_most_2_mb_and_has_no_span_head():
    assert sum(file.stat().st_size for file in ENCODER.iterdir()) <= 2_000_000
    first, second = (
        AutoModelForQuestionAnswering.from_pretrained(ENCODER, seed=seed) for seed in (0, 1)
    )
    heads = [model.head.outputs.kernel[...] for model in (first, second)]
    assert (heads[0] != heads[1]).any()  # made from the seed, so not stored
    assert (
        first.encoder.embeddings.word.embedding[...]
        == second.encoder.embeddings.word.embedding[...]
    ).all()


@pytest.mark.slow
def test_the_vocabulary_is_what_the_script_makes_of_its_seed():
    made = make_tokenizer(0).get_vocab()
    assert made == AutoTokenizer.from_pretrained(ENCODER).get_vocab()
    assert made != make_tokenizer(1).get_vocab()


def test_the_vocabulary_spells_every_story(stories):
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    texts = [s.context for side in stories for s in side]
    texts += [q.text for side in stories for q in questions(side)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    # Most stories fit in one window, and some do not.
    pairs = [(q.text, s.context) for s in stories[1] for q in s.questions]
    lengths = [len(tokenizer(*pair)["input_ids"]) for pair in pairs]
    whole = sum(length <= WINDOWS["max_seq_length"] for length in lengths) / len(lengths)
    assert 0.8 < whole < 1


def test_the_encoder_was_pretrained_on_other_sentences_and_names(stories):
    told = {form for relation in RELATIONS for form in relation.sentences}
    asked = {form for r in RELATIONS for group in r.questions.values() for form in group}
    patterns = [
        p for t in (pretraining.TOLD, pretraining.ASKED, pretraining.ASKED_BACK) for p in t.values()
    ]
    theirs = {_skeleton(pattern) for group in patterns for pattern in group}
    assert theirs.isdisjoint(map(_skeleton, told | asked))

    rng = random.Random(0)
    exercises = [pretraining.make_exercise(rng, 2, 6) for _ in range(2000)]
    seen = {_plain(part) for e in exercises for part in (e.question, *e.context.split(" . "))}
    ours = {_plain(part) for side in stories for s in side for part in s.context.split(". ")}
    assert seen.isdisjoint(ours | {_plain(q.text) for side in stories for q in questions(side)})

    # No name of the demo can be one of the pre-training's: it could not end so.
    assert {end for group in ENDINGS.values() for end in group} <= {*pretraining.RESERVED_ENDINGS}
    words = {word for e in exercises for word in e.context.split()}
    names = {
        word.lower() for side in stories for s in side for name in s.names for word in name.split()
    }
    assert all(name.endswith(pretraining.RESERVED_ENDINGS) for name in names)
    invented = words - set(pretraining.WORDS)
    assert len(invented) > 1000
    assert names.isdisjoint(invented)
    assert not any(word.endswith(pretraining.RESERVED_ENDINGS) for word in invented)


def _skeleton(pattern: str) -> str:
    return _plain(re.sub(r"\{\w+\}", "x", pattern))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_an_exercise_marks_its_answer_inside_its_sentence():
    rng = random.Random(1)
    exercises = [pretraining.make_exercise(rng, 2, 6) for _ in range(500)]
    assert 5 < sum(e.answer == (0, 0) for e in exercises) < 75
    for e in exercises:
        first, last = e.answer
        if last == 0:
            continue
        assert e.sentence[0] <= first <= last <= e.sentence[1]
        assert " " not in (e.context[first:last][:1], e.context[first:last][-1:])
        assert e.context[last : last + 1].strip() == ""


# ---- the whole --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 7])
def test_the_demo_learns(seed, tmp_path):
    """As a user runs it: the command, in its own process, on this machine's cores."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}

    def qa_flax(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "qa_flax", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    done = qa_flax("demo", "--seed", str(seed), "--output_dir", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stderr
    before, after = re.findall(r"(?:before|after) fine-tuning +([\d.]+) +([\d.]+)", done.stdout)
    assert float(before[0]) < 20, done.stdout
    assert float(after[0]) >= 80, done.stdout
    assert float(after[1]) >= float(after[0])
    assert (
        done.stdout.count("(no answer)") + done.stdout.count("right") + done.stdout.count("wrong")
        >= 5
    )
    for name in (
        "train.json",
        "heldout.json",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
    ):
        assert (tmp_path / "demo" / name).exists()

    # The command it ends with finds the same answers.
    again = re.search(r"To evaluate it again:\n +qa-flax ((?:.*\\\n)*.*)\n", done.stdout)
    assert again, done.stdout
    done = qa_flax(*shlex.split(again[1].replace("\\\n", " ")))
    assert done.returncode == 0, done.stderr
    files = "demo/heldout_predictions.json", "demo/again/eval_predictions.json"
    one, other = (json.loads((tmp_path / name).read_text()) for name in files)
    assert one == other
