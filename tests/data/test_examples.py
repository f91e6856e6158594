"""Every format gives the same rows; one error message lists all invalid rows with their ids."""

import csv
import json
import logging

import datasets
import oracle
import pytest
from conftest import shared_path

from qa_flax.data.examples import FEATURES, ExampleError, load_examples

CONTEXT = 'Köln lies on the Rhine.\r\nIts café 👩‍👩‍👧 serves "tea", and the Rhine is wide.'
ROWS = [
    {
        "id": "one",
        "title": "Köln",
        "context": CONTEXT,
        "question": "Which river, exactly?",
        "answers": {"text": ["Rhine", "the Rhine"], "answer_start": [17, 13]},
    },
    {
        "id": "2",
        "title": "",
        "context": CONTEXT,
        "question": "NA",
        "answers": {"text": ['"tea"'], "answer_start": [CONTEXT.index('"tea"')]},
    },
    {
        "id": "a/b\n3",
        "title": "",
        "context": "NULL",
        "question": "Who?",
        "answers": {"text": [], "answer_start": []},
    },
]


def row(**changes):
    """Return the first row with some values changed; the value `...` removes the column."""
    return {key: value for key, value in (ROWS[0] | changes).items() if value is not ...}


def nested(rows):
    """Return the rows as nested SQuAD v2.0 JSON, with one article for each row."""
    articles = []
    for r in rows:
        answers = r["answers"]
        pairs = zip(answers["text"], answers["answer_start"], strict=True)
        qa = {
            "id": r["id"],
            "question": r["question"],
            "answers": [{"text": text, "answer_start": start} for text, start in pairs],
            "is_impossible": not answers["text"],
            "plausible_answers": [{"text": "NULL", "answer_start": 0}],
        }
        articles.append(
            {
                "title": r["title"],
                "paragraphs": [
                    {"context": r["context"], "qas": [qa]},
                    {"context": "no questions", "qas": []},
                ],
            }
        )
    return {"version": "v2.0", "data": articles}


def write_json(content):
    return lambda path: path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path):
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS)
    path.write_bytes(lines.encode())


def write_csv(format_answers, encoding="utf-8", delimiter=","):
    def write(path):
        with path.open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(r | {"answers": format_answers(r["answers"])} for r in ROWS)

    return write


def write_answer_columns(path):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "context", "question", "answer_text", "answer_start"])
        for r in ROWS:
            text, start = r["answers"]["text"], r["answers"]["answer_start"]
            cells = (json.dumps(text), json.dumps(start)) if len(text) != 1 else (text[0], start[0])
            writer.writerow([r["id"], r["title"], r["context"], r["question"], *cells])


def pairs(answers):
    columns = zip(answers["text"], answers["answer_start"], strict=True)
    return [{"text": text, "answer_start": start} for text, start in columns]


