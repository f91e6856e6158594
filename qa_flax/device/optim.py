"""transformers' optimizers as optax chains: clipping, scaling, weight decay (device, JAX).

A chain returns the direction of an update. The train step multiplies it by minus the learning
rate (`schedules.py`), so the optimizer's state does not depend on the learning rate.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from qa_flax.device.adjustable import adjustable_decay, adjustable_factors
from qa_flax.models.sharding import global_norm

ParameterNames = frozenset[tuple[str, ...]]
"""Parameters by their paths in the model, such as `("head", "outputs", "kernel")`."""

RateFactors = frozenset[tuple[tuple[str, ...], float]]
"""Pairs of a parameter's path and the factor of its learning rate."""


def decay_mask(params: PyTree, decayed: ParameterNames | None = None) -> PyTree:
    """A tree of booleans: whether weight decay changes a parameter.

    Args:
        params: the tree of parameters.
        decayed: those that decay; None: all except biases and normalization layers.
    """

    def decays(path, _leaf) -> bool:
        names = _names(path)
        if decayed is not None:
            return names in decayed
        return "bias" not in names and not any(name.lower().endswith("norm") for name in names)

    return jax.tree_util.tree_map_with_path(decays, params)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """A parameter's path in the model, given that of its array, or of its `Shard`'s array."""
    return tuple(str(part.key) for part in path if hasattr(part, "key"))


@lru_cache(maxsize=64)
def make_optimizer(
    name: str = "adamw_torch",
    *,
    weight_decay: float = 0.0,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_epsilon: float = 1e-8,
    max_grad_norm: float = 1.0,
    optim_args: str | None = None,
    decayed: ParameterNames | None = None,
    rate_factors: RateFactors | None = None,
    is_adjustable: bool = False,
) -> optax.GradientTransformation:
    """The optimizer of that name as an optax chain, after clipping by the global norm.

    Equal arguments return the same object, so that a second training reuses the compiled step.

    Args:
        name: one of `OPTIMIZERS`, transformers' `optim` (or `lamb`).
        weight_decay: of the parameters in `decayed`; decoupled from the gradient or, for sgd,
            adagrad and rmsprop, added to it, as PyTorch does.
        adam_beta1, adam_beta2, adam_epsilon: of adamw, ademamix and lamb; lion uses the betas.
        max_grad_norm: the largest global norm of a gradient; 0: no clipping.
        optim_args: transformers' `optim_args`, such as `"momentum=0.9,nesterov=true"`.
        decayed: the parameters that decay; None: all except biases and normalization layers.
        rate_factors: of every parameter; None: all parameters have the same learning rate.
        is_adjustable: whether weight decay and factors are in the state (`adjustable.py`) instead
            of `weight_decay` and `rate_factors`.

    Raises:
        ValueError: the optimizer is not supported, or `optim_args` has an invalid argument for it.
    """
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optim={name!r} is not supported; choose one of {', '.join(OPTIMIZERS)}. (8-bit "
            "and 4-bit states, galore, apollo, lomo and schedule-free are not implemented.)"
        )
    make, allowed = OPTIMIZERS[name]
    values = _read_optim_args(optim_args)
    if unknown := sorted(values.keys() - allowed.keys()):
        raise ValueError(
            f"optim_args={optim_args!r}: optim={name!r} has no argument {', '.join(unknown)}; "
            f"its arguments: {', '.join(allowed) or 'none'}"
        )
    adam = {"b1": adam_beta1, "b2": adam_beta2, "eps": adam_epsilon}
    mask = partial(decay_mask, decayed=decayed)
    decay = optax.add_decayed_weights(weight_decay, mask)
    settings = {key: read(values[key]) for key, read in allowed.items() if key in values}
    clip = [_clip(max_grad_norm)] if max_grad_norm > 0 else []
    # Last, so that it scales weight decay, too, as learning rates of parameter groups in PyTorch.
    scale = [] if rate_factors is None else [_scale_by_path(dict(rate_factors))]
    if is_adjustable:
        decay, scale = adjustable_decay(mask), [adjustable_factors()]
    return optax.chain(*clip, *make(decay, adam, **settings), *scale)


def _scale_by_path(factors: Mapping[tuple[str, ...], float]) -> optax.GradientTransformation:
    """Multiply each update by its parameter's factor."""

    def scale(updates: PyTree, params: PyTree | None) -> PyTree:
        scaled = lambda path, update: update * factors[_names(path)]  # noqa: E731
        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.stateless(scale)


