"""Where the rows of a data set come from, so that another program can read them again (host)."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import datasets

from qa_flax import storage

Origin = dict[str, Any]
"""What is known of where rows come from, as JSON values; {} if nothing is.

`file`, or `dataset_name`, `dataset_config_name` and `split`; and `read`: the arguments of
`read_examples` for its rows. Or `arrow_files`: the files in which `datasets` keeps the rows.
"""

_KEY = "qa_flax"
_SAME_ROWS = {"cache_dir", "token", "revision"}  # arguments of load_dataset


def source_of(
    source: Any, split: str | None, config_name: str | None, kwargs: Collection[str] = ()
) -> Origin:
    """Return where the rows of a source that has been read come from.

    Args:
        source, split, config_name: see `load_examples`.
        kwargs: the names of its further arguments.

    Example:
        >>> source_of("squad_v2", "validation", None)["dataset_name"]
        'squad_v2'
    """
    if isinstance(source, datasets.Dataset):
        return origin_of(source)
    if not isinstance(source, str | os.PathLike):
        return {}
    name = str(os.fspath(source)).removeprefix("file://")
    if storage.is_remote(name):
        return {"file": name}
    path = Path(name).expanduser()
    if path.exists() and not path.is_dir():
        return {"file": os.path.abspath(path)}
    if set(kwargs) - _SAME_ROWS:
        return {}
    name = os.path.abspath(path) if path.is_dir() else name
    return {"dataset_name": name, "dataset_config_name": config_name, "split": split}


def note_origin(dataset: datasets.Dataset, origin: Mapping[str, Any]) -> None:
    """Let a data set know its origin, as all that is selected from it or mapped will.

    It is noted where the library `datasets` notes which files a data set was made from.
    """
    if origin:
        dataset.info.download_checksums = {_KEY: dict(origin)}


def origin_of(dataset: Any) -> Origin:
    """Return the origin of a data set of `load_examples` or of the library `datasets`.

    Args:
        dataset: any object; nothing is known of others.
    """
    if not isinstance(dataset, datasets.Dataset):
        return {}
    noted = (dataset.info.download_checksums or {}).get(_KEY)
    if noted is not None:
        return dict(noted)
    files = [os.path.abspath(file["filename"]) for file in dataset.cache_files]
    return {"arrow_files": files} if files else {}
