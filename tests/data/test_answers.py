"""Answers in every layout that people write, what "no answer" means, what training leaves out."""

import functools
import json
import logging

import datasets
import numpy as np
import pytest
import tiny

from qa_flax import load_examples, prepare_train_features, prepare_validation_features
from qa_flax.data.examples import FEATURES, ExampleError

CONTEXT = "Ada Lovelace wrote a program in 1843. Orla Fenn built the mill; Ada paid for it."
ORLA = CONTEXT.index("Orla")
SETTINGS = {"max_seq_length": 120, "doc_stride": 16}
NONE = {"text": [], "answer_start": []}


def row(id_="a", answers=..., **changes):
    """Return a row; `answers` is left out if it is `...`."""
    result = {"id": id_, "title": "", "context": CONTEXT, "question": "Who?"} | changes
    return result if answers is ... else result | {"answers": answers}


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


# --- Layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"answers": {"text": ["Orla Fenn"], "answer_start": [ORLA]}},
        {"answers": {"text": "Orla Fenn", "answer_start": ORLA}},
        {"answers": [{"text": "Orla Fenn", "answer_start": float(ORLA)}]},
        {"answers": {"text": np.array(["Orla Fenn"]), "answer_start": np.array([ORLA])}},
        {"answers": [{"text": "Orla Fenn", "answer_start": f"{ORLA}.0"}, None]},
        {"answers": {"text": ["", "Orla Fenn"], "answer_start": [0, ORLA]}},
        {"answers": {"text": ["Orla Fenn"], "answer_start": None}},
        {"answers": {"text": ["Orla Fenn"]}},
        {"answers": "Orla Fenn"},
        {"answers": ["Orla Fenn"]},
        {"answers": '["Orla Fenn"]'},
        {"answers": "Orla Fenn", "answer_start": ORLA},
        {"answers": ["Orla Fenn"], "answer_start": [ORLA]},
        {"answer": "Orla Fenn"},
        {"answer_text": "Orla Fenn", "answer_start": np.int64(ORLA)},
        {"answer_text": "Orla Fenn", "answer_start": float("nan")},
        {"answer_text": "['Orla Fenn']", "answer_start": f"[{ORLA}]"},
    ],
)
def test_every_layout_of_an_answer_is_read(columns):
    answers = load_examples([row(**columns)], require_answers=True)[0]["answers"]
    assert answers == {"text": ["Orla Fenn"], "answer_start": [ORLA]}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (1843, "1843"),
        ({"text": [1843.0], "answer_start": [CONTEXT.index("1843")]}, "1843"),
        ([{"text": 1843}], "1843"),
    ],
)
def test_a_number_is_the_text_that_the_context_has(answers, expected):
    read = load_examples([row(answers=answers)])[0]["answers"]
    assert read == {"text": [expected], "answer_start": [CONTEXT.index(expected)]}
    with pytest.raises(ExampleError, match=r"a number that is not in the context: 1 \(ids"):
        load_examples([row(answers=1999)])


BLANKS = [
    {"text": [""], "answer_start": [0]},
    {"text": [" "], "answer_start": [3]},
    [{"text": "\n", "answer_start": 0}],
    [" "],
    {"text": ["", None], "answer_start": [0, 0]},
    {"text": [], "answer_start": [0]},
]
ABSENT = [None, float("nan"), "", " ", "null", [], {"text": [], "answer_start": []}, "[]", [None]]


@pytest.mark.parametrize("columns", [
    *({"answers": answers} for answers in BLANKS),
    {"answer_text": "", "answer_start": 0},
    {"answer_text": " ", "answer_start": "0"},
])  # fmt: skip
def test_a_blank_text_is_no_answer_and_reported_once(columns, caplog):
    rows = [row("x", {"text": ["Ada"], "answer_start": [0]}), row("b", **columns)]
    with caplog.at_level(logging.WARNING):
        examples = load_examples(rows, require_answers=True)
    assert examples[1]["answers"] == NONE
    assert messages(caplog) == [
        'the list of examples: blank answers count as no answer: 1 (ids "b")'
    ]


@pytest.mark.parametrize("columns", [
    *({"answers": answers} for answers in ABSENT),
    {"answer_text": None, "answer_start": None},
    {"answer_text": "", "answer_start": ""},
    {"answer_text": "<NA>", "answer_start": "NaN"},
])  # fmt: skip
def test_nothing_is_no_answer_and_needs_no_report(columns, caplog):
    with caplog.at_level(logging.WARNING):
        assert load_examples([row(**columns)], require_answers=True)[0]["answers"] == NONE
    assert not caplog.records


