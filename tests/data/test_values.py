"""Missing cells, numbers and lists that programs write as text, and texts that only look so."""

import pytest

from qa_flax import load_examples
from qa_flax.data.cells import number_as_text, parse_literal
from qa_flax.data.rejected import ExampleError
from qa_flax.data.values import cleaned

CONTEXT = "In 1912, 3.50 pounds: NA or None. [1] It was 1912.0, nan."


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ("1912.0", "3.0", ("1912", 3)),
        ("1912.0", CONTEXT.index("1912.0"), ("1912.0", CONTEXT.index("1912.0"))),
        (1912, 3, ("1912", 3)),
        (1912.0, 3.0, ("1912", 3)),
        (191, 3, (191, 3)),  # a part of the number there
        (3.5, CONTEXT.index("3.50"), (3.5, CONTEXT.index("3.50"))),  # written otherwise there
        (True, 3, (True, 3)),
        ("", "", (None, None)),
        (" ", "NaN", (None, None)),
        ("<NA>", "<NA>", (None, None)),
        ("NULL", None, (None, None)),
        ("NA", str(CONTEXT.index("NA")), ("NA", CONTEXT.index("NA"))),
        ("None", None, ("None", None)),  # the context has it
        ("[1]", CONTEXT.index("[1]"), ("[1]", CONTEXT.index("[1]"))),
        ("[]", "[]", ([], [])),
        ("['In' '1912']", "[0 3]", (["In", "1912"], [0, 3])),
        ("array(['In'], dtype=object)", "[np.int64(0)]", (["In"], [0])),
        ("[1912]", "[3]", (["1912"], [3])),
        ("x", "38,0", ("x", 38)),
        ("x", "38,000", ("x", "38,000")),  # thousands or a fraction
        ("x", "1e3", ("x", "1e3")),
        ("x", "-1", ("x", -1)),
    ],
)
def test_cells_of_answers(text, start, expected):
    for column in ("answer_text", "answers"):
        row = {"context": CONTEXT, column: text, "answer_start": start}
        result = cleaned(row, is_text=True)
        assert (result["answer_text"], result["answer_start"]) == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("{'text': ['In'], 'answer_start': [0]}", {"text": ["In"], "answer_start": [0]}),
        ('{"text": ["In"], "answer_start": [0.0]}', {"text": ["In"], "answer_start": [0]}),
        ("{'text': array(['In'], dtype=object), 'answer_start': array([0])}", None),
        ("{'text': [np.str_('In')], 'answer_start': [np.int32(0)]}", None),
        ("[{'text': 'In', 'answer_start': 0}]", [{"text": "In", "answer_start": 0}]),
        ({"text": [1912.0], "answer_start": [3.0]}, {"text": ["1912"], "answer_start": [3]}),
        ("NaN", ...),
        ("null", ...),
        (1912, "1912"),
        (19, 19),
        ("In", "In"),
        ('{"text": ["In"], "text": [], "answer_start": [0]}', "same"),  # a key is given twice
    ],
)
def test_the_column_answers(answers, expected):
    expected = {"text": ["In"], "answer_start": [0]} if expected is None else expected
    expected = answers if expected == "same" else expected
    result = cleaned({"context": CONTEXT, "answers": answers}, is_text=True)["answers"]
    assert result == (None if expected is ... else expected)


@pytest.mark.parametrize("word", ["NA", "NaN", "None", "null"])
def test_a_question_or_context_may_be_any_word(word):
    row = {"id": "1", "question": word, "context": word}
    assert cleaned(row, is_text=True) == row
    assert cleaned({"question": "<NA>"}, is_text=True) == {"question": None}
    assert cleaned({"id": "NaN", "title": ""}, is_text=True) == {"id": None, "title": None}


@pytest.mark.parametrize("start", [2**70, -(2**70), 10**6, -1])
def test_a_start_outside_the_context_is_no_place_of_a_number(start):
    assert number_as_text(1912, "It burned in 1912.", start) == 1912


@pytest.mark.parametrize("start", [2**70, -(2**70)])
def test_a_start_that_no_text_can_have_is_refused(start):
    row = {"id": "a", "question": "When?", "context": "It burned in 1912."}
    answers = {"text": [1912], "answer_start": [start]}
    with pytest.raises(ExampleError, match=r"\(ids \"a\"\)"):
        load_examples([row | {"answers": answers}])


ODD_CELLS = [
    *("{{}}", "{[]: 1}", "{{1: 2}: 3}", "[{{}}]", "[{[]}]", "{'text': {{}}}", "{None: 1}"),
    *(
        "array([{{}}])",
        "{'text': ['Ada'], 'answer_start': {[]: 1}}",
        "[-'a']",
        "{**{}}",
        "[f'{1}']",
    ),
    *("[" * 5000, "{'a':" * 3000, "array(" * 3000, "[" + "9" * 5000 + "]", "{1: 2, 1: 3}"),
]


@pytest.mark.parametrize("column", ["answers", "answer_text", "answer_start"])
def test_odd_texts_in_cells_are_texts_or_refused_together(column, tmp_path):
    lines = ["id,question,context,answer_text,answer_start", "good,Who?,Ada wrote it.,Ada,0"]
    lines[0] = lines[0].replace("answer_text", "answers" if column == "answers" else "answer_text")
    for number, cell in enumerate(ODD_CELLS):
        cells = {"text": '"' + cell + '"', "start": "0"}
        cells["start" if column == "answer_start" else "text"] = '"' + cell + '"'
        text, start = ("Ada", cells["start"]) if column == "answer_start" else cells.values()
        lines.append(f"odd-{number},Who?,Ada wrote it.,{text},{start}")
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ExampleError) as refused:
        load_examples(str(tmp_path / "rows.csv"), misaligned="refuse")
    assert "odd-0" in str(refused.value)
    assert len(str(refused.value)) < 2000
    kept = load_examples(str(tmp_path / "rows.csv"), bad_rows="skip", misaligned="drop")
    assert kept[0]["id"] == "good"
    assert kept[0]["answers"]["text"] == ["Ada"]


def test_a_long_list_of_numpy_takes_a_moment():
    texts = " ".join(["'a'"] * 20_000)
    assert parse_literal(f"[{texts}]") == ["a"] * 20_000
    assert parse_literal("['a'\n 'b' -1\n 'c' 'd']") == ["a", "b", -1, "c", "d"]
