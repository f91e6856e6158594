"""Load a tokenizer from a folder or from the Hub, and say what is wrong with its files (host)."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from qa_flax import storage
from qa_flax.data.tokenizer_checks import (
    FEW_TOKENS,
    advice,
    check_vocabulary,
    checked_template,
    fast_backend,
)
from qa_flax.data.tokens import plain_encoding
from qa_flax.messages import first_few, printable_errors, short

FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json")
FILES += ("special_tokens_map.json", "added_tokens.json")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken", "tekken.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the vocabulary of a tokenizer."""
    return any(any(folder.glob(pattern)) for pattern in VOCABULARIES)


@printable_errors()
def load_tokenizer(source: str, *, argument: str, **hub: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer, and check that it is complete.

    Args:
        source: a folder, or a name on the Hugging Face Hub.
        argument: the argument that gives another tokenizer, for messages.
        **hub: further arguments of `AutoTokenizer.from_pretrained`, such as `revision`.

    Raises:
        OSError: files are missing, or could not be read or downloaded.
        ValueError: a file is damaged, or the tokenizer is not supported.
    """
    from transformers import AutoTokenizer

    folder = Path(source)
    if folder.is_dir():
        _check_files(folder, argument)
    elif folder.exists():
        raise NotADirectoryError(f"{source} is a file; give the directory that contains it")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.startswith("."):
        raise FileNotFoundError(
            f"{source} does not exist, and it is not a valid hub id (name or owner/name)"
        )
    try:
        # Left out, transformers asks on a terminal whether to run code that comes with the files.
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **hub)
        # An unknown token that is unknown itself makes this call itself without end.
        tokenizer.all_special_ids  # noqa: B018 (a property that computes)
        if type(tokenizer).__name__ == "RoFormerTokenizer":
            # From vocab.txt, transformers 5.24 gives its splitter of words no vocabulary, so all
            # becomes characters. It gives it one when the tokenizer is saved, and in this method.
            tokenizer.__setstate__(vars(tokenizer))
    except Exception as error:  # the libraries raise many kinds, also plain `Exception`
        reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        if "trust_remote_code" in reason:
            reason = "it needs code that comes with it, and such code is never run"
        reason = short(reason, 500)
        if folder.is_dir():
            _check_json(folder)
            message = f"the tokenizer in {source} cannot be loaded: {reason.rstrip('.')}"
            if isinstance(error, ImportError):
                raise ValueError(f"{message}.") from error
            raise ValueError(f"{message}. Repair its files, or {advice(argument)}.") from error
        raise OSError(
            f"{source} is not a local directory, and no tokenizer of that name could be loaded "
            f"from the Hugging Face Hub: {reason}"
        ) from error
    check_vocabulary(tokenizer, argument)
    backend = fast_backend(tokenizer, argument)
    with plain_encoding(backend, tokenizer.split_special_tokens):
        checked_template(tokenizer, backend, argument)
    return tokenizer


def _check_files(folder: Path, argument: str) -> None:
    """Check what can be told from the files' names, beginnings and ends.

    Raises:
        OSError: there is no vocabulary.
        ValueError: something else took the place of a file, or a file is cut.
    """
    if not has_tokenizer(folder):
        names = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{folder} has no tokenizer (tokenizer.json, vocab.txt, vocab.json and merges.txt, or "
            f"a SentencePiece model); it contains: {names}. Add these files, or {advice(argument)}"
        )
    for file in sorted({*map(folder.joinpath, FILES), *folder.glob("*.model")}):
        if file.is_file() and (content := storage.foreign_content(file)) is not None:
            raise ValueError(f"{file} is not a file of a tokenizer: it is {content}")
    if not (folder / "tokenizer.json").is_file():
        _check_merges(folder, argument)


def _check_json(folder: Path) -> None:
    """Name the JSON file that is not JSON, or not an object."""
    for file in (folder / name for name in FILES if name.endswith(".json")):
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is not JSON, perhaps it is cut: {error}") from error
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise ValueError(f"{file} contains a JSON {kind}; an object is expected")


def _check_merges(folder: Path, argument: str) -> None:
    """Refuse merges.txt if it lacks the merges that make the tokens of vocab.json."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not vocabulary.is_file():
        return
    if not merges.is_file():
        raise FileNotFoundError(
            f"{folder} has vocab.json, but no merges.txt; add it, or {advice(argument)}"
        )
    _check_json(folder)
    try:
        lines = merges.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{merges} is not UTF-8 text: {error}") from error
    made = {"".join(line.split(" ")) for line in lines if not line.startswith("#version")}
    tokens = [t for t in json.loads(vocabulary.read_bytes()) if len(t) > 1 and t[0] not in "<["]
    missing = [token for token in tokens if token not in made]
    if len(missing) > 0.1 * len(tokens):
        raise ValueError(
            f"{merges} makes only {len(tokens) - len(missing):,} of the {len(tokens):,} tokens of "
            f"vocab.json (not {first_few(missing)}), so it is cut or of another tokenizer; replace "
            f"it, or {advice(argument)}"
        )


def check_vocabulary_file(folder: Path, tokens: int, rows: int, argument: str) -> None:
    """Refuse a model's own vocab.txt if it is too short for the model's embeddings.

    Args:
        folder: the model's.
        tokens: the number of the tokenizer's tokens.
        rows: the number of the model's token embeddings.
        argument: the argument that gives another tokenizer.

    Raises:
        ValueError: the file ends within a line, or it has far fewer tokens than the model.
    """
    file = folder / "vocab.txt"
    if (folder / "tokenizer.json").is_file() or not file.is_file() or tokens > 0.9 * rows:
        return
    is_whole = file.read_bytes().endswith(b"\n")
    if is_whole and tokens >= FEW_TOKENS * rows:
        return
    meant = (
        "" if not is_whole else f" If all tokens are there, name the folder: {argument} {folder}"
    )
    raise ValueError(
        f"{file} has {tokens:,} tokens, but the model has embeddings for {rows:,}, so the file is "
        f"cut or another model's; replace it, or {advice(argument)}.{meant}"
    )


_LOGGERS = ("transformers.tokenization_utils_base",)


def quietly(load: Callable[[], Any]) -> Any:
    """The result of a function that logs nothing meanwhile; None if it raises OSError."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        return load()
    except (OSError, ValueError):
        return None
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