def test_plain_text_is_placed_only_where_it_occurs_once(caplog):
    rows = [row("once", "Orla Fenn"), row("word", "Ada"), row("nowhere", ["Danube"])]
    with pytest.raises(ExampleError) as error:
        load_examples(rows)
    assert 'occurs several times in its context: 1 (ids "word")' in str(error.value)
    assert 'does not occur in its context: 1 (ids "nowhere")' in str(error.value)
    load_examples(rows[:1])
    assert 'placed where their text occurs once: 1 (ids "once")' in caplog.text
    similar = load_examples([row("s", "orla  fenn")], misaligned="repair")[0]["answers"]
    assert similar == {"text": ["Orla Fenn"], "answer_start": [ORLA]}


# --- is_impossible -------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [True, "True", "true", 1, 1.0, "1", np.True_])
@pytest.mark.parametrize("false", [False, "False", "false", 0, "0"])
def test_a_contradiction_is_reported_and_the_answers_decide(true, false, caplog):
    some = {"text": ["Ada"], "answer_start": [0]}
    rows = [row("t", some, is_impossible=true), row("f", [], is_impossible=false)]
    rows += [row("ok", some, is_impossible=false), row("ok2", [], is_impossible=true)]
    rows += [row("silent", some, is_impossible=None), row("odd", some, is_impossible="perhaps")]
    with caplog.at_level(logging.WARNING):
        examples = load_examples(rows)
    assert [len(answers["text"]) for answers in examples["answers"]] == [1, 0, 1, 0, 1, 1]
    assert messages(caplog) == [
        "the list of examples: is_impossible contradicts the answers, and the answers decide: it "
        'is true, but there are answers: 1 (ids "t"); false, but there is no answer: 1 (ids "f")',
        "the list of examples: is_impossible is neither true nor false and is ignored: 1 (ids "
        '"odd")',
    ]


def test_is_impossible_of_nested_json_is_read(tmp_path, caplog):
    questions = [{"id": "n", "question": "Who?", "answers": [], "is_impossible": False}]
    questions += [{"id": "y", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}]
    content = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": questions}]}]}
    (tmp_path / "d.json").write_text(json.dumps(content))
    load_examples(tmp_path / "d.json")
    assert 'false, but there is no answer: 1 (ids "n")' in caplog.text


# --- Rows that are left out ----------------------------------------------------------------------


def test_bad_rows_are_skipped_with_their_reasons(tmp_path, caplog):
    some = {"text": ["Ada"], "answer_start": [0]}
    rows = [
        row("a", some),
        row("a", some),
        row("q", some, question=" "),
        row("c", some, context=None),
    ]
    rows += [row("m", {"text": ["Ada"], "answer_start": [5]}), row("s", {"text": ["Ada"]})]
    file = tmp_path / "rejected.jsonl"
    settings = {"bad_rows": "skip", "rejected_file": file, "misaligned": "repair"}
    examples = load_examples(rows, **settings)
    assert examples["id"][:] == ["a", "m"]
    rejected = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["id"], r["reasons"]) for r in rejected] == [
        ("a", ["id was already used by an earlier row"]),
        ("q", ["question is empty or only white space"]),
        ("c", ["context is missing"]),
        ("s", ["an answer without answer_start occurs several times in its context"]),
    ]
    assert rejected[1]["row"] == rows[2]
    assert "6 read = 1 used + 1 repaired + 4 rejected" in caplog.text
    with pytest.raises(ExampleError, match="none of the 1 examples can be used"):
        load_examples(rows[2:3], bad_rows="skip")
    with pytest.raises(ValueError, match="bad_rows must be one of"):
        load_examples(rows, bad_rows="ignore")


def test_the_id_of_a_skipped_row_is_free(tmp_path):
    rows = [row("a", "Danube"), row("a", "Orla Fenn")]
    assert load_examples(rows, bad_rows="skip")["answers"][0]["text"] == ["Orla Fenn"]


def test_lines_that_cannot_be_read_are_left_out_with_the_rows(tmp_path, caplog):
    lines = [json.dumps(row("a", "Orla Fenn")), "{broken", json.dumps(row("b", "Danube"))]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    file = tmp_path / "rejected.jsonl"
    load_examples(tmp_path / "d.jsonl", bad_rows="skip", rejected_file=file)
    assert "left out 2 of 3 rows:\n  - line 2: not valid JSON" in caplog.text
    assert [json.loads(line)["line"] for line in file.read_text().splitlines()] == [2, None]


