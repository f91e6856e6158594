"""JSON of every form gives the same rows; a key that is given twice is reported."""

import json
import logging

import pandas as pd
import pytest

from qa_flax.data.readers import read
from qa_flax.data.rejected import ExampleError

ROWS = [
    {"id": f"q{n}", "context": f"Mill {n}.", "question": "What?", "answers": answers}
    for n, answers in enumerate([{"text": ["Mill"], "answer_start": [0]}, None, []])
]
PARAGRAPHS = [
    {"context": row["context"], "qas": [{key: row[key] for key in ("id", "question", "answers")}]}
    for row in ROWS
]
FRAME = pd.DataFrame(ROWS)
ARTICLE = {"title": "t", "paragraphs": PARAGRAPHS}

FORMS = {
    **{o: json.loads(FRAME.to_json(orient=o)) for o in ("columns", "index", "split", "table")},
    "records": json.loads(FRAME.to_json(orient="records")),
    "encoded twice": FRAME.to_json(orient="records"),
    "by id": {row["id"]: {k: v for k, v in row.items() if k != "id"} for row in ROWS},
    "lists": FRAME.to_dict("list"),
    "paragraphs": PARAGRAPHS,
    "article": ARTICLE,
    "one article": {"data": ARTICLE},
    "articles": [ARTICLE],
    "nested": {"version": "1", "data": [{"title": "t", "paragraphs": [p]} for p in PARAGRAPHS]},
    "two files": [{"data": [ARTICLE | {"paragraphs": [p]}]} for p in PARAGRAPHS],
    "other names": [{k.title(): v for k, v in row.items()} for row in ROWS],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_rows(tmp_path, form):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(FORMS[form], indent=1))
    for source in (path, FORMS[form]):
        if isinstance(source, str):
            continue
        rows = read(source)[1]
        assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    path = path.rename(tmp_path / "data.jsonl")
    assert len(read(path)[1]) == 3


def test_paragraphs_in_lines_are_read(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(p) + "\r\n" for p in PARAGRAPHS))
    assert [row["id"] for row in read(path)[1]] == ["q0", "q1", "q2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FRAME.to_json(orient="values"), 'they are lists.*orient="records"'),
        ('{"train": [{"question": "q"}], "dev": []}', '"train" seem to hold rows'),
        ('{"context": ["a", "b"], "question": ["q"]}', "differ in length: context 2, question 1"),
        ('{"context": {"0": "a"}, "question": {"1": "q"}}', "other row labels"),
        ('{"columns": ["question", "context"], "data": [["q"]]}', r"data\[0\] has 1 values for 2"),
        ('{"columns": ["question", "question", "context"], "data": []}', "occurs 2 times"),
        ("{'data': [{'question': 'q'}]}", r"Python's str\(\); write it with json.dump"),
        ('{"data": [{"question": "q", "con', "ends too early"),
        ('[{"question": "q"} {"question": "r"}]', "Correct the file there"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"question": "q", "context": ' + "9" * 5000 + "}]", "cannot parse JSON"),
        ('{"data": [], "data": []}', 'has the key "data" twice'),
        ('{"a": {"question": "q"}, "a": {"question": "q"}}', '"a" occurs twice'),
    ],
)
def test_other_json_is_refused_with_what_fits(tmp_path, content, message):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(ExampleError, match=message) as error:
        read(path)
    assert "Parquet" not in str(error.value)


GOOD = '{"id": "good", "question": "q", "context": "c"}'


@pytest.mark.parametrize(
    "row",
    [
        '{"id": "a", "id": "b", "question": "q", "context": "c"}',
        '{"id": "a", "question": "q", "context": "c", "context": "d"}',
        '{"id": "a", "question": "q", "context": "c", "answers": {"text": ["c"], "text": [],'
        ' "answer_start": [0]}}',
        '{"context": "c", "qas": [{"id": "a", "question": "q", "question": "r"}]}',
        '{"paragraphs": [{"context": "c", "context": "d", "qas": []}]}',
        '{"paragraphs": [{"context": "c", "qas": [{"id": "a", "question": "q", "answers": [{'
        '"text": "c", "answer_start": 0, "answer_start": 1}]}]}]}',
        '{"context": "c", "qas": {}}',
        '{"paragraphs": "none"}',
        '["a"]',
        "5",
        "null",
    ],
)
def test_parts_that_are_no_rows_are_refused_or_left_out(tmp_path, row):
    for name, text in (("a.json", f"[{GOOD}, {row}]"), ("a.jsonl", f"{GOOD}\n{row}\n")):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ExampleError, match="1 of 2 rows cannot be read"):
            read(path)
        _, rows, rejected = read(path, bad_rows="skip")
        assert [row["id"] for row in rows] == ["good"]
        assert len(rejected) == 1
        assert rejected[0].line == (2 if name == "a.jsonl" else None)


def test_keys_that_are_not_read_may_be_given_twice_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.json"
    path.write_text(
        f'{{"version": 1, "version": 2, "data": [{GOOD[:-1]}, "x": {{"y": 1, "y": 2}}}}]}}'
    )
    with caplog.at_level(logging.WARNING):
        assert len(read(path)[1]) == 1
    assert '"version" (1), "y" (1)' in caplog.text


def test_lines_that_are_no_json_are_reported_together(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{GOOD[:-4]}\n\n{{\n{GOOD}\n")
    with pytest.raises(
        ExampleError, match=r"(?s)2 of 4 rows.*line 2: not valid.*line 4: not valid"
    ):
        read(path)
