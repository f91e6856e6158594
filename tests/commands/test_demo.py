"""The demo: its data, its pre-trained encoder, and its scores after fine-tuning."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from qa_flax.commands.demo import encoder_text as pretraining
from qa_flax.commands.demo import make_encoder
from qa_flax.commands.demo.data import ENDINGS, RELATIONS, Story, make_stories, squad_json
from qa_flax.commands.demo.demo import ENCODER, WINDOWS
from qa_flax.commands.demo.make_encoder import make_tokenizer
from qa_flax.data.examples import load_examples
from qa_flax.models.model import AutoModelForQuestionAnswering

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stories() -> tuple[list[Story], list[Story]]:
    """The training and the held-out stories of the default seed."""
    return make_stories(0)


def questions(stories: list[Story]):
    return [question for story in stories for question in story.questions]


# ---- data -------------------------------------------------------------------------------------


def test_training_and_heldout_stories_share_no_context_question_or_fact(stories):
    train, heldout = stories
    for items in (
        lambda story: {story.context},
        lambda story: {question.text for question in story.questions},
        lambda story: {fact.key for fact in story.facts},
        # Also the questions that were not asked, but that a fact answers.
        lambda story: story.possible_questions(),
    ):
        first, second = ({x for story in split for x in items(story)} for split in (train, heldout))
        assert first
        assert second
        assert first.isdisjoint(second)


def test_some_heldout_names_never_occur_in_training(stories):
    train, heldout = stories
    text = " ".join(story.context + " ".join(q.text for q in story.questions) for story in train)
    names = {name for story in heldout for name in story.names}
    new = {name for name in names if name not in text}
    assert len(new) > 100
    assert len(names - new) > 10  # some names do occur in training


def test_every_answer_is_at_its_offset_in_the_context(stories):
    for split in stories:
        for story in split:
            for q in story.questions:
                if q.answer:
                    assert story.context[q.start : q.start + len(q.answer)] == q.answer
                else:
                    assert q.start == -1


def test_less_than_a_fifth_of_the_questions_have_no_answer(stories):
    for split in stories:
        unanswerable = [not q.answer for q in questions(split)]
        assert 0.05 < sum(unanswerable) / len(unanswerable) < 0.18


def test_no_fact_of_the_story_answers_an_unanswerable_question(stories):
    for split in stories:
        for story in split:
            answered = set().union(*(fact.all_questions() for fact in story.facts))
            for q in story.questions:
                assert (q.text in answered) == bool(q.answer)


def test_a_question_has_only_one_answer_in_its_story(stories):
    for split in stories:
        for story in split:
            answers: dict[str, set[str]] = {}
            for fact in story.facts:
                for slot in fact.relation.questions:
                    for text in fact.questions(slot):
                        answers.setdefault(text, set()).add(fact.values[slot])
            assert all(len(texts) == 1 for texts in answers.values())


def test_stories_have_several_sentences_and_distractors(stories):
    for split in stories:
        assert all(story.context.count(". ") + 1 >= 3 for story in split)
        repeats_a_relation = [
            len({fact.relation.name for fact in story.facts}) < len(story.facts) for story in split
        ]
        assert sum(repeats_a_relation) / len(repeats_a_relation) > 0.7


def test_training_and_heldout_questions_use_every_pattern(stories):
    patterns = {pattern for r in RELATIONS for group in r.questions.values() for pattern in group}
    regexes = {p: re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(p))) for p in patterns}
    assert len(patterns) > 30
    for split in stories:
        texts = {q.text for q in questions(split)}
        unused = [p for p, r in regexes.items() if not any(r.fullmatch(text) for text in texts)]
        assert not unused


def test_training_and_heldout_stories_have_the_same_distribution(stories):
    """Rejecting held-out stories that overlap training must not skew relations or lengths."""
    shares = []
    for split in stories:
        relations = Counter(fact.relation.name for story in split for fact in story.facts)
        shares.append({name: count / relations.total() for name, count in relations.items()})
        lengths = [len(story.facts) for story in split]
        assert sum(lengths) / len(lengths) == pytest.approx(4.5, abs=0.25)
    assert shares[0].keys() == shares[1].keys() == {relation.name for relation in RELATIONS}
    for name, share in shares[0].items():
        assert share == pytest.approx(1 / len(RELATIONS), abs=0.02)
        assert shares[1][name] == pytest.approx(share, abs=0.05)


def test_the_data_depend_on_the_seed_alone(stories):
    first, second = (make_stories(3, train=40, heldout=10) for _ in range(2))
    assert first == second
    for split, other_seed in zip(first, stories, strict=True):
        other_seed = other_seed[: len(split)]
        assert {s.context for s in split}.isdisjoint(s.context for s in other_seed)
        shared = {n for s in split for n in s.names} & {n for s in other_seed for n in s.names}
        assert len(shared) < 10


def test_load_examples_reads_the_data_as_squad_v2(stories, tmp_path):
    _, heldout = stories
    path = tmp_path / "heldout.json"
    path.write_text(json.dumps(squad_json(heldout, "heldout")))
    rows = load_examples(path, misaligned="refuse")
    expected = questions(heldout)
    assert [row["question"] for row in rows] == [q.text for q in expected]
    assert [row["answers"]["text"] for row in rows] == [
        [q.answer] if q.answer else [] for q in expected
    ]
    assert len(set(rows["id"])) == len(expected)


# ---- encoder ----------------------------------------------------------------------------------


def test_the_encoder_is_at_most_2_mb_and_has_no_span_head():
    assert sum(file.stat().st_size for file in ENCODER.iterdir()) <= 2_000_000
    first, second = (
        AutoModelForQuestionAnswering.from_pretrained(ENCODER, seed=seed) for seed in (0, 1)
    )
    heads = [model.head.outputs.kernel[...] for model in (first, second)]
    assert (heads[0] != heads[1]).any()  # drawn from the seed, so not stored
    assert (
        first.encoder.embeddings.word.embedding[...]
        == second.encoder.embeddings.word.embedding[...]
    ).all()


@pytest.mark.slow
def test_a_short_pretraining_writes_an_encoder_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(make_encoder, "PHASES", (make_encoder.Phase(2, 2, 3, 56),))
    monkeypatch.setattr(make_encoder, "WARMUP", 1)
    monkeypatch.setattr(make_encoder, "BATCH", 8)
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    trained = make_encoder.pretrain(tokenizer, 0)
    make_encoder.save(trained, tokenizer, tmp_path)
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    kernels = [model.encoder.layers[0].up.kernel[...] for model in (trained, loaded)]
    np.testing.assert_allclose(*kernels, atol=1e-3)  # saved in float16


@pytest.mark.slow
def test_make_tokenizer_reproduces_the_stored_vocabulary():
    vocabulary = make_tokenizer(0).get_vocab()
    assert vocabulary == AutoTokenizer.from_pretrained(ENCODER).get_vocab()
    assert vocabulary != make_tokenizer(1).get_vocab()


def test_no_token_of_the_stories_is_unknown(stories):
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    texts = [s.context for split in stories for s in split]
    texts += [q.text for split in stories for q in questions(split)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    # Most stories fit in one window, but not all.
    pairs = [(q.text, s.context) for s in stories[1] for q in s.questions]
    lengths = [len(tokenizer(*pair)["input_ids"]) for pair in pairs]
    in_one_window = sum(length <= WINDOWS["max_seq_length"] for length in lengths) / len(lengths)
    assert 0.8 < in_one_window < 1


def test_the_pretraining_data_share_no_sentence_and_no_name_with_the_demo(stories):
    demo_patterns = {pattern for relation in RELATIONS for pattern in relation.sentences}
    demo_patterns |= {p for r in RELATIONS for group in r.questions.values() for p in group}
    tables = pretraining.STATEMENTS, pretraining.QUESTIONS, pretraining.REVERSE_QUESTIONS
    patterns = {p for table in tables for group in table.values() for p in group}
    assert {*map(_skeleton, patterns)}.isdisjoint(map(_skeleton, demo_patterns))

    rng = random.Random(0)
    exercises = [pretraining.make_exercise(rng, 2, 6) for _ in range(2000)]
    sentences = {_plain(text) for e in exercises for text in (e.question, *e.context.split(" . "))}
    demo_sentences = {
        _plain(text) for split in stories for s in split for text in s.context.split(". ")
    }
    demo_sentences |= {_plain(q.text) for split in stories for q in questions(split)}
    assert sentences.isdisjoint(demo_sentences)

    # No name of the pre-training data has the ending of a demo name.
    assert {end for group in ENDINGS.values() for end in group} <= {*pretraining.RESERVED_ENDINGS}
    words = {word for e in exercises for word in e.context.split()}
    names = {
        word.lower()
        for split in stories
        for s in split
        for name in s.names
        for word in name.split()
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


def test_the_answer_of_an_exercise_is_within_its_sentence():
    rng = random.Random(1)
    exercises = [pretraining.make_exercise(rng, 2, 6) for _ in range(500)]
    assert 5 < sum(e.answer == (0, 0) for e in exercises) < 75
    for e in exercises:
        start, end = e.answer
        if end == 0:
            continue
        assert e.sentence[0] <= start <= end <= e.sentence[1]
        assert " " not in (e.context[start:end][:1], e.context[start:end][-1:])
        assert e.context[end : end + 1].strip() == ""


# ---- the command ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 7])
def test_the_demo_reaches_80_em_and_prints_a_command_that_reproduces_it(seed, tmp_path):
    """Runs the command as a user does: in its own process, on this machine's cores."""
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

    demo = qa_flax("demo", "--seed", str(seed), "--output_dir", str(tmp_path / "demo"))
    assert demo.returncode == 0, demo.stderr
    before, after = re.findall(r"(?:before|after) fine-tuning +([\d.]+) +([\d.]+)", demo.stdout)
    if seed == 0:  # the README shows this run; other versions of JAX round differently
        shown = re.findall(
            r"(?:before|after) fine-tuning +([\d.]+) +([\d.]+)", (ROOT / "README.md").read_text()
        )
        for row, expected in zip((before, after), shown, strict=True):
            assert list(map(float, row)) == pytest.approx(list(map(float, expected)), abs=3)
    assert float(before[0]) < 20, demo.stdout
    assert float(after[0]) >= 80, demo.stdout
    assert float(after[1]) >= float(after[0])
    assert (
        demo.stdout.count("(no answer)") + demo.stdout.count("right") + demo.stdout.count("wrong")
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

    # The command that the demo prints at the end gives the same answers.
    command = re.search(r"To evaluate the model again:\n +qa-flax ((?:.*\\\n)*.*)\n", demo.stdout)
    assert command, demo.stdout
    evaluation = qa_flax(*shlex.split(command[1].replace("\\\n", " ")))
    assert evaluation.returncode == 0, evaluation.stderr
    files = "demo/heldout_predictions.json", "demo/evaluation/eval_predictions.json"
    first, second = (json.loads((tmp_path / name).read_text()) for name in files)
    assert first == second
