"""`freeze_layers` and `freeze_embeddings`: the parameters that they freeze (host)."""

from typing import Any

from qa_flax.models.depth import EMBEDDINGS, Depth, depth_of
from qa_flax.models.layers import ParamPath
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.regularization import layer_numbers


def frozen_paths(args: Any, model: AutoModelForQuestionAnswering) -> frozenset[ParamPath]:
    """The paths of the parameters that the arguments freeze.

    In a model with LoRA adapters, whose encoder is never trained, those of adapters are among them.

    Raises:
        ValueError: the model does not have these layers.
    """
    value = getattr(args, "freeze_layers", None)
    layers = layer_numbers(value)
    embeddings = bool(getattr(args, "freeze_embeddings", False))
    if not (layers or embeddings):
        return frozenset()
    depth = depth_of(model)
    if layers and max(layers) >= depth.layers:
        raise ValueError(
            f"freeze_layers={value!r}: {layers_of(model, depth)}, with numbers from 0 to "
            f"{depth.layers - 1}"
        )
    levels = {layer + 1 for layer in layers} | ({EMBEDDINGS} if embeddings else set())
    return depth.paths(frozenset(levels))


def layers_of(model: AutoModelForQuestionAnswering, depth: Depth) -> str:
    """Say how many layers the model has, for errors; those that share weights count as one."""
    kind = model.config.model_type
    if depth.is_shared:
        count = f"{depth.layers} {'group' if depth.layers == 1 else 'groups'} of layers"
        return f"{kind} shares the weights of its layers, and this model has {count} to choose from"
    return f"this {kind} model has {depth.layers} layers"
