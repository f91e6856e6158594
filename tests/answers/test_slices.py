"""Groups of questions, in several languages and with odd values."""

import datasets
import numpy as np
import pytest

from qa_flax.answers.report.data import EvaluationData
from qa_flax.answers.report.questions import make_questions
from qa_flax.answers.report.reading import Answered
from qa_flax.answers.report.slices import count_words, make_slices, question_words
from qa_flax.data.examples import load_examples


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["Who is it?", "WHOSE is it?", "In what year?"], ["who, whose, whom", "what"]),
        (["How much is it?", "how many?", "How is it?"], ["how many, how much", "how"]),
        (["Name the river.", "What? Who?"], ["what", "other"]),
        (["野马队的总经理是谁?", "有多少名?", "什么时候?", "谁?"], ["谁", "什么时候", "多少"]),
        (["誰ですか", "いつですか", "いつ"], ["いつ", "誰"]),
        (["Wer war er?", "Was ist das?", "Wer?"], ["wer", "was"]),
        (["ما الذي تم؟", "من هو؟", "ما هو؟"], ["ما", "من"]),
        (["¿Quién es?", "quién"], ["quién"]),
        (["?", ""], ["other"]),
    ],
)
def test_questions_are_grouped_by_their_question_word(texts, labels):
    assert question_words(texts).labels == labels


def test_many_first_words_leave_the_rare_ones_to_one_group():
    texts = [f"wort{i} eins" for i in range(30)] + ["oft zwei"] * 3
    slice_ = question_words(texts)
    assert slice_.labels[0] == "oft"
    assert slice_.labels[-1] == "other"
    counts = np.bincount(slice_.group)
    assert (counts[0], counts[-1], counts.sum(), len(counts)) == (3, 20, 33, 12)


def test_words_are_counted_in_scripts_without_spaces():
    assert [count_words(text) for text in ("", "a b", "東京タワー", "the 東京 x")] == [0, 2, 5, 4]


def make(rows, windows=None):
    examples = load_examples(rows)
    records = {id_: {"answers": [], "windows": windows} for id_ in examples["id"]}
    record = {"settings": {}, "questions": records} if windows is not None else None
    answered = Answered("x", "eval", dict.fromkeys(examples["id"], "a"), record=record)
    assert isinstance(examples, datasets.Dataset)
    return make_questions(answered, EvaluationData("x", examples, len(examples), []), None)


def test_lengths_positions_and_titles():
    context = "a " * 60 + "the end"
    rows = [
        {"id": "0", "question": "q", "context": context, "title": "T", "answers": answers}
        for answers in (
            {"text": ["a"], "answer_start": [0]},
            {"text": ["the end"], "answer_start": [120]},
            {"text": [], "answer_start": []},
        )
    ]
    for n, row in enumerate(rows):
        row["id"] = str(n)
    rows[2]["context"] = "a few words"
    slices = {s.name: s for s in make_slices(make(rows, windows=3))}

    def by_question(name):
        return [slices[name].labels[g] for g in slices[name].group]

    assert by_question("Answer length") == ["1", "2", "none"]
    assert by_question("Context length") == ["51–100", "51–100", "1–50"]  # noqa: RUF001
    assert by_question("Answer position") == ["first fifth", "last fifth", "none"]
    assert by_question("Windows") == ["3"] * 3
    assert by_question("Title") == ["T"] * 3
    for slice_ in slices.values():
        assert slice_.members().sum(axis=1).tolist() == [1, 1, 1]


def test_what_the_data_does_not_have_is_no_slice():
    names = [
        s.name for s in make_slices(make([{"question": "q", "context": "a b", "answers": []}]))
    ]
    assert names == ["Question word", "Context length"]
