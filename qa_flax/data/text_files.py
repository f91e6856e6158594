"""Stage 1 of 7: the bytes of a file -> text, or what the file is instead of data (host, text)."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import shlex
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from qa_flax.data.rejected import ExampleError
from qa_flax.messages import first_few, quoted

FORMATS = "nested SQuAD JSON, flat JSON, JSONL, CSV/TSV and Parquet"
TABLE_MAGIC = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")
"""How Parquet, Feather and Arrow's stream format begin; `data/readers.py` reads them."""

_DECOMPRESSORS = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"BZh": ("bzip2", bz2.decompress),
    b"\xfd7zXZ\x00": ("xz", lzma.decompress),
}
_EXPORT = "write it in its own program as CSV (UTF-8), JSON or Parquet"
_UNPACK = "unpack it and give one of the files in it"
# How other kinds of files begin: what they are and the next step.
_OTHER_FILES = {
    b"\x28\xb5\x2f\xfd": ("a zstd archive", "unpack it with `unzstd`"),
    b"\x04\x22\x4d\x18": ("an lz4 archive", "unpack it with `unlz4`"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", _EXPORT),
    b"SQLite format 3": ("an SQLite database", _EXPORT),
    b"\x89HDF": ("an HDF5 file", _EXPORT),
    b"\x93NUMPY": ("a NumPy array", "write its rows as JSON Lines or Parquet"),
    b"%PDF": ("a PDF document", _EXPORT),
    b"\x89PNG": ("a picture", "check the path"),
    b"\xff\xd8\xff": ("a picture", "check the path"),
    b"\x7fELF": ("a program", "check the path"),
    b"ORC": ("an ORC file", _EXPORT),
    b"Obj\x01": ("an Avro file", _EXPORT),
    b"version https://git-lfs.github.com/spec/": (
        "a Git LFS pointer, not the data itself",
        "run `git lfs pull` in its repository, or download the file again from its web page",
    ),
    b"/annex/objects/": (
        "a git-annex pointer, not the data itself",
        "run `git annex get` in its repository",
    ),
}
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.I | re.S)
_ONLY_URL = re.compile(rb"\s*((https?|ftp|s3|gs)://\S+)\s*")
_SERVER_ERROR = re.compile(
    rb"\s*([45]\d\d\b.{0,80}|(entry |repository |page )?not found\.?|access denied\.?"
    rb"|forbidden\.?|unauthorized\.?|invalid (username|credentials).{0,80}"
    rb'|\{"(error|message)":\s*"[^"]{0,200}".{0,100}\})\s*',
    re.I,
)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, without hidden ones, sorted by folder and name."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(files) if not name.startswith("."))


def unpacked(name: str, data: bytes) -> bytes:
    """Return the content of a file that is compressed with gzip, bzip2 or xz; else the data.

    Raises:
        ExampleError: the file is empty, damaged, or nothing that holds rows; the message says what
            it is.
    """
    data = _decompressed(name, data)
    if data.startswith(TABLE_MAGIC):
        return data
    kind, step = _other_kind(data)
    if kind:
        raise ExampleError(f"{name} is {kind}; {step}.")
    return data


def _decompressed(name: str, data: bytes) -> bytes:
    if not data.strip():
        size = f"{len(data)} bytes" if not data else "only white space"
        raise ExampleError(f"{name} is empty ({size}); check that it was written or downloaded.")
    for magic, (kind, decompress) in _DECOMPRESSORS.items():
        if data.startswith(magic):
            try:
                content = decompress(data)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise ExampleError(
                    f"{name}: the {kind} file is cut off or damaged ({error}); copy or download it "
                    "again."
                ) from error
            return _decompressed(name, content)
    return data