def _clip(max_norm: float) -> optax.GradientTransformation:
    """As `optax.clip_by_global_norm`, but the norm includes the shards of all cores."""

    def clip(updates: PyTree, params: PyTree | None) -> PyTree:
        # One factor, as in PyTorch. XLA then multiplies where the gradient is used; a division it
        # would compute first, in a program of its own for every parameter.
        factor = max_norm / jnp.maximum(global_norm(updates), max_norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates)

    return optax.stateless(clip)


Parts = list[optax.GradientTransformation]


def _adamw(decay: Any, adam: dict[str, Any]) -> Parts:
    return [optax.scale_by_adam(**adam), decay]


def _ademamix(
    decay: Any,
    adam: dict[str, Any],
    beta1: float | None = None,
    beta2: float | None = None,
    beta3: float = 0.9999,
    alpha: float = 5.0,
    eps: float | None = None,
) -> Parts:
    overrides = {"b1": beta1, "b2": beta2, "eps": eps}
    adam = adam | {name: value for name, value in overrides.items() if value is not None}
    return [optax.contrib.scale_by_ademamix(b3=beta3, alpha=alpha, **adam), decay]


def _lion(decay: Any, adam: dict[str, Any]) -> Parts:
    return [optax.scale_by_lion(adam["b1"], adam["b2"]), decay]


def _lamb(decay: Any, adam: dict[str, Any]) -> Parts:
    return [optax.scale_by_adam(**adam), decay, optax.scale_by_trust_ratio()]


def _adafactor(decay: Any, adam: dict[str, Any]) -> Parts:
    """With transformers' settings: the schedule's learning rate, every matrix factored."""
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=0)
    return [factored, optax.clip_by_block_rms(1.0), decay]


def _sgd(decay: Any, adam: dict[str, Any], momentum: float = 0.0, nesterov: bool = False) -> Parts:
    return [decay, optax.trace(momentum, nesterov)] if momentum else [decay]


def _adagrad(decay: Any, adam: dict[str, Any]) -> Parts:
    # PyTorch adds its epsilon of 1e-10 to the square root, optax adds its own under the root.
    return [decay, optax.scale_by_rss(initial_accumulator_value=0.0, eps=1e-20)]


def _rmsprop(
    decay: Any,
    adam: dict[str, Any],
    momentum: float = 0.0,
    alpha: float = 0.99,
    eps: float = 1e-8,
    centered: bool = False,
) -> Parts:
    scale = optax.scale_by_stddev if centered else optax.scale_by_rms
    scaled = [decay, scale(alpha, eps, eps_in_sqrt=False)]
    return [*scaled, optax.trace(momentum)] if momentum else scaled


def _read_optim_args(text: str | None) -> dict[str, str]:
    pairs = [part.partition("=") for part in (text or "").replace(" ", "").split(",") if part]
    if invalid := [name for name, equals, value in pairs if not (name and equals and value)]:
        raise ValueError(
            f"optim_args={text!r}: {', '.join(invalid)} has no value; write name=value"
        )
    return {name: value for name, _, value in pairs}


def _flag(text: str) -> bool:
    return text.lower() in ("true", "1", "yes")


_ADEMAMIX: dict[str, Callable] = dict.fromkeys(("beta1", "beta2", "beta3", "alpha", "eps"), float)
_RMSPROP: dict[str, Callable] = {"momentum": float, "alpha": float, "eps": float, "centered": _flag}

# Their updates use row means, column means or norms of a parameter. A shard does not have them, and
# the rows of zeros of a padded table would change them.
NEED_WHOLE_PARAMETERS = ("adafactor", "lamb")

OPTIMIZERS: dict[str, tuple[Callable[..., Parts], dict[str, Callable]]] = {
    "adamw_torch": (_adamw, {}),
    "adamw_torch_fused": (_adamw, {}),
    "adamw_torch_xla": (_adamw, {}),
    "adamw_torch_npu_fused": (_adamw, {}),
    "paged_adamw_32bit": (_adamw, {}),
    "adafactor": (_adafactor, {}),
    "ademamix": (_ademamix, _ADEMAMIX),
    "paged_ademamix_32bit": (_ademamix, _ADEMAMIX),
    "lion_32bit": (_lion, {}),
    "paged_lion_32bit": (_lion, {}),
    "lamb": (_lamb, {}),
    "sgd": (_sgd, {"momentum": float, "nesterov": _flag}),
    "adagrad": (_adagrad, {}),
    "rmsprop": (_rmsprop, _RMSPROP),
    "rmsprop_bnb": (_rmsprop, _RMSPROP),
    "rmsprop_bnb_32bit": (_rmsprop, _RMSPROP),
}
