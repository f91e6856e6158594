"""The texts of `--context`: files, and folders of them (host, text)."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from qa_flax import storage
from qa_flax.data.rejected import ExampleError
from qa_flax.data.text_files import files_below, plain_text
from qa_flax.messages import first_few

logger = logging.getLogger(__name__)

SUFFIXES = (".txt", ".md")
_JSON, _TABLES = (".json", ".jsonl", ".ndjson"), (".csv", ".tsv")
_CONTEXT = re.compile(r'"context"\s*:')


@dataclass(frozen=True)
class Texts:
    """What questions are asked about.

    Attributes:
        by_name: the texts by the names of their files.
        is_single: whether `--context` names one file, so that answers need not name it.
    """

    by_name: dict[str, str]
    is_single: bool

    @property
    def entries(self) -> dict[str, object]:
        """The entries of a question to the answerer that pass the texts."""
        if self.is_single:
            return {"context": next(iter(self.by_name.values()))}
        return {"contexts": self.by_name}

    def of(self, name: str | None) -> str:
        """Return the text of an answer, given the name of its context."""
        return self.by_name[name] if name is not None else next(iter(self.by_name.values()))


def read_texts(paths: list[str]) -> Texts:
    """Read files, and the `*.txt` and `*.md` files of folders, sorted and at any depth.

    What cannot be read in a folder is left out with one warning; hidden files and folders are not
    looked at.

    Raises:
        OSError: a file cannot be read.
        ExampleError: a file is no text, or a folder has none.
    """
    texts: dict[str, str] = {}
    seen: set[Path] = set()
    has_folder = False
    for name in paths:
        path = _existing(name)
        if path.is_dir():
            has_folder = True
            found = _texts_of_folder(name, path)
        else:
            found = {name: (path, plain_text(name, path.read_bytes()))}
            _refuse_data(name, found[name][1])
        for key, (file, text) in found.items():
            if file.resolve() not in seen:
                texts[key] = text
                seen.add(file.resolve())
    return Texts(texts, is_single=len(texts) == 1 and not has_folder)


def _refuse_data(name: str, text: str) -> None:
    """Raise `ExampleError` if a file holds rows with contexts of their own, and is no text."""
    suffix = Path(name).suffix.lower()
    is_json = suffix in _JSON and _CONTEXT.search(text) is not None
    header = text.partition("\n")[0].casefold()
    is_table = suffix in _TABLES and "context" in header and "question" in header
    if is_json or is_table:
        raise ExampleError(
            f"--context {name}: this is a file of data, with its own contexts, and would be read "
            f"as one text; ask its questions with --input {name}, or give the texts as "
            f"{' or '.join(SUFFIXES)} files"
        )


def _existing(name: str) -> Path:
    if storage.is_remote(name):
        return storage.local_copy(name)
    path = Path(name).expanduser()
    try:
        is_there = path.exists()
    except OSError:  # a name that is too long
        is_there = False
    if is_there:
        return path
    shown = name if len(name) <= 60 else f"{name[:60]}..."
    hint = "check the path"
    if " " in name.strip() and not path.suffix:
        hint = "it takes the name of a file with the text, not the text itself"
    raise FileNotFoundError(f"--context {shown}: there is no such file or folder; {hint}")


def _texts_of_folder(name: str, folder: Path) -> dict[str, tuple[Path, str]]:
    texts, problems, others = {}, [], []
    for path in files_below(folder):
        shown = f"{name.rstrip('/')}/{path.relative_to(folder).as_posix()}"
        if path.suffix.lower() not in SUFFIXES:
            others.append(shown)
            continue
        try:
            texts[shown] = path, plain_text(shown, path.read_bytes())
        except (ExampleError, OSError) as error:
            problems.append(str(error).split(";")[0].removesuffix("."))
    kinds = " or ".join(f"*{suffix}" for suffix in SUFFIXES)
    if problems:
        logger.warning(
            "%s: %d of %d files are left out:\n  - %s",
            name,
            len(problems),
            len(texts) + len(problems),
            first_few(problems, separator="\n  - "),
        )
    if not texts:
        found = f" (other files: {first_few(others)})" if others else ""
        which = f"no {kinds} file that can be read" if problems else f"no {kinds} files"
        raise ExampleError(
            f"--context {name}: this folder has {which}{found}; give files of plain text by their "
            "names, or another folder"
        )
    return texts
