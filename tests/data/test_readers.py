"""Damaged files: never another error than one with a message, and never a row that was not written.

`QA_FLAX_FUZZ_SECONDS=600 pytest -m slow tests/data/test_readers.py -k mutated` runs the fuzzer for
ten minutes.
"""

import csv
import gzip
import io
import json
import os
import random
import time

import datasets
import pandas as pd
import pytest

from qa_flax.data.examples import ExampleError, read_examples
from qa_flax.data.readers import read

SECONDS = float(os.environ.get("QA_FLAX_FUZZ_SECONDS", "20"))
WORDS = [
    *("mill", "burned", "1912", "The", "river", "café", "NA", "None", "[1]", "{x}", "\u4e00", "a"),
    *('"tea"', "it's", "a,b", "a, b", "a;b", "a\tb", "x|y", "\n", "\r\n", "\\", "C:\\new", '\\"'),
    *("👩‍👧", "\u2028", "''", '""', ", ", "; "),
]


def text(rng, least=1):
    """Words with everything that separates or quotes cells; it does not end in white space."""
    return " ".join(rng.choices(WORDS, k=rng.randint(least, 9))) + rng.choice(["x", ".", "?"])


def make_row(rng, number):
    context = text(rng, 3)
    begin = rng.randrange(len(context))
    end = rng.randint(begin + 1, len(context))
    answer = context[begin:end].strip() or context[-1]
    return {
        "id": f"q{number}",
        "title": "t",
        "context": context,
        "question": text(rng),
        "answers": {"text": [answer], "answer_start": [context.index(answer)]},
    }


def flat(row):
    answer = {"answer_text": row["answers"]["text"][0]}
    answer |= {"answer_start": row["answers"]["answer_start"][0]}
    return {key: value for key, value in row.items() if key != "answers"} | answer


def as_nested(rows):
    articles = []
    for row in rows:
        answers = row["answers"]
        pairs = zip(answers["text"], answers["answer_start"], strict=True)
        qa = {"id": row["id"], "question": row["question"]}
        qa["answers"] = [{"text": t, "answer_start": s} for t, s in pairs]
        paragraph = {"context": row["context"], "qas": [qa]}
        articles.append({"title": row["title"], "paragraphs": [paragraph]})
    return articles


def as_csv(rows, **options):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_parquet(rows):
    file = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(file)
    return file.getvalue()


# ---- bytes ---------------------------------------------------------------------------------------


def seeds():
    """Valid files, by name."""
    rows = [make_row(random.Random(n), n) for n in range(6)]
    frame = pd.DataFrame([flat(row) for row in rows])
    nested = json.dumps({"version": "1", "data": as_nested(rows)}, ensure_ascii=False)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    texts = {
        "nested.json": nested,
        "flat.json": json.dumps(rows, indent=1),
        "columns.json": frame.to_json(),
        "split.json": frame.to_json(orient="split"),
        "index.json": frame.to_json(orient="index"),
        "lines.jsonl": lines,
        "table.csv": as_csv([flat(row) for row in rows]),
        "answers.csv": as_csv(rows),
        "semicolon.csv": as_csv([flat(row) for row in rows], delimiter=";"),
        "escaped.csv": frame.to_csv(escapechar="\\", doublequote=False),
        "tabs.tsv": as_csv([flat(row) for row in rows], delimiter="\t"),
    }
    files = {name: content.encode() for name, content in texts.items()}
    files |= {"wide.json": nested.encode("utf-16"), "wide.csv": texts["table.csv"].encode("utf-32")}
    files |= {"packed.jsonl.gz": gzip.compress(lines.encode())}
    return files | {"table.parquet": as_parquet(rows)}


PIECES = [
    *(b'"', b",", b"{", b"}", b"[", b"]", b"\n", b"\r", b"\t", b"\\", b"\0", b":", b";", b"'"),
    *(b"null", b"NaN", b'"id":1,', b"\xff", b"\xef\xbb\xbf", b"1e999", b"9" * 5000, b"[" * 3000),
]