FORMATS = {
    "nested.json": write_json(nested(ROWS)),
    "flat.json": write_json({"version": "1", "data": ROWS}),
    "list.json": write_json(ROWS),
    "pairs.json": write_json([r | {"answers": pairs(r["answers"])} for r in ROWS]),
    "no_suffix": write_json({"data": ROWS}),
    "lines.jsonl": write_lines,
    "lines.json": write_lines,
    "json_answers.csv": write_csv(json.dumps),
    "python_answers.csv": write_csv(repr),
    "byte_order_mark.csv": write_csv(json.dumps, "utf-8-sig"),
    "tabs.tsv": write_csv(json.dumps, delimiter="\t"),
    "answer_columns.csv": write_answer_columns,
    "pandas.csv": lambda path: datasets.Dataset.from_list(ROWS).to_csv(path),
    "table.parquet": lambda path: datasets.Dataset.from_list(ROWS).to_parquet(path),
    "parquet_by_content": lambda path: datasets.Dataset.from_list(ROWS).to_parquet(path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    FORMATS[name](path)
    examples = load_examples(path)
    assert examples.to_list() == ROWS
    assert examples.features == FEATURES
    assert load_examples(str(path)).to_list() == ROWS


@pytest.mark.parametrize("name", ["xquad/xquad.zh.json", "squadshifts/reddit_v1.0.json"])
def test_official_files_give_the_rows_of_the_reference(name):
    path = shared_path("data", name)
    assert load_examples(path).to_list() == oracle.nested_to_rows(path)


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "bom.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8-sig")
    assert load_examples(path).to_list() == ROWS


def test_json_lines_with_one_line_is_one_row(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n")
    assert load_examples(path).to_list() == ROWS[:1]


def test_data_sets_and_lists_give_the_same_rows():
    data = datasets.Dataset.from_list([r | {"score": 0.5} for r in ROWS])
    assert load_examples(data).to_list() == ROWS
    assert load_examples(data.select([2, 0])).to_list() == [ROWS[2], ROWS[0]]
    assert load_examples(ROWS).to_list() == ROWS
    splits = datasets.DatasetDict({"train": data, "validation": data.select([1])})
    assert load_examples(splits, split="validation").to_list() == ROWS[1:2]
    with pytest.raises(ExampleError, match="several splits; choose one of 'train', 'validation'"):
        load_examples(splits)
    with pytest.raises(ExampleError, match="no split 'test'; choose one of 'train'"):
        load_examples(splits, split="test")


def test_a_folder_is_read_by_the_datasets_library(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "train.parquet")
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(folder / "test.parquet")
    cache = str(tmp_path / "cache")
    assert load_examples(str(folder), split="test", cache_dir=cache).to_list() == ROWS[:1]
    with pytest.raises(ExampleError, match=r"folder.*splits; choose one of 'train', 'test'"):
        load_examples(folder, cache_dir=cache)


def test_a_hub_id_that_cannot_be_loaded_raises():
    with pytest.raises(ExampleError, match=r"some/where: could not be loaded.*local file"):
        load_examples("some/where", split="train")


def test_ids_are_strings_and_stable():
    rows = [
        row(id=7),
        row(id="07"),
        row(id=7.5),
        row(id=8.0),
        row(id=...),
        row(id=None),
        row(id=""),
    ]
    ids = ["7", "07", "7.5", "8", "row-4", "row-5", "row-6"]
    assert load_examples(rows)["id"][:] == ids
    assert load_examples(rows)["id"][:] == ids


@pytest.mark.parametrize("cell", ["", "  ", "null", "None", float("nan"), None])
def test_an_empty_answers_cell_means_no_answers(cell):
    assert load_examples([row(answers=cell)])["answers"][0] == {"text": [], "answer_start": []}


def test_answers_are_required_only_for_training():
    no_answers = {"text": [], "answer_start": []}
    without_column = [row(answers=...)]
    assert load_examples(without_column)["answers"][:] == [no_answers]
    with pytest.raises(ExampleError, match=r"missing column answers.*question.*Required"):
        load_examples(without_column, require_answers=True)
    rows = [row(), row(id="x", answers=None), row(id="y", answers=no_answers)]
    assert load_examples(rows)["answers"][1:] == [no_answers, no_answers]
    assert load_examples(rows, require_answers=True)["answers"][1] == no_answers
    rows[1] = row(id="x", answers=...)
    with pytest.raises(ExampleError, match=r'no answers .*: 1 \(ids "x"\)'):
        load_examples(rows, require_answers=True)


# --- Invalid input -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["absent.json", "./absent", "/no/such/file", "a/b/c", ""])
def test_missing_files_raise_file_not_found(name):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_examples(name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            b'{"data": [\n{"id": 1,}]}',
            r"a\.json: not valid JSON: .* at line 2, column \d+",
        ),
        ("a.json", b"", r"a.json is empty \(0 bytes\)"),
        ("a.json", b"hello", r"not valid JSON: Expecting value at line 1.*begins with \"hello\""),
        ("a.jsonl", b'{"id": 1}\n{"id" 2}\n', r"line 2: not valid JSON: .* at column 7"),
        ("a.json", b"\xff\xfe\x00", r"begins with the mark of UTF-16-LE, but byte 0 is invalid"),
        (
            "a.json",
            b'{"rows": [], "version": 1}',
            'needs the key "data"; keys found: rows, version',
        ),
        ("a.json", b"[1, 2]", "must be a list of JSON objects"),
        ("a.json", b'{"data": "text"}', "must be a list of JSON objects"),
        ("a.json", b"[]", "contains no examples"),
        ("a.json", b'{"data": [{"title": "t", "paragraphs": []}]}', "contains no examples"),
        ("a.csv", b"context,question,answers\n", "contains no examples"),
        ("a.csv", b'context,question\n"open,b\n', "not valid CSV: unexpected end of data"),
        ("a.parquet", b"PAR1 and then nothing", "not a valid Parquet file"),
        (
            "a.json",
            b'{"data": [{"paragraphs": [{"context": "c", "questions": []}]}]}',
            r'data\[0\]\.paragraphs\[0\] needs the key "qas" with a list of objects; '
            r"keys found: context, questions",
        ),
        ("a.csv", b"text\nhello\n", "missing columns question, context. Columns found: text"),
        ("a.json", b'[{"question": "q", "text": "c"}]', "column context. Columns found: question"),
    ],
)
def test_invalid_files_raise_with_their_path(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ExampleError, match=message) as error:
        load_examples(path)
    assert str(path) in str(error.value)


