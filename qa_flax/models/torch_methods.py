"""Methods and attributes that scripts for PyTorch models use and that have a meaning here (host).

PyTorch's models have two modes and live on a device. Here JAX places the weights, and dropout is
active only in the training step, so most of these methods return the model as it is.
"""

from typing import Any

import numpy as np
from flax import nnx

from qa_flax.models.blocks import Stack
from qa_flax.models.read_hooks import has_read_hook
from qa_flax.models.torch_device import Device


class TorchMethods:
    """The part of `torch.nn.Module`'s interface that needs no PyTorch; a mix-in of the model."""

    def eval(self, **attributes: Any) -> Any:
        """Return the model. Calling it never uses dropout, in either mode."""
        self.training = False
        return self

    def train(self, mode: bool = True, **attributes: Any) -> Any:
        """Return the model. Dropout is active in `Trainer.train` only, not when it is called."""
        self.training = bool(mode)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model; a dtype sets the dtype that it computes in, a device has no effect."""
        for value in (*args, kwargs.get("dtype")):
            if _is_dtype(value):
                self._set_compute_dtype(value)
        return self

    def cpu(self) -> Any:
        """Return the model: JAX places the weights when it computes."""
        return self

    def cuda(self, device: Any = None) -> Any:
        """Return the model: JAX places the weights when it computes."""
        return self

    def float(self) -> Any:
        """Compute in float32, and return the model."""
        self._set_compute_dtype("float32")
        return self

    def bfloat16(self) -> Any:
        """Compute in bfloat16, and return the model; the parameters stay float32."""
        self._set_compute_dtype("bfloat16")
        return self

    def half(self) -> Any:
        """Compute in bfloat16, which takes the place of float16, and return the model."""
        self._set_compute_dtype("float16")
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: the model holds no gradients."""

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """Recompute activations in the backward pass, to save memory."""
        self._set_remat(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep the activations for the backward pass."""
        self._set_remat(False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return any(stack.remat for stack in self._stacks())

    @property
    def device(self) -> Device:
        """Where inputs are expected and outputs are returned: "cpu", for `inputs.to(...)`."""
        return Device("cpu")

    @property
    def num_labels(self) -> int:
        """2: the start and the end of an answer."""
        return 2

    @property
    def name_or_path(self) -> str:
        """What the model was loaded from."""
        return self.config.name_or_path  # pyright: ignore[reportAttributeAccessIssue]

    def _stacks(self) -> list[Stack]:
        modules = nnx.iter_modules(self)  # pyright: ignore[reportArgumentType]
        return [module for _, module in modules if isinstance(module, Stack)]

    def _set_remat(self, remat: bool) -> None:
        for stack in self._stacks():
            stack.remat = remat

    def _set_compute_dtype(self, dtype: Any) -> None:
        model: Any = self
        if has_read_hook(model):
            raise ValueError("the dtype cannot be changed while the model is trained; set bf16=")
        other = model.with_dtype(dtype)
        model.dtype, model.encoder, model.head = other.dtype, other.encoder, other.head


def _is_dtype(value: Any) -> bool:
    """Whether an argument of `to` is a dtype, of torch, NumPy or JAX, and not a device."""
    is_torch = type(value).__name__ == "dtype"
    return is_torch or isinstance(value, np.dtype | type)
