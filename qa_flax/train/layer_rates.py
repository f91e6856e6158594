"""`layerwise_lr_decay`: learning rates that decrease from the head to the embeddings (host)."""

from typing import Any

from qa_flax.device.optim import RateFactors
from qa_flax.models.depth import depth_of
from qa_flax.models.model import AutoModelForQuestionAnswering


def layerwise_decay(args: Any) -> float:
    """The argument `layerwise_lr_decay`, 1.0 if transformers' own arguments lack it."""
    value = getattr(args, "layerwise_lr_decay", None)
    return 1.0 if value is None else float(value)


def rate_factors(model: AutoModelForQuestionAnswering, decay: float) -> RateFactors | None:
    """The factors of the learning rate: 1 for the head, `decay` for the last layer, and so on.

    Args:
        model: the model.
        decay: the factor from each level of `depth.depth_of` to the one below it.

    Returns:
        The factor of every parameter; None if all are 1.
    """
    if decay == 1.0:
        return None
    depth = depth_of(model)
    return frozenset(
        (tuple(map(str, path)), decay ** (depth.head - level))
        for path, level in depth.levels.items()
    )
