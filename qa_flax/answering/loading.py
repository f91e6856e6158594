"""Load what a question is asked of: a model and its tokenizer, or check those that were passed."""

import os
from typing import Any

from transformers import PreTrainedTokenizerBase

from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.tokenizer_fit import check_tokenizer, load_fitting_tokenizer


def load_model(
    model: Any, dtype: Any, base_model: Any, hub: dict[str, Any]
) -> AutoModelForQuestionAnswering:
    """Load a model from a folder, a URL or the Hub; return a model as it is, or in another dtype.

    Args:
        model: as of `QuestionAnswerer`, like the other arguments.
        dtype: compute dtype; None: float32, or that of the model that was passed.
        base_model: of a folder of adapters.
        hub: `revision`, `token` and `cache_dir`.

    Raises:
        OSError: files are missing, or could not be downloaded.
        TypeError: it is no model of qa_flax.
        ValueError: a file is invalid.
    """
    if isinstance(model, AutoModelForQuestionAnswering):
        if dtype is not None:
            return model.with_dtype(dtype)
        return model
    if isinstance(model, str | os.PathLike):
        return AutoModelForQuestionAnswering.from_pretrained(
            model, dtype="float32" if dtype is None else dtype, base_model=base_model, **hub
        )
    how = "pass a folder or a Hub id, or a model of qa_flax.AutoModelForQuestionAnswering"
    if type(model).__module__.split(".")[0] in ("transformers", "torch"):
        how = 'save it with model.save_pretrained("folder") and pass the folder'
    raise TypeError(f"model is a {type(model).__name__}, which qa_flax cannot ask; {how}")


def load_tokenizer_for(
    model: AutoModelForQuestionAnswering,
    source: Any,
    tokenizer: Any,
    base_model: Any,
    hub: dict[str, Any],
) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, or check the one that was passed.

    Args:
        model: the model.
        source: what it was loaded from: a folder, a URL or a name on the Hub; or a model.
        tokenizer: a tokenizer, or its folder or name; None: the one beside the model.
        base_model: of a folder of adapters.
        hub: `revision`, `token` and `cache_dir`.

    Raises:
        OSError: files are missing, or could not be downloaded.
        ValueError: tokenizer and model do not belong together, or there is no tokenizer.
    """
    if tokenizer is not None and not isinstance(tokenizer, str | os.PathLike):
        check_tokenizer(model, tokenizer, argument="tokenizer")
        return tokenizer
    if not isinstance(source, str | os.PathLike):
        source = model.config.name_or_path
        if not source and tokenizer is None:
            raise ValueError(
                "the model was not loaded from a folder, so its tokenizer is unknown; pass "
                "tokenizer=..., such as the one that made the training windows"
            )
    if not source:
        source = tokenizer
    return load_fitting_tokenizer(
        model, source, tokenizer, base_model=base_model, argument="tokenizer", **hub
    )
