"""Text in every Unicode encoding and compression is read; what is no data is named."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile

import pytest

from qa_flax.data.readers import read
from qa_flax.data.rejected import ExampleError

ROWS = [
    {
        "id": "1",
        "context": "Die Mühle — 粉挽き場 — brannte 👩‍👧.",
        "question": "Où était-ce?",
        "answers": [],
    },
    {"id": "2", "context": "一三四 一", "question": "一?", "answers": []},
]
JSON = json.dumps({"data": ROWS}, ensure_ascii=False)
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
CSV = "id,question,context\n" + "".join(
    f"{row['id']},{row['question']},{row['context']}\n" for row in ROWS
)


def contents(rows):
    return [(row["id"], row["context"], row["question"]) for row in rows]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("order", ["", "-le", "-be"])
def test_unicode_is_read_with_and_without_a_mark(tmp_path, encoding, order):
    if encoding.startswith("utf-8") and order:
        return
    for name, text in (("a.json", JSON), ("a.jsonl", LINES), ("a.csv", CSV)):
        (tmp_path / name).write_bytes(text.encode(encoding + order))
        assert contents(read(tmp_path / name)[1]) == contents(ROWS)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ""])
def test_compressed_files_are_recognized_by_content(tmp_path, compress, suffix):
    for name, text in (("a.json", JSON), ("a.jsonl", LINES), ("a.csv", CSV)):
        path = tmp_path / (name + suffix)
        path.write_bytes(compress(text.encode()))
        assert contents(read(path)[1]) == contents(ROWS)
    path.write_bytes(compress(CSV.encode())[:-9])
    with pytest.raises(ExampleError, match="cut off or damaged"):
        read(path)


def archive(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name in names:
            zipped.writestr(name, JSON)
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        packed.addfile(tarfile.TarInfo("a.json"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b" \n\t", r"is empty \(only white space\)"),
        ("Où est le café?".encode("latin-1"), r"not UTF-8 .*Latin-1.*iconv -f WINDOWS-1252"),
        ("a — café".encode("cp1252"), r"byte 0x97 in line 1.*cp1252.*reads \"a — café\""),
        ("Мельница сгорела".encode("cp1251"), "not UTF-8.*Windows-1251"),
        ("風車が燃えた".encode("shift-jis"), "not UTF-8.*Shift-JIS"),
        (JSON.encode() + b"\xff", "UTF-8 with 1 invalid char"),
        ("ü".encode()[:1], "cut off"),
        (bytes(range(256)), "neither text nor Parquet"),
        (archive("a.json"), r"zip archive; unpack it .*a\.json"),
        (archive("xl/workbook.xml"), "an Excel workbook; save it as CSV UTF-8"),
        (archive("word/document.xml"), "a Word document"),
        (archive("data.pkl/data.pkl", "x/data.pkl"), "arrays"),
        (b"PK\x03\x04 and so on", "a damaged zip archive"),
        (tar(), "a tar archive; unpack it"),
        (gzip.compress(tar(), mtime=0), "a tar archive; unpack it"),
        (pickle.dumps(ROWS), "Python pickle.*never loaded"),
        (b"<!DOCTYPE html>\n<html>", "an HTML page.*raw file"),
        (b"\n<HTML><head>", "an HTML page.*raw file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "Git LFS pointer.*lfs pull",
        ),
        (b"https://example.org/train.json\n", "only the address https://example.org/train.json"),
        (b"404: Not Found", 'the error message of a server .*"404: Not Found"'),
        (b'{"error":"Repository not found"}', "the error message of a server"),
        (b"SQLite format 3\0", "SQLite database"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\x28\xb5\x2f\xfd..", "unzstd"),
    ],
)
def test_what_is_no_data_is_named_with_the_next_step(tmp_path, content, message):
    for name in ("train.json", "train.csv", "train.parquet"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ExampleError, match=message) as error:
            read(tmp_path / name)
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://huggingface.co/datasets/a/squad", "give its id: a/squad"),
        ("hf.co/datasets/a/squad/", "give its id: a/squad"),
        ("https://github.com/a/b/blob/main/t.json", "curl -LO https://github.com/a/b/raw/main/t"),
        ("https://example.org/train.json", "Download the file"),
        ("ftp://example.org/train.json", "Download the file"),
        ("www.example.org/train.json", "Download the file"),
    ],
)
def test_addresses_on_the_web_are_named(address, message):
    with pytest.raises(ExampleError, match=message):
        read(address)


def test_a_missing_file_names_the_most_similar_one(tmp_path):
    (tmp_path / "train-v1.1.json").write_text(JSON)
    with pytest.raises(FileNotFoundError, match=r"no such file in .*mean .*/train-v1\.1\.json"):
        read(tmp_path / "train-v1.json")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read(tmp_path / "none" / "train.json.gz")
