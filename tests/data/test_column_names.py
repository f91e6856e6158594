"""Columns are known under the names that people give them; chosen names win."""

import datasets
import pytest

from qa_flax import load_examples
from qa_flax.data.column_names import canonical_name
from qa_flax.data.readers import read
from qa_flax.data.rejected import ExampleError

ANSWERS = {"text": ["mill"], "answer_start": [4]}
ROW = {"id": "1", "context": "The mill.", "question": "What?", "answers": ANSWERS}


@pytest.mark.parametrize(
    ("name", "column"),
    [
        *(("Id", "id"), (" Context ", "context"), ("QUESTION", "question"), ("Answers", "answers")),
        *(("answers.text", "answer_text"), ("answers.answer_start", "answer_start")),
        *(("answers_text", "answer_text"), ("Answer Start", "answer_start"), ("answer", "answers")),
        *(("answerText", "answer_text"), ("isImpossible", "is_impossible"), ("ANSWER", "answers")),
        *(("Unnamed: 0", None), ("passage", None), ("", None), (0, None), ("question_id", None)),
    ],
)
def test_names_are_recognized_whatever_their_case_and_separators(name, column):
    assert canonical_name(name) == column


def renamed(**names):
    return {names.get(key, key): value for key, value in ROW.items()}


@pytest.mark.parametrize("kind", ["list", "dataset", "json", "parquet"])
def test_chosen_columns_are_read_from_every_source(tmp_path, kind):
    row = renamed(context="passage", question="frage", answers="lösung", id="key")
    rows = [row | {"id": "other", "context": "no", "answers": None}]
    dataset = datasets.Dataset.from_list([row | {"id": "other", "context": "no"}])
    source = {"list": rows, "dataset": dataset}.get(kind, tmp_path / f"rows.{kind}")
    if kind == "json":
        dataset.to_json(source)
    if kind == "parquet":
        dataset.to_parquet(source)
    examples = load_examples(
        source,
        context_column="passage",
        question_column="frage",
        answer_column="lösung",
        id_column="key",
    )
    assert examples[0] == ROW | {"title": ""}


def test_question_and_context_may_be_swapped_by_name():
    row = ROW | {"context": "What?", "question": "The mill."}
    examples = load_examples([row], question_column="context", context_column="question")
    assert examples[0] == ROW | {"title": ""}


def test_the_answer_column_may_hold_the_text_beside_its_start():
    row = renamed(answers="label") | {"label": "mill", "answer_start": 4}
    assert load_examples([row], answer_column="label")[0]["answers"] == ANSWERS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question_column": "frage"}, "no column 'frage', which question_column names. Columns f"),
        ({"answer_column": "answer"}, "Columns found: id, context.* Did you mean 'answers'"),
        ({"id_column": ""}, "id_column must be the name of a column, got ''"),
        ({"id_column": "context", "context_column": "context"}, "each needs a column of its own"),
    ],
)
def test_wrong_names_are_refused_with_the_columns_found(arguments, message):
    for source in ([ROW], datasets.Dataset.from_list([ROW])):
        with pytest.raises(ExampleError, match=message):
            load_examples(source, **arguments)


def test_a_chosen_column_may_be_optional():
    columns = {"answers": "label"}
    rows = read([ROW], columns=columns, optional_columns=("answers",))[1]
    assert "answers" not in rows[0], "the column that is called answers is not the chosen one"
    with pytest.raises(ExampleError, match="no column 'label', which answer_column names"):
        read([ROW], columns=columns)