# --- Labels --------------------------------------------------------------------------------------

CASES = [
    row("ok", {"text": ["Orla Fenn"], "answer_start": [ORLA]}),
    row("moved", {"text": ["Orla Fenn"], "answer_start": [3]}),
    row("minus", {"text": ["Orla Fenn"], "answer_start": [-1]}),
    row("nowhere", {"text": ["Danube"], "answer_start": [3]}),
    row("second", {"text": ["Danube", "Orla Fenn"], "answer_start": [3, ORLA]}),
    row("blank", {"text": [" "], "answer_start": [0]}),
    row("none", NONE),
]


def labels(features):
    """Return {id: (start, end)} of windows; the contexts of `CASES` fit in one window."""
    columns = (features[name] for name in ("example_id", "start_positions", "end_positions"))
    return {id_: (start, end) for id_, start, end in zip(*columns, strict=True)}


def sources():
    plain = datasets.Dataset.from_list(CASES)
    return {
        "list": CASES,
        "hub": plain.cast(FEATURES),
        "loaded": load_examples(CASES),
        "filtered": load_examples(CASES).filter(lambda _: True),
    }


@pytest.mark.parametrize("source", ["list", "hub", "loaded", "filtered"])
def test_training_uses_the_place_of_the_text_and_leaves_out_what_has_none(source):
    tokenizer = tiny.tokenizer()
    train = labels(prepare_train_features(sources()[source], tokenizer, **SETTINGS))
    span = train["ok"]
    assert span[0] < span[1]
    expected = dict.fromkeys(("ok", "moved", "minus", "second"), span)
    assert train == expected | dict.fromkeys(("blank", "none"), (0, 0))
    evaluation = labels(prepare_validation_features(sources()[source], tokenizer, **SETTINGS))
    assert min(evaluation.pop("nowhere")) > 120, "a label inside the window enters the loss"
    assert evaluation == train


def test_keep_labels_what_is_at_the_start_as_hugging_face_does():
    kept = load_examples(CASES, misaligned="keep")
    for examples in (kept, kept.select(range(7)), kept.add_column("x", [0] * 7)):
        train = labels(prepare_train_features(examples, tiny.tokenizer(), **SETTINGS))
        assert train["moved"] == train["nowhere"] != train["ok"]
        assert train["nowhere"][0] > 0
        assert train["minus"] == train["ok"]  # there is no start that could be kept
    settings = {"misaligned": "keep", **SETTINGS}
    assert labels(prepare_train_features(CASES, tiny.tokenizer(), **settings)) == train


def test_map_and_transforms_make_the_same_labels():
    plain = datasets.Dataset.from_list(CASES)
    settings = {"tokenizer": tiny.tokenizer(), **SETTINGS}
    expected = labels(prepare_train_features(CASES, **settings))
    for batch_size in (1, 3, 7):
        mapped = plain.map(
            prepare_train_features,
            batched=True,
            batch_size=batch_size,
            remove_columns=plain.column_names,
            fn_kwargs=settings,
        )
        found = labels(mapped)
        if "nowhere" in found:  # alone in its batch, of which something must remain
            assert min(found.pop("nowhere")) > 120
        assert found == expected
    lazy = plain.with_transform(functools.partial(prepare_train_features, **settings))
    assert lazy[0]["start_positions"] == expected["ok"][0]
    assert lazy[3]["start_positions"] > 120


def test_there_must_be_something_to_learn():
    for rows in ([CASES[3]], [CASES[3], CASES[6]]):
        with pytest.raises(ExampleError, match="there is nothing to train on"):
            prepare_train_features(rows, tiny.tokenizer(), **SETTINGS)
        prepare_validation_features(rows, tiny.tokenizer(), **SETTINGS)


def test_answers_that_no_window_contains_are_counted(caplog):
    long = ("word " * 70).strip()
    rows = [row("long", {"text": [long], "answer_start": [0]}, context=f"{long} end"), CASES[0]]
    windows = prepare_train_features(rows, tiny.tokenizer(), 40, 10)
    assert set(labels(windows)) == {"long", "ok"}
    assert "1 of 2 answers are longer than" in caplog.text
    assert 'ids "long". Raise max_seq_length or doc_stride.' in caplog.text
