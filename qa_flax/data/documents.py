"""Files, folders and data sets -> documents without labels: titles and texts (host, text).

Data files are read as `load_examples` reads them, but only their contexts are used.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from qa_flax import messages, storage
from qa_flax.data.answers import is_unicode
from qa_flax.data.markdown import plain_markdown, unwrapped
from qa_flax.data.readers import DATA_SUFFIXES, PACKED_SUFFIXES, ExampleError, local_path, read
from qa_flax.data.text_files import TABLE_MAGIC, files_below, plain_text
from qa_flax.messages import first_few

logger = messages.logger(__name__)

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown")
MARKDOWN_SUFFIXES = (".md", ".markdown")
CLOZE_ID = "cloze-"
"""How the ids of clozes begin, whose contexts are no documents."""
_SAVED = ("state.json", "dataset_dict.json")  # what Dataset.save_to_disk writes


@dataclass(frozen=True)
class Document:
    """A text, such as a file's or the context of a row."""

    title: str
    text: str


@dataclass(frozen=True)
class _File:
    """A file or a data set to read."""

    name: str
    """What messages call it."""
    title: str
    path: Path | None
    """None: it is no file here."""


@dataclass
class Documents:
    """The documents of several sources, read one after the other whenever they are iterated.

    Names of files and data sets are sorted, so that their order does not matter. The files of a
    folder are those with the suffix of a text or of data, at any depth; hidden ones are not read.

    Attributes:
        sources: paths, names of data sets, and anything else that `load_examples` reads.
        split: the split of data sets that have several.
        config_name: the configuration of data sets on the Hub.
        context_column: the sources' own name of the column `context`.
        load_dataset_kwargs: further arguments of `datasets.load_dataset`.
        excluded: files that are not read, though they are in a folder.
        warn: logs a warning.
        count: how many documents were read.
        problems: what was left out, and why; complete after the iteration.
        others: how many files of folders have another suffix, by suffix.
    """

    sources: Sequence[Any]
    split: str | None = None
    config_name: str | None = None
    context_column: str | None = None
    load_dataset_kwargs: Mapping[str, Any] | None = None
    excluded: Collection[Path] = ()
    warn: Callable[..., None] = logger.warning
    count: int = 0
    problems: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents, and log a warning about what was left out.

        Raises:
            FileNotFoundError: there is no such file.
            ExampleError: a source cannot be read, or there is no document at all.
        ValueError: `split`, `config_name` or `context_column` would have no effect.
        """
        self.count, self.problems, self.others = 0, [], Counter()
        sources = self._expanded()
        self._check_choices(sources)
        for source in sources:
            for document in self._documents_of(source):
                self.count += 1
                yield document
        if not self.count:
            raise ExampleError(self._nothing())
        if self.problems:
            self.warn(
                "%d source%s had to be left out, in whole or in part:\n  - %s",
                len(self.problems),
                "s" * (len(self.problems) > 1),
                first_few(self.problems, separator="\n  - "),
            )

    # ---- sources -> files ------------------------------------------------------------------------

    def _expanded(self) -> list[Any]:
        """Return the files of the sources, each once and sorted, and then the other sources."""
        files: dict[Any, _File] = {}
        for source in self.sources:
            if not isinstance(source, str | os.PathLike):
                continue
            for file in self._files(os.fspath(source)):
                key = file.name if file.path is None else file.path.resolve()
                if key not in self.excluded and (key not in files or file.name < files[key].name):
                    files[key] = file
        ordered = sorted(files.values(), key=lambda file: file.name)
        return ordered + [s for s in self.sources if not isinstance(s, str | os.PathLike)]

    def _files(self, name: str) -> Iterator[_File]:
        path = _existing(name)
        if path is None or not path.is_dir():
            yield _File(name, _stem(PurePosixPath(name.rstrip("/")).name), path)
        elif any((path / file).is_file() for file in _SAVED):
            yield _File(name, path.resolve().name, None)
        else:
            for file in files_below(path):
                inside = file.relative_to(path).as_posix()
                suffix = _suffix(file.name)
                if suffix in DATA_SUFFIXES or _is_text(file.name):
                    yield _File(f"{name.rstrip('/')}/{inside}", _stem(inside), file)
                else:
                    self.others[suffix or "no suffix"] += 1

    def _check_choices(self, sources: list[Any]) -> None:
        """Refuse a choice in data sets, or of a column, that no source has.

        Raises:
            ValueError: it would have no effect.
        """
        chosen = [name for name in (self.split, self.config_name) if name is not None]
        if chosen and all(isinstance(s, _File) and s.path is not None for s in sources):
            raise ValueError(
                f"{' and '.join(map(repr, chosen))} chooses a part of a data set, but all sources "
                "are files; leave it out"
            )
        texts = [s for s in sources if isinstance(s, _File) and s.path and _is_text(s.name)]
        if self.context_column is not None and len(texts) == len(sources):
            raise ValueError(
                f'context_column="{self.context_column}" names a column, but all sources are '
                "texts; leave it out"
            )

    # ---- files -> documents ----------------------------------------------------------------------

    def _documents_of(self, source: Any) -> Iterator[Document]:
        if not isinstance(source, _File):
            yield from self._rows(source, "")
        elif source.path is None:
            yield from self._rows(source.name, source.title)
        else:
            known = len(self.problems)
            try:
                documents = self._content(source, source.path.read_bytes())
            except (ExampleError, OSError) as error:
                self.problems.append(_first_line(error))
                return
            if not documents and len(self.problems) == known:
                self.problems.append(f"{source.name} has no text")
            yield from documents

    def _content(self, file: _File, data: bytes) -> list[Document]:
        """Return the documents of a file; a text that is JSON or a table is read as data.

        Raises:
            ExampleError: it cannot be read.
            OSError: as above.
        """
        assert file.path is not None
        suffix = _suffix(file.name)
        if suffix in DATA_SUFFIXES or data.startswith(TABLE_MAGIC):
            return list(self._rows(file.name, file.title, file.path))
        text = plain_text(file.name, data)
        if text.lstrip()[:1] in ("{", "[") and '"context"' in text:
            return list(self._rows(file.name, file.title, file.path))
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = (plain_markdown if suffix in MARKDOWN_SUFFIXES else unwrapped)(text)
        return [Document(file.title, text)] if text.strip() else []

    def _rows(self, source: Any, title: str, path: Path | None = None) -> Iterator[Document]:
        """Yield the contexts of rows, each once.

        Raises:
            ExampleError: the rows cannot be read, or are clozes.
        """
        name, rows, rejected = read(
            source if path is None or storage.is_remote(source) else path,
            self.split,
            self.config_name,
            self.load_dataset_kwargs,
            columns={"context": self.context_column},
            bad_rows="skip",
            needs=("context",),
        )
        name = source if isinstance(source, str) else name
        if rows and all(str(row.get("id")).startswith(CLOZE_ID) for row in rows):
            raise ExampleError(f"{name}: its rows are clozes of an earlier call")
        texts: dict[str, str] = {}
        unused = len(rejected)
        for row in rows:
            text, own_title = row.get("context"), row.get("title")
            if isinstance(text, str) and text.strip() and is_unicode(text):
                is_title = isinstance(own_title, str) and is_unicode(own_title)
                texts.setdefault(text, own_title if is_title and own_title else title)
            else:
                unused += 1
        if unused:
            total = f"{len(rows) + len(rejected):,}"
            self.problems.append(f"{name}: {unused:,} of {total} rows have no text as context")
        for text, row_title in texts.items():
            yield Document(row_title, text)

    def _nothing(self) -> str:
        if self.problems:
            return "no text could be read:\n  - " + first_few(self.problems, separator="\n  - ")
        kinds = [f"{count} {suffix}" for suffix, count in self.others.most_common()]
        found = f" (other files: {first_few(kinds)})" if kinds else ""
        return (
            f"{first_few([str(source) for source in self.sources])}: there are no texts{found}; "
            f"give text files ({', '.join(TEXT_SUFFIXES)}) or data files (JSON, JSONL, CSV, "
            "Parquet) with a column context"
        )


def as_sources(docs: Any) -> list[Any]:
    """Return the sources in a list: paths and data sets, where a list of rows is one source.

    Raises:
        ValueError: there are none.
    """
    if isinstance(docs, list | tuple) and not any(isinstance(doc, Mapping) for doc in docs):
        if not docs:
            raise ValueError("docs is empty; give files, folders or data sets")
        return list(docs)
    return [docs]


def _existing(name: str) -> Path | None:
    """Return the path of a file or folder; None if the name may be that of a data set on the Hub.

    Raises:
        FileNotFoundError: it is neither.
    """
    try:
        path = storage.local_copy(name) if storage.is_remote(name) else Path(name).expanduser()
        is_there = path.exists() and bool(name.strip())
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) or storage.is_remote(name):
            raise
        is_there, path = False, Path(name)  # too long, or with a null character
    if is_there:
        return path
    if any(letter in name for letter in "\n\0") or len(name) > 255:
        raise FileNotFoundError(
            f"{messages.short(name, 60)}: no such file; names of files, folders and data sets are "
            'expected. For texts themselves pass rows: [{"context": text}, ...]'
        )
    local_path(name)  # raises for what looks like a path
    return None


def _suffix(name: str) -> str:
    suffixes = [s for s in map(str.lower, Path(name).suffixes) if s not in PACKED_SUFFIXES]
    return suffixes[-1] if suffixes else ""


def _is_text(name: str) -> bool:
    return _suffix(name) in TEXT_SUFFIXES


def _stem(name: str) -> str:
    """Return a name without the suffixes of texts, data and compression."""
    while (suffix := PurePosixPath(name).suffix).lower() in _KNOWN_SUFFIXES:
        name = name[: -len(suffix)]
    return name if is_unicode(name) else name.encode("unicode_escape").decode("ascii")


_KNOWN_SUFFIXES = frozenset({*TEXT_SUFFIXES, *DATA_SUFFIXES, *PACKED_SUFFIXES})


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return f"{error.filename}: {error.strerror}" if error.strerror else str(error)
    return str(error).strip().split("\n")[0].removesuffix(":")
