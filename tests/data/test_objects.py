"""Tables and rows in memory give the same examples as a list of dicts."""

import io

import datasets
import numpy as np
import pandas as pd
import pytest

from qa_flax import load_examples
from qa_flax.data.readers import read
from qa_flax.data.rejected import ExampleError

ROWS = [
    {"id": f"{n}", "context": f"In {n} mills.", "question": "What?", "answers": answers}
    for n, answers in enumerate([{"text": ["mills"], "answer_start": [5]}, None])
]
FRAME = pd.DataFrame(ROWS)
FLAT = pd.DataFrame(
    [
        {"id": 7, "context": "In 1912.", "question": "q", "answer_text": 1912, "answer_start": 3},
        {"id": 8, "context": "NaN is it.", "question": "NaN", "answer_text": None},
    ]
)


@pytest.mark.parametrize(
    "source",
    [
        FRAME,
        FRAME.set_index("id"),
        FRAME.convert_dtypes(),
        FRAME.to_dict("list"),
        FRAME.to_dict(),
        {name: FRAME[name] for name in FRAME},
        {name: np.array(FRAME[name], object) for name in FRAME},
        tuple(ROWS),
        datasets.Dataset.from_list(ROWS),
        datasets.Dataset.from_list(ROWS).data.table,
        {"data": [{"paragraphs": [{"context": r["context"], "qas": [r]} for r in ROWS]}]},
    ],
    ids=lambda source: type(source).__name__,
)
def test_every_object_gives_the_rows(source):
    rows = read(source)[1]
    assert [row["id"] for row in rows] == ["0", "1"]
    assert [row["context"] for row in rows] == [row["context"] for row in ROWS]
    assert rows[0]["answers"] == ROWS[0]["answers"]


def test_generators_are_read_once():
    assert [row["id"] for row in read(row for row in ROWS)[1]] == ["0", "1"]
    assert load_examples(iter(ROWS)).num_rows == 2


def test_a_flattened_table_has_its_answers():
    for source in (
        datasets.Dataset.from_list(ROWS[:1]).flatten(),
        pd.json_normalize(ROWS[:1]),
        FRAME[:1].assign(answers=[{k: np.array(v) for k, v in ROWS[0]["answers"].items()}]),
    ):
        assert load_examples(source)[0]["answers"] == ROWS[0]["answers"]


def test_numbers_and_gaps_of_pandas_are_what_they_were():
    for frame in (FLAT, FLAT.convert_dtypes(), FLAT.astype({"id": float})):
        examples = load_examples(frame)
        assert examples["id"][:] == ["7", "8"]
        assert examples["answers"][0] == {"text": ["1912"], "answer_start": [3]}
        assert examples["answers"][1] == {"text": [], "answer_start": []}
        assert examples["question"][:] == ["q", "NaN"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["a.json"], "item 0 is a str, but every example is a dict"),
        ([ROWS[0], 5], "item 1 is a int"),
        (FRAME["context"], "cannot read examples from Series"),
        (np.zeros(3), "cannot read examples from ndarray"),
        (None, "cannot read examples from NoneType"),
        (b"a.json", "cannot read examples from bytes"),
        (io.StringIO("{}"), "path of the file instead of an open file"),
        (lambda: ROWS, "Call it"),
        (pd.concat([FRAME, FRAME[["context"]]], axis=1), '"context" occurs 2 times'),
        ({"context": ["a"], "question": ["b", "c"]}, "differ in length"),
    ],
)
def test_other_objects_are_named(source, message):
    with pytest.raises(ExampleError, match=message):
        read(source)
