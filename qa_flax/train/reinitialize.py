"""`reinit_layers`: the last layers get fresh values before training (Zhang et al. 2021) (host)."""

import logging
from dataclasses import replace
from typing import Any

import jax
from flax import nnx

from qa_flax.models.depth import depth_of
from qa_flax.models.layers import ParamPath
from qa_flax.models.model import AutoModelForQuestionAnswering, family_of
from qa_flax.models.transfers import to_device
from qa_flax.models.weights import initial_arrays
from qa_flax.train.freezing import frozen_paths, layers_of

logger = logging.getLogger(__name__)


def reinit_count(args: Any) -> int:
    """The argument `reinit_layers`, 0 if transformers' own arguments lack it."""
    return int(getattr(args, "reinit_layers", None) or 0)


def reinit_paths(args: Any, model: AutoModelForQuestionAnswering) -> frozenset[ParamPath]:
    """The paths of the parameters that get fresh values: those of the last layers.

    Raises:
        ValueError: the model has fewer layers, or some of these parameters are not trained.
    """
    if not (count := reinit_count(args)):
        return frozenset()
    depth = depth_of(model)
    if count > depth.layers:
        raise ValueError(f"reinit_layers={count}: {layers_of(model, depth)}; lower reinit_layers")
    if model.lora is not None:
        raise ValueError(
            f"reinit_layers={count}: the layers of a model with LoRA adapters are never trained, "
            "so they would keep their random values; leave reinit_layers out, or train the model "
            "without adapters"
        )
    paths = depth.paths(range(depth.head - count, depth.head))
    own = model.frozen - model.set_by_arguments.frozen
    # Layers that an earlier training has initialized and trained may be frozen afterwards.
    if not model.set_by_arguments.reinitialized and paths & (own | frozen_paths(args, model)):
        raise ValueError(
            f"reinit_layers={count}: parameters of the last {count} layers are frozen "
            "(freeze_layers, requires_grad=False), so they would keep their random values; lower "
            "reinit_layers, or do not freeze these layers"
        )
    return paths


def reinitialize(args: Any, model: AutoModelForQuestionAnswering) -> None:
    """Give the last layers fresh values, drawn from `seed` as for a new model of the family.

    A model gets them once: a second training continues with what the first has learnt.
    """
    paths, count = reinit_paths(args, model), reinit_count(args)
    if not paths:
        return
    if before := model.set_by_arguments.reinitialized:
        if count != before:
            logger.warning(
                "reinit_layers=%d has no effect: the last layers of this model (%d) were "
                "initialized at the start of an earlier training; load the model again to start "
                "anew.",
                count,
                before,
            )
        return
    family = family_of(model.config)
    make_array = initial_arrays(family, family.read_config(model.config.to_dict()), args.seed)
    arrays = 0
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path in paths:
            arrays += 1
            old = variable.get_raw_value()
            device = old.sharding if isinstance(old, jax.Array) else None
            # jnp.array copies: JAX can donate only memory of its own, not NumPy's.
            variable.set_value(to_device(make_array(path, tuple(old.shape)), device))
    mark_reinitialized(args, model)
    logger.warning(
        "reinit_layers=%d: the last layers are initialized anew from seed %d, %d arrays; the "
        "embeddings, the other layers and the span head keep their values.",
        count,
        args.seed,
        arrays,
    )


def mark_reinitialized(args: Any, model: AutoModelForQuestionAnswering) -> None:
    """Record that the model's last layers are not those it was loaded with: it has new ones."""
    changes = model.set_by_arguments
    model.set_by_arguments = replace(changes, reinitialized=reinit_count(args))
