"""Documents from files, folders and data: each context once, odd files named, any order."""

import gzip
import json

import datasets
import pandas as pd
import pytest

from qa_flax.data.documents import Documents, as_sources
from qa_flax.data.rejected import ExampleError


def read(*sources, **settings):
    documents = Documents(list(sources), **settings)
    return [(d.title, d.text) for d in documents], documents


def row(context, **other):
    return {"question": "Q?", "context": context, "answers": []} | other


@pytest.fixture
def folder(tmp_path):
    """Every kind of file that is read, and some that are not."""
    root = tmp_path / "docs"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / "a.txt").write_text("Text A.\n\n\n\nMore.", "utf-8")
    (root / "sub" / "b.md").write_text("# B\n*text*", "utf-8")
    (root / "sub" / "c.txt.gz").write_bytes(gzip.compress("Text Ü.".encode("utf-16")))
    (root / "sub" / "deep" / "d.jsonl").write_text(
        "".join(json.dumps(row(text)) + "\n" for text in ("D1", "D2", "D1"))
    )
    (root / "e.csv").write_text("context,other\nE1,x\nE1,y\nE2,z\n")
    paragraphs = [{"context": "F1", "qas": []}, {"context": "F2"}, {"context": "F1"}]
    (root / "f.json").write_text(json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}))
    datasets.Dataset.from_list([row("G")]).to_parquet(root / "g.parquet")
    (root / ".hidden" / "h.txt").write_text("hidden")
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / "LICENSE").write_text("no suffix")
    return root


EXPECTED = [
    ("a", "Text A.\n\nMore."),
    ("e", "E1"),
    ("e", "E2"),
    ("T", "F1"),
    ("T", "F2"),
    ("g", "G"),
    ("sub/b", "B\n\ntext"),
    ("sub/c", "Text Ü."),
    ("sub/deep/d", "D1"),
    ("sub/deep/d", "D2"),
]


def test_a_folder_is_read_with_everything_below_it(folder, caplog):
    found, documents = read(str(folder))
    assert found == EXPECTED
    assert documents.count == len(EXPECTED)
    assert documents.others == {".png": 1, "no suffix": 1}
    assert not documents.problems
    assert not caplog.records


def test_the_order_of_the_sources_does_not_matter_and_each_file_is_read_once(folder):
    names = [str(folder / name) for name in ("a.txt", "sub", "e.csv", "sub/b.md")]
    assert read(*names)[0] == read(*names[::-1])[0]
    assert len(read(*names)[0]) == 7
    titles = [title for title, _ in read(str(folder / "sub"), folder / "sub" / "b.md")[0]]
    assert titles.count("b") == 1
    (folder / "link.txt").symlink_to(folder / "a.txt")
    assert read(str(folder))[0] == EXPECTED


def test_data_may_be_objects(folder):
    rows = [row("R1", title=""), row("R2", title="own"), row("R1", title="")]
    expected = [("", "R1"), ("own", "R2")]
    frame = pd.DataFrame({"context": ["R1", "R2"], "title": [None, "own"]})
    for source in (rows, datasets.Dataset.from_list([*rows[:2]]), frame, {"context": ["R1"]}):
        found, _ = read(*as_sources(source))
        assert found == expected[: len(found)]
    assert as_sources(["a.txt", "b.txt"]) == ["a.txt", "b.txt"]
    assert as_sources(rows) == [rows]
    assert len(as_sources([frame, "a.txt"])) == 2
    with pytest.raises(ValueError, match="docs is empty"):
        as_sources([])


def test_a_saved_data_set_is_read_as_one(tmp_path):
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    settings = {"context_column": "text"}
    found, _ = read(str(tmp_path / "saved"), split="test", **settings)
    assert found == [("saved", "test")]
    with pytest.raises(ExampleError, match="there are several splits; choose one of 'train'"):
        read(str(tmp_path / "saved"), **settings)


ODD = {
    "empty.txt": (b"", "is empty"),
    "blank.md": (b" \n\n", "is empty"),
    "code.md": (b"```\ncode\n```\n", "code.md has no text"),
    "latin.txt": ("Käse und Brötchen, für Gäste".encode("latin-1"), "is not UTF-8"),
    "binary.txt": (bytes(range(256)) * 4, "is no text"),
    "pdf.txt": (b"%PDF-1.4 ...", "is a PDF document"),
    "broken.json": (b'{"data": [', "not valid JSON"),
    "columns.csv": (b"text,label\na,b\n", "missing column context"),
    "header.csv": (b"context,question\n", "header.csv has no text"),
    "rows.jsonl": (b'{"context": "fine"}\n{"context": null}\nbroken\n', "2 of 3 rows have no text"),
    "clozes.json": (
        json.dumps([row("X", id="cloze-1")]).encode(),
        "its rows are clozes of an earlier call",
    ),
}


def test_odd_files_are_left_out_and_named_once(tmp_path, caplog):
    for name, (content, _) in ODD.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "one_line.txt").write_text("word " * 200_000)
    found, documents = read(str(tmp_path))
    assert [title for title, _ in found] == ["one_line", "rows"]
    assert len(documents.problems) == len(ODD)
    for name, (_, problem) in ODD.items():
        (line,) = [line for line in documents.problems if name in line]
        assert problem in line
    (record,) = caplog.records
    assert "11 sources had to be left out, in whole or in part" in record.getMessage()


def test_named_files_are_treated_as_those_of_a_folder(tmp_path, caplog):
    for name in ("empty.txt", "latin.txt"):
        (tmp_path / name).write_bytes(ODD[name][0])
    (tmp_path / "fine.txt").write_text("fine")
    found, _ = read(*sorted(map(str, tmp_path.iterdir())))
    assert found == [("fine", "fine")]
    assert "empty.txt" in caplog.text
    assert "latin.txt" in caplog.text
    with pytest.raises(ExampleError, match=r"no text could be read:\n  - .*empty.txt is empty"):
        read(str(tmp_path / "empty.txt"))


def test_what_is_not_there_stops_before_anything_is_read(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*notes\.txt"):
        read(str(tmp_path / "notes.txt"), str(tmp_path / "note.txt"))
    with pytest.raises(FileNotFoundError, match="For texts themselves pass rows"):
        read("A text of two lines.\nIt is no file.")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(ExampleError, match=r"there are no texts \(other files: 1 \.pdf\)"):
        read(str(tmp_path / "none"))


def test_a_text_file_that_holds_data_is_read_as_data(tmp_path):
    (tmp_path / "data.txt").write_text(json.dumps([row("inside")]))
    assert read(str(tmp_path / "data.txt"))[0] == [("data", "inside")]


def test_other_columns_and_excluded_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "A"}\n')
    (tmp_path / "b.txt").write_text("B")
    found, _ = read(str(tmp_path), context_column="body", excluded={(tmp_path / "b.txt").resolve()})
    assert found == [("a", "A")]


def test_a_choice_that_no_source_has_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("A")
    for settings in ({"split": "train"}, {"config_name": "x"}):
        with pytest.raises(ValueError, match="chooses a part of a data set, but all sources are"):
            read(str(tmp_path), **settings)
    with pytest.raises(ValueError, match='context_column="x" names a column, but all sources are'):
        read(str(tmp_path), context_column="x")
