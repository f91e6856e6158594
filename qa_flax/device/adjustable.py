"""Weight decay and learning-rate factors in the optimizer's state instead of its program (device).

A step is compiled for its optimizer. In a search every trial may have another weight decay and
other factors: with them in the state, all trials share one compiled step.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree


class DecayState(NamedTuple):
    """The state of `adjustable_decay`."""

    weight_decay: Float[Array, ""]


class FactorState(NamedTuple):
    """The state of `adjustable_factors`."""

    factors: Float[Array, " p"]
    """Of each array of the parameters, in the order of their leaves."""


def adjustable_decay(mask: Callable[[PyTree], PyTree]) -> optax.GradientTransformation:
    """As `optax.add_decayed_weights`, with the weight decay in the state; at first it is 0.

    Args:
        mask: from the tree of parameters to one of booleans: whether it decays.
    """

    def init(params: PyTree) -> DecayState:
        return DecayState(jnp.zeros((), jnp.float32))

    def update(updates: PyTree, state: DecayState, params: PyTree = None) -> Any:
        def decayed(update: Array, parameter: Array, decays: bool) -> Array:
            return update + state.weight_decay * parameter if decays else update

        return jax.tree.map(decayed, updates, params, mask(params)), state

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def adjustable_factors() -> optax.GradientTransformation:
    """Multiply the update of each array by a factor in the state; at first all are 1."""

    def init(params: PyTree) -> FactorState:
        return FactorState(jnp.ones(len(jax.tree.leaves(params)), jnp.float32))

    def update(updates: PyTree, state: FactorState, params: PyTree = None) -> Any:
        leaves, structure = jax.tree.flatten(updates)
        scaled = [leaf * state.factors[n] for n, leaf in enumerate(leaves)]
        return structure.unflatten(scaled), state

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def with_settings(
    state: PyTree,
    params: PyTree,
    weight_decay: float,
    factors: Mapping[tuple[str, ...], float] | None,
) -> PyTree:
    """Return an optimizer's state with these settings in it.

    Args:
        state: of an optimizer of `make_optimizer(is_adjustable=True)`.
        params: the parameters.
        weight_decay: the weight decay.
        factors: of every parameter, by its path in the model; None: all are 1.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names = [tuple(str(part.key) for part in path if hasattr(part, "key")) for path in paths]
    values = [1.0 if factors is None else factors[name] for name in names]

    def adjusted(part: Any) -> Any:
        if isinstance(part, DecayState):
            return DecayState(jnp.float32(weight_decay))
        if isinstance(part, FactorState):
            return FactorState(jnp.array(values, jnp.float32))
        return part

    kinds = (DecayState, FactorState)
    return jax.tree.map(adjusted, state, is_leaf=lambda part: isinstance(part, kinds))
