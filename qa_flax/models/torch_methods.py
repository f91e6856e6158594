"""Methods and attributes that scripts for PyTorch models use and that have a meaning here (host).

PyTorch's models have two modes and live on a device. Here JAX places the weights, and dropout is
active only in the training step, so several of these methods return the model as it is. Those that
concern parameters are in `parts.py`.
"""

import math
from collections import Counter
from typing import Any

import numpy as np
from flax import nnx

from qa_flax.models.blocks import Stack
from qa_flax.models.families import FAMILIES
from qa_flax.models.parameters import Tree, parameter_tree
from qa_flax.models.parts import ModuleMethods, Part, module_attribute
from qa_flax.models.read_hooks import has_read_hook
from qa_flax.models.resize import resize_table
from qa_flax.models.torch_device import Device


class TorchMethods(ModuleMethods):
    """The part of `torch.nn.Module`'s interface that needs no PyTorch; a mix-in of the model.

    `model.bert`, `model.qa_outputs` and so on are `Part`s: what Python does not find in the model
    is looked up in PyTorch's tree of it.
    """

    def _tree(self) -> Tree:
        return parameter_tree(self)

    def _whole(self) -> Any:
        return self

    def __repr__(self) -> str:
        """The parts with their sizes: the end of a notebook's cell and `print` show it.

        `flax.nnx.display(model)` shows every module.
        """
        model: Any = self
        sizes: Counter[str] = Counter()
        for name, parameter in self.named_parameters():
            names = name.removeprefix("base_model.model.").split(".")
            sizes[".".join(names[:-1][:2])] += math.prod(parameter.shape)
        lines = [f"  ({name}): {size:,} parameters" for name, size in sizes.items()]
        trained = self.num_parameters(only_trainable=True)
        adapters = "" if model.lora is None else f", with LoRA adapters of rank {model.lora.r}"
        end = f") {sizes.total():,} parameters, {trained:,} trained, in {model.dtype}{adapters}"
        return "\n".join((f"{type(self).__name__}(", *lines, end))

    def __getattr__(self, name: str) -> Any:
        names = set() if name.startswith("_") else self._module_names()
        # Others are refused without reading the model: libraries look for attributes that only some
        # models have, and during training a read copies the weights from the cores.
        if name not in names and (name != "model" or not names):
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r}; of PyTorch's modules it has "
                f"{', '.join(sorted(names))}"
            )
        return module_attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._module_names():
            raise AttributeError(
                f"model.{name} cannot be replaced: it is a view; write into its parameters "
                "(model.load_state_dict, p.data = ...), or build a model with another config"
            )
        if name == "requires_grad":
            raise AttributeError(
                "requires_grad is set on parameters; use model.requires_grad_(...)"
            )
        super().__setattr__(name, value)

    def _module_names(self) -> set[str]:
        """PyTorch's names of the model's own children that are not attributes of this class."""
        config = getattr(self, "_config", None)  # not yet set while the model is built
        if config is None:
            return set()
        family = FAMILIES[config.value.model_type]
        names = (family.prefix, *family.head_weight_names.values())
        if not family.prefix:  # the encoder's parts are the model's own children, as in T5
            names += tuple(family.weight_names.values())
        return {name.partition(".")[0] for name in names} - {"encoder", "head"}

    @property
    def base_model_prefix(self) -> str:
        """The encoder's name in PyTorch's model, or that in others if it has none, as in T5."""
        family = FAMILIES[self.config.model_type]  # pyright: ignore[reportAttributeAccessIssue]
        return family.prefix.removesuffix(".") or family.base_model_prefix

    @property
    def base_model(self) -> Any:
        """The encoder, or the model if it has no such part; with LoRA, PEFT's `base_model`."""
        model: Any = self
        if model.lora is None and not FAMILIES[model.config.model_type].prefix:
            return model
        name = self.base_model_prefix if model.lora is None else "base_model"
        return self._part(name, self._tree()[name])

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> Part:
        """Change the number of tokens, in the embedding table and in `config.vocab_size`.

        Args:
            new_num_tokens: the rows of the table; rows are added or removed at its end. None: as
                many as there are.
            pad_to_multiple_of: round the number up to a multiple of this.
            mean_resizing: as in transformers, new rows are drawn close to the mean of the old
                ones; False: as in a new model. The same call always draws the same.

        Returns:
            The token embeddings.

        Raises:
            ValueError: a number is invalid, the model is being trained, or it has LoRA adapters.
        """
        resize_table(self, new_num_tokens, pad_to_multiple_of, mean_resizing)
        return self.get_input_embeddings()

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