def test_missing_columns_of_a_data_set_raise():
    data = datasets.Dataset.from_dict({"premise": ["a"], "label": [1]})
    with pytest.raises(ExampleError, match=r"question, context\. Columns found: premise, label"):
        load_examples(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": ""}, "context is empty or only white space"),
        ({"question": " \n\u00a0"}, "question is empty or only white space"),
        ({"context": None}, "context is missing"),
        ({"question": ...}, "question is missing"),
        ({"question": float("nan")}, "question is missing"),
        ({"question": 7}, "question must be a string, got int"),
        ({"context": "half \ud83d"}, "an unpaired surrogate"),
        ({"answers": {"text": ["a", "b"], "answer_start": [0]}}, "differ in length"),
        ({"answers": {"text": ["Rhine"], "answer_start": ["x"]}}, "not a 32-bit integer"),
        ({"answers": {"text": ["Rhine"], "answer_start": [1.5]}}, "not a 32-bit integer"),
        ({"answers": {"text": ["Rhine"], "answer_start": [2**40]}}, "not a 32-bit integer"),
        ({"answers": {"text": [3], "answer_start": [0]}}, "is a number that is not in the context"),
        ({"answers": {"text": [["a"]], "answer_start": [0]}}, "text is not a valid string"),
        ({"answers": {"text": ["\ud83d"], "answer_start": [0]}}, "text is not a valid string"),
        ({"answers": True}, "answers is neither"),
        ({"answers": {"start": 3}}, "answers is neither"),
        ({"answers": [[["Rhine"]]]}, "answers is neither"),
        ({"answers": "Rhine"}, "without answer_start occurs several times in its context"),
        ({"answers": ["Danube"]}, "without answer_start does not occur in its context"),
        ({"answers": {"text": ["Rhine"]}}, "without answer_start occurs several times"),
        ({"id": "valid"}, "id was already used by an earlier row"),
    ],
)
def test_errors_contain_the_ids_of_invalid_rows(changes, message):
    rows = [row(id="valid"), row(**({"id": "bad"} | changes)), row(id="also valid")]
    with pytest.raises(ExampleError) as error:
        load_examples(rows)
    id_ = "valid" if "id" in changes else "bad"
    assert f'{message}: 1 (ids "{id_}")' in str(error.value) or (
        message in str(error.value) and f'1 (ids "{id_}")' in str(error.value)
    )
    assert "also valid" not in str(error.value)


