"""Whether a tokenizer and windows fit a model, before any of them is used (host)."""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from qa_flax import storage
from qa_flax.data.tokenizer_checks import ModelNumbers, check_fit, compare
from qa_flax.data.tokenizer_files import (
    check_vocabulary_file,
    has_tokenizer,
    load_tokenizer,
    quietly,
)
from qa_flax.models.config_json import family_of
from qa_flax.models.encoder import PositionsAfterPadding
from qa_flax.models.files import ADAPTER_CONFIG_FILE, checkpoint_directory
from qa_flax.models.lora import base_directory
from qa_flax.models.model import AutoModelForQuestionAnswering


def model_numbers(model: AutoModelForQuestionAnswering) -> ModelNumbers:
    """The numbers of a model that must agree with its tokenizer's."""
    roles = {"pad"} if isinstance(model.encoder, PositionsAfterPadding) else set()
    if hasattr(model.encoder, "separator"):  # it finds the end of the question by this token
        roles.add("sep")
    return ModelNumbers(
        model.config,
        dict(model.id_limits),
        roles,
        ignored=family_of(model.config).ignored_token_ids,
        question_token=getattr(model.head, "question_token", None),
    )


def check_tokenizer(
    model: AutoModelForQuestionAnswering,
    tokenizer: Any,
    collator: Any = None,
    argument: str = "processing_class",
) -> None:
    """Refuse a tokenizer that does not belong to its model.

    Args:
        model: the model.
        tokenizer: the trainer's `processing_class`; None: that of the collator, which is saved
            with the model.
        collator: the trainer's `data_collator`.
        argument: the argument that the tokenizer was passed as.

    Raises:
        ValueError: the tokenizer is another model's, or was made without a vocabulary.
    """
    if tokenizer is None:
        tokenizer, argument = getattr(collator, "tokenizer", None), "the collator's tokenizer"
    if tokenizer is not None:
        check_fit(tokenizer, model_numbers(model), argument)


def load_fitting_tokenizer(
    model: AutoModelForQuestionAnswering,
    model_source: str | os.PathLike[str],
    given: str | os.PathLike[str] | None = None,
    *,
    base_model: str | os.PathLike[str] | None = None,
    argument: str,
    **hub: Any,
) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, or the one that the user gave, and check that it fits the model.

    Args:
        model: the model.
        model_source: the folder, URL or Hub id that it was loaded from.
        given: those of another tokenizer; None: the model's own.
        base_model: the base model of a folder of adapters; None: the one that the folder names.
        argument: the argument that gives another tokenizer, for messages.
        **hub: `revision`, `token` and `cache_dir`.

    Raises:
        OSError: files are missing, or could not be downloaded.
        ValueError: a file is damaged, or tokenizer and model do not belong together.
    """
    own, own_hub = _own_tokenizer(str(model_source), base_model, argument, hub)
    source, source_hub = (own, own_hub) if given is None else (local(given), hub)
    tokenizer = load_tokenizer(source, argument=argument, **source_hub)
    numbers = model_numbers(model)
    if given is None and Path(source).is_dir():
        count, rows = len(tokenizer), numbers.rows["input_ids"]
        check_vocabulary_file(Path(source), count, rows, argument)
    check_fit(tokenizer, numbers, argument)
    if source != own and (not Path(own).is_dir() or has_tokenizer(Path(own))):
        expected = quietly(lambda: load_tokenizer(own, argument=argument, **own_hub))
        if expected is not None:
            compare(tokenizer, expected, argument)
    return tokenizer


def _own_tokenizer(
    model_source: str,
    base_model: str | os.PathLike[str] | None,
    argument: str,
    hub: dict[str, Any],
) -> tuple[str, dict[str, Any]]:
    """The folder or Hub id of the model's own tokenizer, and the arguments that load it.

    Adapters without tokenizer have that of their base model.
    """
    source = local(model_source)
    folder = checkpoint_directory(source, **hub)
    is_hub = not Path(source).is_dir()
    if not (folder / ADAPTER_CONFIG_FILE).is_file() or (has_tokenizer(folder) and not is_hub):
        return source, hub
    if is_hub and quietly(lambda: load_tokenizer(source, argument=argument, **hub)):
        return source, hub
    hub = {name: value for name, value in hub.items() if name != "revision"}
    base, _ = base_directory(folder, base_model, **hub)
    return local(base.name), hub | {"revision": base.revision}


def local(source: str | os.PathLike[str]) -> str:
    """`source` itself if it is a folder or a Hub id; a local copy if it is in a bucket."""
    return str(storage.local_copy(source)) if storage.is_remote(source) else str(source)


def position_limit(model: AutoModelForQuestionAnswering) -> int | None:
    """The most tokens of a window for which the model has positions; None: any number."""
    limit = getattr(model.encoder, "position_limit", None)
    if limit is None and getattr(model.config, "position_biased_input", False):
        limit = model.config.max_position_embeddings
    return limit
