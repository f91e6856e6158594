"""Whether a tokenizer and windows fit a model, before any of them is used (host)."""

from typing import Any

from qa_flax.data.tokenizer_checks import ModelNumbers, check_fit
from qa_flax.models.encoder import PositionsAfterPadding
from qa_flax.models.model import AutoModelForQuestionAnswering


def model_numbers(model: AutoModelForQuestionAnswering) -> ModelNumbers:
    """The numbers of a model that must agree with its tokenizer's."""
    roles = {"pad"} if isinstance(model.encoder, PositionsAfterPadding) else set()
    if hasattr(model.encoder, "separator"):  # it finds the end of the question by this token
        roles.add("sep")
    return ModelNumbers(model.config, dict(model.id_limits), roles)


def check_tokenizer(
    model: AutoModelForQuestionAnswering, tokenizer: Any, collator: Any = None
) -> None:
    """Refuse a trainer's tokenizer that does not belong to its model.

    Args:
        model: the model.
        tokenizer: the trainer's `processing_class`; None: that of the collator, which is saved
            with the model.
        collator: the trainer's `data_collator`.

    Raises:
        ValueError: the tokenizer is another model's, or was made without a vocabulary.
    """
    argument = "processing_class"
    if tokenizer is None:
        tokenizer, argument = getattr(collator, "tokenizer", None), "the collator's tokenizer"
    if tokenizer is not None:
        check_fit(tokenizer, model_numbers(model), argument)


def position_limit(model: AutoModelForQuestionAnswering) -> int | None:
    """The most tokens of a window for which the model has positions; None: any number."""
    limit = getattr(model.encoder, "position_limit", None)
    if limit is None and getattr(model.config, "position_biased_input", False):
        limit = model.config.max_position_embeddings
    return limit