def test_one_error_lists_all_problems(tmp_path):
    rows = [row(id=f"e{n}", context="") for n in range(8)] + [
        row(id=f"q{n}", question=None) for n in (1, 2)
    ]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([*rows, row(), row()]))
    with pytest.raises(ExampleError) as error:
        load_examples(path)
    assert str(error.value) == (
        f"{path}: some of the 12 examples cannot be used:\n"
        '  - context is empty or only white space: 8 (ids "e0", "e1", "e2", "e3", "e4", ...)\n'
        '  - question is missing: 2 (ids "q1", "q2")\n'
        '  - id was already used by an earlier row: 1 (ids "one")\n'
        'Correct or remove these rows, or leave them out with bad_rows="skip".'
    )


def test_unsupported_sources_raise():
    with pytest.raises(ExampleError, match="cannot read examples from int"):
        load_examples(7)
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    with pytest.raises(ExampleError, match=r"IterableDataset.*datasets\.Dataset"):
        load_examples(stream)
    with pytest.raises(ValueError, match=r"misaligned must be one of .*'keep'.*got 'move'"):
        load_examples(ROWS, misaligned="move")


# --- Misaligned answers --------------------------------------------------------------------------


def misaligned_rows():
    second = CONTEXT.rindex("Rhine")
    starts = {"before": 12, "near the second": second + 3, "behind the end": 4000}
    rows = [row(id=k, answers={"text": ["Rhine"], "answer_start": [s]}) for k, s in starts.items()]
    rows.append(row(id="nowhere", answers={"text": ["Danube"], "answer_start": [3]}))
    return [*rows, row(id="aligned")]


@pytest.mark.parametrize("misaligned", ["drop", "keep"])
def test_drop_and_keep_leave_misaligned_answers_and_warn_once(caplog, misaligned):
    with caplog.at_level(logging.WARNING):
        examples = load_examples(misaligned_rows(), misaligned=misaligned)
    assert [a["answer_start"][0] for a in examples["answers"]][:4] == [
        r["answers"]["answer_start"][0] for r in misaligned_rows()[:4]
    ]
    assert len(caplog.records) == 1
    ids = '4 (ids "before", "near the second", "behind the end", "nowhere")'
    assert f"not at their answer_start: 4 of 6 (67%); rows: {ids}. " in caplog.text
    assert 'misaligned="repair" moves' in caplog.text
    if misaligned == "drop":
        assert 'The text of 1 (ids "nowhere") occurs nowhere' in caplog.text


def test_repair_moves_misaligned_answers_to_the_nearest_occurrence(caplog):
    with caplog.at_level(logging.WARNING):
        examples = load_examples(misaligned_rows(), misaligned="repair")
    second = CONTEXT.rindex("Rhine")
    assert [a["answer_start"][0] for a in examples["answers"]] == [17, second, second, 3, 17]
    assert (
        "moved to where their text occurs in the context: 3 of 6 (50%); rows: "
        '3 (ids "before", "near the second", "behind the end")' in caplog.text
    )
    assert '1 (ids "nowhere"). Their text occurs nowhere' in caplog.text
    negative = row(answers={"text": ["Rhine"], "answer_start": [-1]})
    assert load_examples([negative], misaligned="repair")["answers"][0]["answer_start"] == [17]


def test_refuse_raises_for_misaligned_answers():
    with pytest.raises(ExampleError, match=r"not in the context at its answer_start: 4 \(ids") as e:
        load_examples(misaligned_rows(), misaligned="refuse")
    assert 'misaligned="repair" moves answers' in str(e.value)
    assert load_examples(ROWS, misaligned="refuse").to_list() == ROWS


def test_a_context_in_csv_may_exceed_the_default_field_limit(tmp_path):
    """Python's csv reader accepts fields of up to 128 KiB by default."""
    limit = csv.field_size_limit()
    path = tmp_path / "long.csv"
    long = row(context="word " * 60_000, answers={"text": ["word"], "answer_start": [5]})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(long))
        writer.writeheader()
        writer.writerow(long | {"answers": json.dumps(long["answers"])})
    assert load_examples(path).to_list() == [long]
    assert csv.field_size_limit() == limit
