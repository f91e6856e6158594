"""Stage 4 of 7: dense layers whose inputs and outputs are split into groups (device, JAX)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from qa_flax.models.dropout import dropout
from qa_flax.models.layers import zeros


def grouped_product(
    x: Float[Array, "b l n_in"], weights: Float[Array, "i g o"], dtype: jnp.dtype
) -> Float[Array, "b l n_out"]:
    """Multiply each of g groups of i inputs by its own matrix; returns g groups of o outputs."""
    i, g, _ = weights.shape
    x = x.astype(dtype).reshape(*x.shape[:-1], g, i)
    return jnp.einsum("blgi,igo->blgo", x, weights.astype(dtype)).reshape(*x.shape[:-2], -1)


class GroupedDense(nnx.Module):
    """A dense layer in groups, in the form in which ConvBERT's checkpoints have it.

    The kernel is `[o, i, g]`, PyTorch's `[g, i, o]`.
    """

    def __init__(self, n_in: int, n_out: int, groups: int, dtype: jnp.dtype):
        self.dtype = dtype
        self.kernel = nnx.Param(zeros(None, (n_out // groups, n_in // groups, groups)))
        self.bias = nnx.Param(zeros(None, (n_out,)))

    def __call__(
        self, x: Float[Array, "b l n_in"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b l n_out"]:
        """Apply the layer in the compute dtype; `rngs` are ignored."""
        weights = jnp.transpose(self.kernel[...], (1, 2, 0))
        return (
            grouped_product(x, weights, self.dtype) + self.bias[...].astype(self.dtype)[None, None]
        )


class PointwiseConvolution(nnx.Module):
    """A convolution of width 1, which is a dense layer in groups, as in SqueezeBERT.

    The kernel is `[1, i, n_out]`, PyTorch's `[n_out, i, 1]`, with i inputs in each group.
    """

    def __init__(self, n_in: int, n_out: int, groups: int, dtype: jnp.dtype):
        self.in_features, self.out_features, self.groups = n_in, n_out, groups
        self.dtype = dtype
        self.kernel = nnx.Param(zeros(None, (1, n_in // groups, n_out)))
        self.bias = nnx.Param(zeros(None, (n_out,)))

    def __call__(
        self, x: Float[Array, "b l n_in"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b l n_out"]:
        """Apply the layer in the compute dtype; `rngs` are for its subclass with adapters."""
        product = grouped_product(x, in_groups(self.kernel[...], self.groups), self.dtype)
        return product + self.bias[...].astype(self.dtype)[None, None]


def in_groups(kernel: Float[Array, "1 i n_out"], groups: int) -> Float[Array, "i g o"]:
    """The matrices of a `PointwiseConvolution`; consecutive outputs form a group."""
    return kernel.reshape(kernel.shape[1], groups, -1)


class LoraConvolution(PointwiseConvolution):
    """A frozen `PointwiseConvolution` with an adapter, as PEFT has for PyTorch's convolutions.

    A reads all inputs; B is in groups. So the sum of both is not in groups, and an adapter can only
    be merged if there is one group.
    """

    def __init__(
        self, base: PointwiseConvolution, r: int, scaling: float, dropout_rate: float, name: str
    ):
        n_in, n_out, groups = base.in_features, base.out_features, base.groups
        if r % groups:
            raise ValueError(
                f"r={r} is not a multiple of the {groups} groups of {name}; use a multiple of "
                f"{groups}, or leave the layer out of target_modules"
            )
        super().__init__(n_in, n_out, groups, base.dtype)
        self.kernel, self.bias = base.kernel, base.bias
        self.lora_a = nnx.Param(zeros(None, (1, n_in, r)))
        self.lora_b = nnx.Param(zeros(None, (1, r // groups, n_out)))
        self.scaling, self.dropout_rate = scaling, dropout_rate

    def __call__(
        self, x: Float[Array, "b l n_in"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b l n_out"]:
        """Apply the layer and its adapter; `rngs` draw the dropout of the adapter's input."""
        dropped = dropout(x, self.dropout_rate, rngs)
        inner = grouped_product(dropped, in_groups(self.lora_a[...], 1), self.dtype)
        update = grouped_product(inner, in_groups(self.lora_b[...], self.groups), self.dtype)
        return super().__call__(x) + update * self.scaling
