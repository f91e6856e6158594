"""What the files of a base model say about it: its Hub id, language and license (host).

Nothing is requested: a folder's own files are read, or those that were downloaded with the model.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from qa_flax import storage
from qa_flax.models.files import CARD_FILE

_CONFIG_FILES = (
    ("config.json", "_name_or_path"),
    ("adapter_config.json", "base_model_name_or_path"),
)
MAX_CARD_BYTES = 1 << 20

# Models without an owner are those of the Hub's first years; no new ones can be made.
_WITHOUT_OWNER = re.compile(
    r"(albert|bert|camembert|distilbert|distilroberta|roberta|xlm-roberta)"
    r"-(base|large|xlarge|xxlarge)(-[\w.-]+)?"
)


@dataclass(frozen=True)
class BaseCard:
    """A base model: None and empty where its files do not say."""

    hub_id: str | None = None
    is_folder: bool = False
    language: tuple[str, ...] = ()
    license: dict[str, str] | None = None


def read_base(
    source: str | os.PathLike[str] | None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> BaseCard:
    """What is known of the model that a training started from.

    Args:
        source: its folder, URL or Hub id; None or empty: there is none.
        revision: the branch, tag or commit that was downloaded.
        cache_dir: where it was downloaded to; None: the Hub's cache.
    """
    if not source or not str(source):
        return BaseCard()
    if storage.is_remote(source):
        return BaseCard(is_folder=True)
    if Path(source).exists():
        values = read_front_matter(Path(source) / CARD_FILE)
        return BaseCard(_named_id(Path(source), values), True, *_facts(values))
    card = _cached(str(source), revision, cache_dir)
    values = {} if card is None else read_front_matter(card)
    hub_id = str(source) if _is_hub_id(str(source)) else None
    return BaseCard(hub_id, False, *_facts(values))


def languages_of_dataset(name: str | None) -> tuple[str, ...]:
    """The languages of a data set, if its card was downloaded with it, or lies in its folder."""
    if not name:
        return ()
    folder = Path(name)
    card = folder / CARD_FILE if folder.is_dir() else _cached(name, repo_type="dataset")
    return () if card is None else _facts(read_front_matter(card))[0]


def read_front_matter(file: storage.AnyPath) -> dict[str, Any]:
    """The YAML metadata at the beginning of a card; empty if there is none that can be read."""
    try:
        if storage.size_of(file) > MAX_CARD_BYTES:
            return {}
        match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---", file.read_text("utf-8-sig"), re.S)
        values = yaml.safe_load(match[1]) if match else {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def is_text(value: Any) -> bool:
    """Whether a value is a short text of one line."""
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _facts(values: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, str] | None]:
    """The languages and the license of a card."""
    language = values.get("language")
    languages = language if isinstance(language, list) else [language]
    # YAML reads Norwegian's `no` as False.
    languages = ["no" if item is False else item for item in languages]
    names = ("license", "license_name", "license_link")
    found = {name: values[name] for name in names if is_text(values.get(name))}
    return tuple(
        str(item) for item in languages if is_text(item)
    ), found if "license" in found else None


def _named_id(folder: Path, card: dict[str, Any]) -> str | None:
    """The Hub id that a folder's config names, or its card as its base; None: there is none."""
    named = []
    for name, key in _CONFIG_FILES:
        try:
            values = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        named.append(values.get(key) if isinstance(values, dict) else None)
    base = card.get("base_model")
    named += base if isinstance(base, list) and len(base) == 1 else [base]
    return next((name for name in named if _is_hub_id(name) and _is_known(name)), None)


def _is_hub_id(name: Any) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return is_text(name) and name.count("/") <= 1 and not name.startswith(".")


def _is_known(name: str) -> bool:
    """Whether a name in a file is that of a model on the Hub, and not of a folder somewhere."""
    if Path(name).exists() or re.search(r"(^|/)checkpoint-\d+$", name):
        return False
    return "/" in name or bool(_WITHOUT_OWNER.fullmatch(name))


def _cached(
    name: str,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    repo_type: str = "model",
) -> Path | None:
    try:
        found = try_to_load_from_cache(
            name,
            CARD_FILE,
            cache_dir=None if cache_dir is None else str(cache_dir),
            revision=revision,
            repo_type=repo_type,
        )
    except (HFValidationError, OSError):
        return None
    return Path(found) if isinstance(found, str) else None
