"""Stage 1 of 7: data sets of the Hugging Face Hub, and saved ones in a folder (host, text)."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa
from datasets import config

from qa_flax.data.rejected import ExampleError

_SAVED = ("state.json", "dataset_dict.json")  # what Dataset.save_to_disk writes
SECONDS_TO_ANSWER = 6.0
"""How long the Hub may take to answer at all before it counts as unreachable."""


def load_hub(
    name: str, split: str | None, config_name: str | None, kwargs: dict[str, Any]
) -> datasets.Dataset:
    """Load a data set by its id on the Hub, or a folder with data files.

    If the Hub cannot be reached, only the local cache is looked at: otherwise every request would
    be repeated for half a minute.

    Raises:
        ExampleError: it cannot be loaded, or there are several splits and `split` is none of them.
    """
    is_folder = Path(name).is_dir()
    problem = None if is_folder else _why_unreachable()
    try:
        if is_folder and any((Path(name) / file).is_file() for file in _SAVED):
            loaded = datasets.load_from_disk(name)
        else:
            with _offline(problem is not None):
                kwargs = _csv_arguments(name) | kwargs if is_folder else kwargs
                loaded = datasets.load_dataset(name, config_name, split=split, **kwargs)
    except Exception as error:
        # A builder raises whatever the library that reads its files raises. RuntimeError: the
        # repository has a loading script, which datasets >= 4 does not run.
        raise ExampleError(_not_loaded(name, is_folder, problem, error)) from error
    return one_split(loaded, split, name)


def _csv_arguments(folder: str) -> dict[str, Any]:
    """Arguments with which pandas reads the answer "NA" of a CSV file as text."""
    suffixes = {path.suffix for path in Path(folder).rglob("*") if path.is_file()}
    is_csv = suffixes & {".csv", ".tsv"} and not suffixes & {".json", ".jsonl", ".parquet"}
    return {"keep_default_na": False} if is_csv else {}


def _not_loaded(name: str, is_folder: bool, problem: str | None, error: Exception) -> str:
    if is_folder:
        return (
            f"{name} is a folder that datasets.load_dataset could not load: {error}. Give one of "
            "its files, or a folder with data files."
        )
    local = f"There is no file or folder {name} here, so it was taken for a data set on the Hub."
    if problem is not None:
        return (
            f"{name}: could not be loaded from the Hugging Face Hub, because {problem}, and the "
            f"local cache does not have it. {local} Check the network, or use a local file."
        )
    return (
        f"{name}: could not be loaded with datasets.load_dataset: {error}. {local} Check the name, "
        "the split, the token and the network, or use a local file."
    )


def one_split(loaded: Any, split: str | None, name: str) -> datasets.Dataset:
    """Return the split of that name, or the only one.

    Raises:
        ExampleError: there are several splits, or it is a stream.
    """
    if isinstance(loaded, datasets.DatasetDict):
        if split is None and len(loaded) == 1:
            return next(iter(loaded.values()))
        if split not in loaded:
            problem = "there are several splits" if split is None else f"no split {split!r}"
            raise ExampleError(f"{name}: {problem}; choose one of {', '.join(map(repr, loaded))}.")
        return loaded[split]
    if not isinstance(loaded, datasets.Dataset):
        raise ExampleError(f"{name}: a streaming data set is not supported; omit streaming=True.")
    return loaded


def arrow_table(dataset: datasets.Dataset) -> pa.Table:
    """Return all rows of a data set in order, for any `set_format`; the data set is not changed."""
    # A data set without rows cannot be sliced.
    rows = dataset.with_format("arrow")[:] if len(dataset) else dataset.data.table.slice(0, 0)
    return cast(pa.Table, rows)


# ---- whether the Hub answers ---------------------------------------------------------------------


def _why_unreachable() -> str | None:
    """Return why the Hub cannot be reached; None if it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or config.HF_HUB_OFFLINE:
        return "offline mode is set (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)"
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(constants.ENDPOINT)), daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)  # looking up the name has no time limit of its own
    if not answers:
        return f"{constants.ENDPOINT} did not answer within {SECONDS_TO_ANSWER:.0f} seconds"
    return answers[0]


def _ask(endpoint: str) -> str | None:
    from huggingface_hub import get_session

    try:
        response = get_session().head(f"{endpoint}/api/datasets", timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # of the HTTP library, which differs between versions
        return f"{endpoint} cannot be reached ({str(error) or type(error).__name__})"
    status = response.status_code
    return f"{endpoint} answers with the error {status}" if status >= 500 else None


@contextlib.contextmanager
def _offline(is_offline: bool) -> Iterator[None]:
    """A context in which the libraries look at their cache only."""
    from huggingface_hub import constants

    if not is_offline:
        yield
        return
    places = [(constants, "HF_HUB_OFFLINE"), (config, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in places]
    try:
        for module, name in places:
            setattr(module, name, True)
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)
