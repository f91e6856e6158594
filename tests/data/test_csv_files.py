"""Tables: every dialect gives the rows; lines that are no rows are refused with their numbers."""

import csv

import pandas as pd
import pytest

from qa_flax import load_examples
from qa_flax.data.readers import read
from qa_flax.data.rejected import ExampleError

CONTEXT = 'The "old" mill, which Orla Fenn built; it\tcost 38.\nIt burned | fell.'
ROWS = [
    {
        "id": f"{n}",
        "context": CONTEXT,
        "question": question,
        "answer_text": answer,
        "answer_start": CONTEXT.index(answer),
    }
    for n, (question, answer) in enumerate([("Who?", "Orla Fenn"), ("What cost?", '"old" mill')])
]
HEADER = "id,question,context,answer_text,answer_start\n"
GOOD = "1,Who?,By Orla Fenn,Orla Fenn,3\n"


def with_gap():
    """As pandas has it: one row without an answer makes the starts floats."""
    return pd.DataFrame([*ROWS, {"id": "2", "context": CONTEXT, "question": "NA"}])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"index": False},
        {"sep": ";"},
        {"sep": "\t"},
        {"sep": "|"},
        {"quoting": csv.QUOTE_ALL},
        {"quoting": csv.QUOTE_NONE, "escapechar": "\\"},
        {"doublequote": False, "escapechar": "\\"},
        {"na_rep": "NaN"},
        {"na_rep": "<NA>"},
        {"na_rep": "None"},
        {"na_rep": "NULL"},
        {"encoding": "utf-16"},
        {"compression": "gzip"},
        {"lineterminator": "\r\n"},
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
def test_what_pandas_writes_is_read(tmp_path, options, suffix):
    path = tmp_path / f"table{suffix}"
    with_gap().to_csv(path, **options)
    rows = read(path)[1]
    assert [row["answer_start"] for row in rows] == [r["answer_start"] for r in ROWS] + [None]
    assert [row["answer_text"] for row in rows] == [r["answer_text"] for r in ROWS] + [None]
    assert [row["question"] for row in rows] == ["Who?", "What cost?", "NA"]
    expected = CONTEXT.replace("\n", options.get("lineterminator", "\n"))
    assert {row["context"] for row in rows} == {expected} or {r["context"] for r in rows} == {
        CONTEXT
    }


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("Id, Context, Question\n1, a b, q\n", ("1", "a b", "q")),
        ('Id, Context, Question\n1, "a, b", q\n', ("1", "a, b", "q")),
        ("ID;CONTEXT;QUESTION\n1;a, b;q\n", ("1", "a, b", "q")),
        ("sep=|\nid|question|context\n1|q|a, b\n", ("1", "a, b", "q")),
        ('id\tquestion\tcontext\n1\tq\t"a" b\n', ("1", '"a" b', "q")),  # quotes as text
        ("\n\nid,question,context\n\n1,q,c\n,,\n", ("1", "c", "q")),
        ("id,question,context,,\n1,q,c,,\n", ("1", "c", "q")),
        ("id,question,context\r1,q,c\r", ("1", "c", "q")),
        ('id,question,context\n1,q,"two\nlines, here"\n', ("1", "two\nlines, here", "q")),
        ("id,question,context\n1,q,C:\\new\\table\n", ("1", "C:\\new\\table", "q")),
        ('{"id": "1", "question": "q", "context": "c"}', ("1", "c", "q")),  # JSON in a .csv
    ],
)
def test_tables_of_people_are_read(tmp_path, text, row):
    for name in ("table.csv", "table.json"):
        (tmp_path / name).write_bytes(text.encode())
        if name == "table.json" and text.startswith(("sep", "\n")):
            continue
        (found,) = read(tmp_path / name)[1]
        assert (found["id"], found["context"], found["question"]) == row


@pytest.mark.parametrize(
    ("lines", "problems"),
    [
        ("2,Who?,The mill, which burned,Orla,4\n", {3: "6 fields, but the header has 5"}),
        ("2,Who?,The mill\n", {3: "3 fields, but the header has 5"}),
        ('2,Who?,"The mill,Orla,4\n' + GOOD, {3: "quotation mark is not closed"}),
        ('2,Who?,"The" mill,Orla,4\n', {3: "expected after"}),
        # The stray quotation mark takes in the rows up to the next one.
        (f'2,Who?,"The mill,Orla,4\n{GOOD}3,Who?,A mill",Orla,4\n', {3: "closed in another row"}),
        (f'2,Who?,"The mill,Orla,4\n3,Who?,A mill",Orla,4\n{GOOD}', {3: "closed in another row"}),
        ("2,a,b,c,d,e\n3,a\n4,b\n", {3: "6 fields", 4: "2 fields", 5: "2 fields"}),
    ],
)
def test_lines_that_are_no_rows_are_refused_with_their_numbers(tmp_path, lines, problems):
    path = tmp_path / "table.csv"
    path.write_text(HEADER + GOOD + lines + GOOD)
    with pytest.raises(ExampleError) as error:
        load_examples(path)
    for line, problem in problems.items():
        assert f"line {line}: " in str(error.value)
        assert problem in str(error.value)
    _, rows, rejected = read(path, bad_rows="skip")
    assert [row.line for row in rejected] == list(problems)
    good = [line for line in (GOOD + lines + GOOD).splitlines() if line.count(",") == 4]
    assert len(rows) == len([line for line in good if ',"' not in line])
    assert rows[0] == rows[-1]
    if '"' in lines:  # in a table with tabs, a quotation mark may be text
        return
    tabs = tmp_path / "table.tsv"
    tabs.write_text((HEADER + GOOD + lines + GOOD).replace(", ", ",").replace(",", "\t"))
    with pytest.raises(ExampleError, match=f"line {next(iter(problems))}: "):
        read(tabs)


def test_a_message_lists_a_few_of_many_lines(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "2,a\n" * 40 + GOOD)
    with pytest.raises(
        ExampleError, match=r"(?s)40 of 41 rows.*line 6: .*and 35 more \(lines 7, 8"
    ):
        load_examples(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id,question,context,context", 'the column "context" occurs 2 times'),
        ("id,question,context,Context ", 'the columns "context", "Context " all mean context'),
        ("id,question,answer_start,context,Answer Start", "all mean answer_start"),
        ("1,Who?,The mill,none", "missing columns question, context. Columns found: 1, Who"),
    ],
)
def test_headers_that_are_not_clear_are_refused(tmp_path, header, message):
    path = tmp_path / "table.csv"
    path.write_text(header + "\n" + ",".join("abcde"[: header.count(",") + 1]) + "\n")
    with pytest.raises(ExampleError, match=message):
        read(path)


def test_rows_inside_a_quoted_context_are_text(tmp_path):
    context = "Names, in order:\nOrla, Fenn, 3, miller, retired\nand, so, on, it, went"
    path = tmp_path / "table.csv"
    frame = pd.DataFrame([{**ROWS[0], "context": context}])
    frame.to_csv(path, index=False)
    assert read(path)[1][0]["context"] == context