def _other_kind(data: bytes) -> tuple[str, str]:
    """Return what a file that holds no rows is, and the next step; "" and "" if it may hold any."""
    kind, step = _binary_kind(data)
    if kind:
        return kind, step
    if _HTML.match(data[:4096]):
        return "an HTML page, not the data itself", (
            "download the raw file (on github.com the button Raw, on huggingface.co the button "
            "download)"
        )
    if data.lstrip().startswith(b"<?xml"):
        return "an XML file", _EXPORT
    if match := _ONLY_URL.fullmatch(data):
        address = match[1].decode("ascii", "replace")
        return f"a text file with only the address {address} in it", "download what is there"
    if len(data) < 400 and (match := _SERVER_ERROR.fullmatch(data)):
        text = match[0].decode("utf-8", "replace").strip()
        return f"the error message of a server ({quoted(text)}), not the data itself", (
            "check the address and download the file again"
        )
    return "", ""


def _binary_kind(data: bytes) -> tuple[str, str]:
    """Return what a file is that begins as none with text does, or a pointer to one, as above."""
    for magic, described in _OTHER_FILES.items():
        # A text may begin with these letters, but an ORC file ends with them, too.
        if data.startswith(magic) and (magic != b"ORC" or data[-4:-1] == magic):
            return described
    if data.startswith(b"PK\x03\x04"):
        return _zip_kind(data)
    if data[257:262] == b"ustar":
        return "a tar archive", "unpack it with `tar xf` and give one of the files in it"
    if _PICKLE.match(data):
        return "a Python pickle, which can run any code and is never loaded", (
            "load it in Python and write its rows as JSON Lines or Parquet"
        )
    return "", ""


def _zip_kind(data: bytes) -> tuple[str, str]:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip archive", "copy or download it again"
    for start, kind in (("xl/", "an Excel workbook"), ("word/", "a Word document")):
        if any(member.startswith(start) for member in names):
            return kind, "save it as CSV UTF-8 and give that file"
    if "mimetype" in names or "content.xml" in names:
        return "an OpenDocument file", "save it as CSV with the character set UTF-8"
    if any(member.endswith(("/data.pkl", ".npy")) for member in names):
        return "an archive of PyTorch or NumPy arrays", "write its rows as JSON Lines or Parquet"
    return "a zip archive", f"unpack it and give one of the files in it ({first_few(names)})"


# ---- text ----------------------------------------------------------------------------------------


def plain_text(name: str, data: bytes) -> str:
    """Return the text of a file that is itself a text, such as a document, and holds no rows.

    Its line ends are kept, and a byte order mark is no part of it.

    Args:
        name: what messages call the file.
        data: its bytes, which may be compressed with gzip, bzip2 or xz.

    Raises:
        ExampleError: the file is empty, damaged, no text, or in an encoding that is not Unicode;
            the message says what it is.
    """
    data = _decompressed(name, data)
    kind, step = _binary_kind(data)
    if kind:
        if not ("pointer" in kind or step.startswith("unpack")):
            step = "give its text as a file of plain text (UTF-8)"
        raise ExampleError(f"{name} is {kind}; {step}.")
    no_text = f"{name} is no text; give a file of plain text in UTF-8 or UTF-16."
    try:
        text = decode(name, data)
    except ExampleError as error:
        if _has_control_bytes(data[:_SAMPLE]):
            raise ExampleError(no_text) from error
        raise
    if _has_control_bytes(text[:_SAMPLE].encode()):
        raise ExampleError(no_text)
    return text


# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Without a mark: which of four neighbouring bytes are 0 in a text with ASCII characters.
_ZEROS = {
    "utf-32-le": (False, True, True, True),
    "utf-32-be": (True, True, True, False),
    "utf-16-le": (False, True, False, True),
    "utf-16-be": (True, False, True, False),
}
_SAMPLE = 1 << 16


