"""Augmented examples: answers are right, results depend on seed, epoch and id, and nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import shared_path

from qa_flax import augment_examples, load_examples
from qa_flax.data.augment import DEFAULT_STRENGTHS, Augmenter, read_strengths
from qa_flax.data.rejected import ExampleError

STRONG = {"shuffle": 1.0, "distract": 1.0, "noise": 0.2, "question_dropout": 0.3}


def assert_right(before, after):
    """Ids are the same, and each row has the same answers, where it says."""
    assert after["id"][:] == before["id"][:]
    for old, new in zip(before, after, strict=True):
        assert new["answers"]["text"] == old["answers"]["text"]
        assert new["question"].strip()
        for text, start in zip(*new["answers"].values(), strict=True):
            assert new["context"][start : start + len(text)] == text


@pytest.mark.parametrize("kind", [*STRONG, "all"])
def test_answers_are_where_they_are_said_to_be(kind):
    examples = tiny.examples()
    strengths = STRONG if kind == "all" else {kind: STRONG[kind]}
    epochs = [augment_examples(examples, strengths, seed=1, epoch=epoch) for epoch in range(4)]
    for epoch in epochs:
        assert_right(examples, epoch)
    changed = [
        {name: epoch[name][:] != examples[name][:] for name in ("context", "question")}
        for epoch in epochs
    ]
    assert all(c["context"] == (kind != "question_dropout") for c in changed)
    assert all(c["question"] == (kind in ("question_dropout", "noise", "all")) for c in changed)
    assert len({str(epoch[:]) for epoch in epochs}) == 4


def shared_files():
    names = ["xquad/xquad.ar", "xquad/xquad.de", "xquad/xquad.en", "xquad/xquad.es"]
    names += ["xquad/xquad.zh", "squadshifts/reddit_v1.0", "squadshifts/amazon_reviews_v1.0"]
    return [Path("data") / f"{name}.json" for name in names]


@pytest.mark.parametrize("articles", [1, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", shared_files(), ids=lambda path: path.stem)
def test_answers_of_real_data_in_five_languages_are_right(file, articles):
    content = json.loads(shared_path(*file.parts).read_text())
    content["data"] = content["data"][:articles]
    for article in content["data"] if articles else ():
        article["paragraphs"] = article["paragraphs"][:6]
    examples = load_examples(content, misaligned="repair")
    for epoch, strengths in enumerate((STRONG, DEFAULT_STRENGTHS)):
        assert_right(examples, augment_examples(examples, strengths, seed=3, epoch=epoch))


def test_a_row_depends_on_seed_epoch_and_id_alone():
    examples = tiny.examples()
    expected = augment_examples(examples, STRONG, seed=1, epoch=2)
    assert augment_examples(examples, STRONG, seed=1, epoch=2)[:] == expected[:]
    order = np.random.default_rng(0).permutation(len(examples))
    shuffled = augment_examples(examples.select(order), STRONG, seed=1, epoch=2)
    assert shuffled[:] == expected.select(order)[:]
    assert augment_examples(examples, STRONG, seed=2, epoch=2)[:] != expected[:]
    alone = {name: value for name, value in STRONG.items() if name != "distract"}
    whole = augment_examples(examples, alone, seed=1)
    assert augment_examples(examples.select([3]), alone, seed=1)[0] == whole[3]


def test_rows_without_an_answer_have_none_and_no_sentence_about_their_own_title():
    rows = [
        {"id": "a", "title": "x", "context": "A one. A two.", "question": "Who?", "answers": []},
        {"id": "b", "title": "x", "context": "Same title here.", "question": "W?", "answers": []},
        {"id": "c", "title": "y", "context": "Other title here.", "question": "V?", "answers": []},
    ]
    inserted = set()
    augmenter = Augmenter(load_examples(rows), {"distract": 1.0}, None, 1)
    for epoch in range(20):
        after = augmenter.examples(epoch)
        assert after["answers"][:] == [{"text": [], "answer_start": []}] * 3
        inserted |= {title for title in ("Same", "Other") if title in after[0]["context"]}
    assert inserted == {"Other"}


def test_distractors_hold_neither_the_answer_nor_one_to_the_same_question():
    def row(id_, context, answer, question):
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
        return {"id": id_, "context": context, "question": question, "answers": answers}

    rows = [
        row("a", "The fee is 30 euros. Pay soon.", "30 euros", "What is the fee?"),
        row("b", "It costs 99 dollars here. A second one.", "99 dollars", " what is  the fee?"),
        row("c", "She has 30  EUROS left. A third one.", "She", "Who?"),
    ]
    seen = set()
    augmenter = Augmenter(load_examples(rows), {"distract": 1.0}, None, 1)
    for epoch in range(30):
        context = augmenter.examples(epoch)[0]["context"]
        seen |= {w for w in ("99", "EUROS", "second", "third") if w in context}
    assert seen == {"second", "third"}


def test_answers_elsewhere_are_moved_and_rows_without_their_answer_stay():
    rows = [
        {
            "id": "a",
            "context": "One is here. Two is there.",
            "question": "Q?",
            "answers": {"text": ["Two", "nowhere"], "answer_start": [3, 4]},
        },
        {
            "id": "b",
            "context": "One is here. Two is there.",
            "question": "Where is it?",
            "answers": {"text": ["nowhere"], "answer_start": [4]},
        },
    ]
    after = augment_examples(rows, "shuffle:1,question_dropout:1")
    assert after[0]["context"] == "Two is there. One is here."
    assert after[0]["answers"] == {"text": ["Two"], "answer_start": [0]}
    assert after[1] == load_examples(rows)[1]


def test_a_paraphrase_or_the_question_is_drawn():
    examples = tiny.examples()
    table = {"q0": ["By whom is it?"], "What is short?": ["And short?", "Short?"]}
    epochs = [augment_examples(examples, paraphrases=table, epoch=n)[:] for n in range(20)]
    questions = [{epoch["question"][row] for epoch in epochs} for row in (0, 10)]
    assert questions == [
        {examples[0]["question"], "By whom is it?"},
        {"What is short?", "And short?", "Short?"},
    ]
    assert all(epoch["context"] == examples["context"][:] for epoch in epochs)
    with pytest.raises(ExampleError, match="none of the 1 ids"):
        augment_examples(examples, paraphrases={"other": "x"})


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (None, {}),
        ("noise", {"noise": 0.02}),
        (" noise:0.5 , shuffle", {"shuffle": 0.5, "noise": 0.5}),
        (["noise:5e-2", "distract"], {"distract": 0.2, "noise": 0.05}),
        ({"noise": None, "shuffle": 1}, {"shuffle": 1.0, "noise": 0.02}),
    ],
)
def test_kinds_and_strengths_are_read(augment, expected):
    assert read_strengths(augment) == expected


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("nois", "'nois' is unknown; it must be one of shuffle, distract, noise"),
        ("noise,shuffle,noise:0.1", "noise is given twice"),
        ("noise:0", "strength of noise is '0'; it must be a number above 0 and at most 1"),
        ("noise:1.1", "strength of noise is '1.1'"),
        ("noise:-0.1", "strength of noise is '-0.1'"),
        ("noise:nan", "strength of noise is 'nan'"),
        ("noise:", "strength of noise is ''"),
        ("noise:1.2.3", "strength of noise is '1.2.3'"),
        ({"noise": True}, "strength of noise is True"),
        ("", "it names nothing"),
        (3, "it must be text such as"),
    ],
)
def test_wrong_kinds_and_strengths_are_named(augment, message):
    with pytest.raises(ValueError, match=message):
        read_strengths(augment)


def test_nothing_to_do_is_refused():
    with pytest.raises(ValueError, match="give at least one of shuffle"):
        augment_examples(tiny.examples())
    with pytest.raises(ValueError, match="epoch=-1: it must be a whole number of at least 0"):
        augment_examples(tiny.examples(), "noise", epoch=-1)