def mutated(data, rng):
    """Flip, cut, insert or duplicate bytes, one to four times."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        begin = rng.randrange(len(data) + 1)
        end = min(len(data), begin + rng.choice([1, 2, 8, 60, 1000]))
        kind = rng.randrange(6)
        if kind == 0 and begin < len(data):
            data[begin] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[begin:end]
        elif kind == 2:
            data[begin:begin] = rng.choice(PIECES)
        elif kind == 3:
            data[begin:begin] = data[begin:end]
        elif kind == 4:
            data[begin:end] = bytes(rng.randrange(256) for _ in range(end - begin))
        elif rng.random() < 0.2:
            del data[begin:]
    return bytes(data)


@pytest.mark.slow
def test_mutated_files_are_read_or_refused_with_a_message(tmp_path):
    seed = int(os.environ.get("QA_FLAX_FUZZ_SEED", "0"))
    rng, files = random.Random(seed), seeds()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert len(read(tmp_path / name)[1]) == 6, name
    counts = dict.fromkeys(("read", "refused"), 0)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        name = rng.choice(list(files))
        path = tmp_path / name
        data = mutated(files[name], rng)
        path.write_bytes(data)
        begin, skip, is_named = time.monotonic(), rng.choice(["refuse", "skip"]), True
        try:
            loaded = read_examples(path, misaligned="keep", bad_rows=skip, warn=lambda *_: None)
            counts["read"] += 1
            assert all(loaded.examples["context"])
        except ExampleError as error:
            counts["refused"] += 1
            is_named = str(path) in str(error)
        except Exception:
            kept = os.environ.get("QA_FLAX_FUZZ_KEEP", str(tmp_path)) + f"/failed-{name}"
            with open(kept, "wb") as file:
                file.write(data)
            print(f"bad_rows={skip}, {kept}, after {counts}")
            raise
        assert is_named
        assert time.monotonic() - begin < 20, "too slow"
    print(counts)
    assert min(counts.values()) > 10


# ---- rows ----------------------------------------------------------------------------------------

PLAIN_WORDS = ["mill", "burned", "1912", "The", "river", "Orla", "Fenn", "NA", "built", "it"]


def damaged_row(rng, row):
    """A row with a value that is missing or of a wrong type, as an object."""
    bad = dict(row)
    value = rng.choice([None, "", " ", 7, 1.5, [], ["x"], {}, True, "\ud800x", float("nan")])
    column = rng.choice(["context", "question", "answers", "answers", "start", "text", "id"])
    if column in ("start", "text"):
        key = {"start": "answer_start", "text": "text"}[column]
        values = [value, [value], [value, 1], [-1], ["x"], [2**40], [True], ["1e3"]]
        bad["answers"] = bad["answers"] | {key: rng.choice(values)}
    elif column == "id" or rng.random() < 0.3:
        bad.pop(column)
    else:
        bad[column] = value
    return bad


def json_value(rng, row, is_bad):
    """A row as JSON text; some damaged ones have a key twice or are cut."""
    if not is_bad:
        return json.dumps(row)
    kind = rng.randrange(4)
    if kind == 0:
        key = rng.choice(["context", "question", "answers", "id"])
        return json.dumps(row)[:-1] + f', "{key}": "other"}}'
    if kind == 1:
        return json.dumps(row).replace('"text":', '"text": ["other"], "text":', 1)
    return json.dumps(damaged_row(rng, row))


def write_flat(rng, rows, bad):
    return ("[" + ",\n".join(json_value(rng, r, r["id"] in bad) for r in rows) + "]").encode()


def write_lines(rng, rows, bad):
    lines = []
    for row in rows:
        line = json_value(rng, row, row["id"] in bad)
        if row["id"] in bad and rng.random() < 0.3:
            line = rng.choice([line[: rng.randrange(1, len(line))], "[1]", "null", "x", "5"])
        lines.append(line)
    return "\n".join(lines).encode()


def write_nested(rng, rows, bad):
    articles = as_nested(rows)
    for row, article in zip(rows, articles, strict=True):
        if row["id"] in bad:
            paragraph = article["paragraphs"][0]
            change = rng.randrange(6)
            if change == 0:
                paragraph["context"] = rng.choice([None, "", 5, ["x"]])
            elif change == 1:
                paragraph["qas"] = rng.choice([None, "x", [5], {}])
            elif change == 2:
                article["paragraphs"] = rng.choice([None, [7], "x"])
            elif change == 3:
                paragraph["qas"][0].pop("question")
            elif change == 4:
                paragraph["qas"][0]["answers"][0].pop("text")
            else:
                paragraph["qas"][0] = damaged_row(rng, row) | {"context": paragraph["context"]}
    return json.dumps({"data": articles}).encode()


def write_table(delimiter):
    def write(rng, rows, bad):
        header = list(flat(rows[0]))
        lines = [delimiter.join(header)]
        for row in rows:
            cells = [str(cell) for cell in flat(row).values()]
            quoted = [as_csv([{"a": cell, "b": ""}], delimiter=delimiter) for cell in cells]
            quoted = [line.split("\r\n", 1)[1].removesuffix(f"{delimiter}\r\n") for line in quoted]
            if row["id"] in bad:
                damage_cells(rng, cells, quoted, delimiter)
            lines.append(delimiter.join(quoted))
        return "\n".join([*lines, ""]).encode()

    return write


def damage_cells(rng, cells, quoted, delimiter):
    number, kind = rng.randrange(len(cells)), rng.randrange(6)
    if kind == 0:
        quoted[number] = cells[number] = cells[number] + delimiter + "more"
    elif kind == 1:
        del quoted[number]
    elif kind == 2:
        quoted[number] = '"' + cells[number]
    elif kind == 3:
        quoted[number] = '"m"ill ' + cells[number] + '"'
    elif kind == 4:
        del quoted[rng.randrange(1, len(quoted)) :]
    else:
        quoted.insert(number, "more")


def write_parquet(rng, rows, bad):
    written = []
    for row in rows:
        row = dict(row)
        if row["id"] in bad:
            change = rng.randrange(4)
            if change == 0:
                row[rng.choice(["context", "question"])] = rng.choice([None, "", " \n"])
            elif change == 1:
                row["answers"] = rng.choice([None, {"text": None, "answer_start": [1]}])
            elif change == 2:
                row["answers"] = {"text": row["answers"]["text"] * 2, "answer_start": [0]}
            else:
                row["answers"] = {"text": [None], "answer_start": [None]}
        written.append(row)
    return as_parquet(written)


WRITERS = {
    "nested.json": write_nested,
    "flat.json": write_flat,
    "lines.jsonl": write_lines,
    "table.csv": write_table(","),
    "table.tsv": write_table("\t"),
    "table.parquet": write_parquet,
}


def check_file(path, rng, writer, monkeypatch):
    """Write 40 rows of which some are damaged, and compare what is read; return their number."""
    monkeypatch.setattr(f"{__name__}.WORDS", rng.choice([WORDS, PLAIN_WORDS]))
    rows = [make_row(rng, n) for n in range(40)]
    bad = {row["id"] for row in rows if rng.random() < 0.6}
    path.write_bytes(writer(rng, rows, bad))
    loaded = read_examples(path, misaligned="keep", bad_rows="skip", warn=lambda *_: None)
    intended = {row["id"]: row for row in rows}
    rejected = [str(row.row) for row in loaded.rejected]
    for example in loaded.examples:
        id_, answers = example["id"], example["answers"]
        if id_.startswith("row-"):
            row = next((r for r in rows if r["context"] == example["context"]), None)
        else:
            row = intended.get(id_)
        assert row is not None, example
        assert (example["context"], example["question"]) == (row["context"], row["question"])
        assert row["id"] in bad or answers == row["answers"]
    kept = set(loaded.examples["context"])
    for row in rows:
        if row["id"] not in bad and row["context"] not in kept:
            is_table = path.suffix in (".csv", ".tsv")  # beside a stray quotation mark
            assert is_table, row
            assert any(row["id"] in text for text in rejected), row
    if path.suffix not in (".csv", ".tsv", ".json"):
        assert len(loaded.examples) + len(loaded.rejected) == len(rows)
    return len(bad)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_no_damaged_row_is_taken_for_another(tmp_path, monkeypatch, name):
    """Together 24,000 damaged rows; every row that is accepted is one that was written."""
    rng, damaged = random.Random(name), 0
    while damaged < 4000:
        damaged += check_file(tmp_path / name, rng, WRITERS[name], monkeypatch)


def test_some_damaged_rows_of_each_format(tmp_path, monkeypatch):
    for name, writer in WRITERS.items():
        check_file(tmp_path / name, random.Random(1), writer, monkeypatch)