def decode(name: str, data: bytes) -> str:
    """Decode UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Args:
        name: what messages call the file.
        data: its bytes, not compressed.

    Raises:
        ExampleError: the text is in another encoding, which is named as far as it is certain, or
            the file is no text.
    """
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            try:
                return data[len(mark) :].decode(encoding)
            except UnicodeDecodeError as error:
                if encoding == "utf-8":
                    raise _not_utf8(name, data) from error
                raise ExampleError(
                    f"{name} begins with the mark of {encoding.upper()}, but byte {error.start} is "
                    "invalid; the file is damaged or no text."
                ) from error
    if b"\0" in data[:_SAMPLE] and (text := _wide_text(data)) is not None:
        return text
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(name, data) from error


def _wide_text(data: bytes) -> str | None:
    """Return the text of UTF-16 or UTF-32 without a mark; None if it is something else."""
    sample = data[:_SAMPLE]
    quarters = [sample[k::4] for k in range(4)]
    shares = [part.count(0) / max(len(part), 1) for part in quarters]
    for encoding, zeros in _ZEROS.items():
        lowest = min(share for share, zero in zip(shares, zeros, strict=True) if zero)
        highest = max(share for share, zero in zip(shares, zeros, strict=True) if not zero)
        # Chinese text has few zero bytes: those of the syntax and of line ends.
        if lowest <= 3 * highest or (encoding.startswith("utf-32") and lowest < 0.5):
            continue
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    return None


_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def _has_control_bytes(sample: bytes) -> bool:
    """Whether bytes that no text has are more than a few."""
    return len(_CONTROL.findall(sample)) > len(sample) / 200


def _not_utf8(name: str, data: bytes) -> ExampleError:
    """Return an error that names the encoding, or says that the file is no text."""
    text = data.decode("utf-8", "replace")
    invalid = text.count("\ufffd")
    valid = sum(character > "\x7f" for character in text[: 1 << 20]) - invalid
    error = _first_error(data)
    start = error.start
    line = data.count(b"\n", 0, start) + 1
    at = f"byte 0x{data[start]:02x} in line {line}"
    if _has_control_bytes(data[:_SAMPLE]):
        return ExampleError(
            f"{name} is neither text nor Parquet ({at} is not UTF-8). Supported files: {FORMATS}."
        )
    if error.reason == "unexpected end of data":
        return ExampleError(
            f"{name} ends in the middle of a character; it is cut off: copy or download it again."
        )
    if valid > invalid:
        return ExampleError(
            f"{name} is UTF-8 with {invalid} invalid characters, the first at {at}; the file is "
            "damaged or mixes encodings. Write it again as UTF-8."
        )
    encoding, title = _eight_bit(data)
    after = data[start : start + 12].decode(encoding, "replace").split("\n")[0]
    before = data[max(0, start - 12) : start].decode("ascii", "replace").split("\n")[-1]
    file, new = shlex.quote(name), shlex.quote("utf8-" + re.split(r"[/\\]", name)[-1])
    return ExampleError(
        f"{name} is not UTF-8 ({at}); it is probably {title}, in which the text there reads "
        f"{quoted(before + after)}. Convert it with: iconv -f {encoding} -t UTF-8 {file} > {new}"
    )


def _first_error(data: bytes) -> UnicodeDecodeError:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error
    raise AssertionError("the data is UTF-8")


def _eight_bit(data: bytes) -> tuple[str, str]:
    """Guess an encoding that is not Unicode: its name for iconv and for people."""
    letters = re.findall(rb"[A-Za-z]|[\x80-\xff]", data[:_SAMPLE])
    high = sum(letter > b"\x7f" for letter in letters)
    if high > len(letters) * 0.4:
        # Languages of western Europe have a few such letters, other scripts have nothing else.
        return "GB18030", "GB18030, Shift-JIS, Windows-1251 or another one of its language"
    if not re.search(rb"[\x80-\x9f]", data):
        return "WINDOWS-1252", "Latin-1 (ISO 8859-1) or Windows-1252 (cp1252)"
    if not re.search(rb"[\x81\x8d\x8f\x90\x9d]", data):
        return "WINDOWS-1252", "Windows-1252 (cp1252, which extends Latin-1)"
    return "MACINTOSH", "Mac Roman, cp437 or another one of 8 bits"
