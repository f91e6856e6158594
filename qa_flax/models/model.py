"""Stage 4 of 7: the model as Hugging Face users know it: config.json + safetensors in and out."""

import copy
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import ArrayLike, Int
from safetensors.numpy import save_file
from transformers import AutoConfig, PreTrainedConfig

from qa_flax import storage
from qa_flax.models import lora as adapters
from qa_flax.models.blocks import Stack
from qa_flax.models.families import FAMILIES, Family
from qa_flax.models.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    checkpoint_directory,
    listing,
    read_json,
)
from qa_flax.models.layers import BlockConfig, Fixed
from qa_flax.models.lora import LoraConfig
from qa_flax.models.qa import SpanLogits
from qa_flax.models.read_hooks import ReadHooks
from qa_flax.models.weights import (
    Named,
    adapter_arrays,
    arrays_of,
    filled,
    initial_arrays,
    layer_name,
    named_parameters,
    stored_arrays,
    torch_layout,
)
from qa_flax.storage import replacing

COMPUTE_DTYPES = ("float32", "bfloat16")


class AutoModelForQuestionAnswering(ReadHooks):
    """An encoder with a span head, made from a Hugging Face config or checkpoint.

    Parameters are float32; `dtype` is the compute dtype. Call it with NumPy or JAX arrays `[B, L]`.
    Make one with `from_pretrained` or `from_config`; the class itself gives read-only zeros, to be
    filled.
    With `lora` the encoder is frozen and has adapters: make such a one with `get_peft_model`.
    """

    def __init__(
        self, config: PreTrainedConfig, *, dtype: Any = jnp.float32, lora: LoraConfig | None = None
    ):
        family, sizes = _read(config)
        self.dtype = compute_dtype(dtype)
        self.encoder: Any = family.encoder(sizes, dtype=self.dtype)
        self.head: Any = family.head(sizes, dtype=self.dtype)
        self._config = _ByIdentity(config)
        self.lora = lora
        if lora is not None:
            self.encoder = adapters.add_adapters(self.encoder, lora, partial(layer_name, family))

    @property
    def config(self) -> PreTrainedConfig:
        """transformers' config object of this model."""
        return self._config.value

    def __call__(
        self,
        input_ids: Int[ArrayLike, "b l"],
        attention_mask: Int[ArrayLike, "b l"] | None = None,
        token_type_ids: Int[ArrayLike, "b l"] | None = None,
        position_ids: Int[ArrayLike, "b l"] | None = None,
        segment_ids: Int[ArrayLike, "b l"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> SpanLogits:
        """Span logits, float32. `rngs=None` means no dropout; else its `dropout` stream is used.

        `attention_mask` (1 real, 0 padding) defaults to all real. `segment_ids` (0 padding)
        separate windows packed into one row; positions restart in each unless `position_ids` are
        given.
        """
        ids = jnp.asarray(input_ids, jnp.int32)
        mask = jnp.ones_like(ids) if attention_mask is None else _int32(attention_mask)
        optional = map(_int32, (token_type_ids, position_ids, segment_ids))
        return self.head(self.encoder(ids, mask, *optional, rngs=rngs), ids, rngs=rngs)

    @classmethod
    def from_config(
        cls, config: PreTrainedConfig, seed: int = 0, dtype: Any = jnp.float32
    ) -> "AutoModelForQuestionAnswering":
        """A randomly initialised model; the same `seed` gives the same weights on any hardware.

        Raises `ValueError` for a `model_type` or a setting that is not supported.
        """
        config = _own_config(config)
        family, sizes = _read(config)
        return filled(cls(config, dtype=dtype), initial_arrays(family, sizes, seed))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        config: PreTrainedConfig | None = None,
        seed: int = 0,
        dtype: Any = jnp.float32,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> "AutoModelForQuestionAnswering":
        """Load a directory or a hub id; a missing span head is made from `seed`, and said so.

        Where there are LoRA adapters of a model instead, that model is loaded with them.

        `config` replaces the checkpoint's own. Raises `OSError` for files that are absent or
        unreadable, and `ValueError` with the whole difference for a checkpoint that does not fit.
        """
        hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir}
        hub["local_files_only"] = local_files_only
        directory = checkpoint_directory(pretrained_model_name_or_path, revision=revision, **hub)
        if (directory / ADAPTER_CONFIG_FILE).is_file():
            base = adapters.base_of(directory)
            model = cls.from_pretrained(
                base.name, config, seed, dtype, revision=base.revision, **hub
            )
            return model.with_adapter(directory)
        config = _own_config(load_config(directory) if config is None else config)
        config.name_or_path = str(pretrained_model_name_or_path)
        model = cls(config, dtype=dtype)
        return filled(model, stored_arrays(model, *_read(config), directory, seed))

    def set_params(self, params: Any) -> None:
        """Put parameters (a state of the same model, NumPy or JAX arrays) in place of its own."""
        nnx.update(self, jax.tree.map(jnp.asarray, params))

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the model holds, or how many of them training changes."""
        kinds = nnx.Param if only_trainable else (nnx.Param, Fixed)
        return sum(array.size for array in jax.tree.leaves(nnx.state(self, kinds)))

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, in PEFT's words."""
        trained, held = self.num_parameters(only_trainable=True), self.num_parameters()
        share = f"trainable%: {100 * trained / held:.4f}"
        print(f"trainable params: {trained:,} || all params: {held:,} || {share}")

    def with_dtype(self, dtype: Any) -> "AutoModelForQuestionAnswering":
        """The same parameters, not copied, in a model made anew from `config` for `dtype`."""
        graphdef = nnx.graphdef(type(self)(self.config, dtype=dtype, lora=self.lora))
        return nnx.merge(graphdef, nnx.state(self))

    def graphdef(self, dtype: Any, remat: bool = False) -> nnx.GraphDef:
        """How to compute with the model's weights in `dtype`, as its config is now.

        Models of the same architecture have equal ones, with the same hash, whatever else is in
        their configs (names, paths): what was compiled for one serves another.
        """
        model = type(self)(self.config, dtype=dtype, lora=self.lora).with_remat(remat)
        model._config = _NO_CONFIG
        return nnx.graphdef(model)

    def with_remat(self, remat: bool = True) -> "AutoModelForQuestionAnswering":
        """The same parameters, not copied, with or without gradient checkpointing."""
        model = nnx.merge(*nnx.split(self))
        for _, module in nnx.iter_modules(model):
            if isinstance(module, Stack):
                module.remat = remat
        return model

    def with_adapter(self, directory: str | os.PathLike[str]) -> "AutoModelForQuestionAnswering":
        """A new model: this one with LoRA adapters from files, in place of any that it has.

        As `PeftModel.from_pretrained(model, directory)`. Raises as `from_pretrained` does.
        """
        directory = checkpoint_directory(directory)
        given = LoraConfig.from_peft(directory / ADAPTER_CONFIG_FILE)
        model = type(self)(self.config, dtype=self.dtype, lora=_resolved(given, self))
        own = adapter_arrays(directory, adapters.saved(_named(model), given))
        arrays = arrays_of(self) | own
        return filled(model, lambda path, _: arrays[path])

    def merge_and_unload(self) -> "AutoModelForQuestionAnswering":
        """The model without adapters that computes the same: they are added to its weights."""
        if self.lora is None:
            raise ValueError("the model has no adapters")
        arrays = adapters.merged(arrays_of(self), self.lora)
        return filled(type(self)(self.config, dtype=self.dtype), lambda path, _: arrays[path])

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, each whole or not at all.

        PyTorch transformers' `AutoModelForQuestionAnswering.from_pretrained` reads them exactly.
        Where there are adapters, only they and the span head are written: PEFT's two files.
        """
        with storage.output_folder(save_directory) as directory:
            self._write(directory)

    def _write(self, directory: Path) -> None:
        if self.lora is None:
            config = copy.deepcopy(self.config)
            config.architectures = [family_of(config).architecture]
            config.dtype = "float32"
            files, text, named = (CONFIG_FILE, WEIGHTS_FILE), config.to_json_string(), _named(self)
        else:
            files = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE)
            text = json.dumps(self.lora.to_peft(self.config.name_or_path or None), indent=2)
            named = adapters.saved(_named(self), self.lora)
        config_file, weights_file = (directory / name for name in files)
        tensors = {name: torch_layout(path, param[...]) for name, (path, param) in named.items()}
        with replacing(config_file) as temporary:
            temporary.write_text(text)
        with replacing(weights_file) as temporary:
            # transformers refuses a file that does not say its format.
            save_file(tensors, temporary, metadata={"format": "pt"})
            # safetensors writes for the owner's eyes alone; the user's umask decides, as elsewhere.
            shutil.copymode(config_file, temporary)


def get_peft_model(
    model: AutoModelForQuestionAnswering, peft_config: LoraConfig, seed: int = 0
) -> AutoModelForQuestionAnswering:
    """PEFT's function: `model` frozen but for its span head and new LoRA adapters.

    The model given stays as it is; the new one computes the same until it is trained. `seed` is
    that of the adapters. Raises `ValueError` if there are adapters already, or none could be.
    """
    if model.lora is not None:
        raise ValueError("the model has adapters already; merge_and_unload() gives one without")
    config = _resolved(peft_config, model)
    arrays, begin = arrays_of(model), adapters.initial_adapters(seed)
    return filled(
        type(model)(model.config, dtype=model.dtype, lora=config),
        lambda path, shape: arrays[path] if path in arrays else begin(path, shape),
    )


def _int32(values: ArrayLike | None) -> jax.Array | None:
    return None if values is None else jnp.asarray(values, jnp.int32)


# ---- configs -------------------------------------------------------------------------------------


class _ByIdentity:
    """Holds what cannot be hashed, so that a module with it can still be a key of jit's cache."""

    def __init__(self, value: PreTrainedConfig):
        self.value = value


_NO_CONFIG: Any = _ByIdentity(PreTrainedConfig())


def compute_dtype(dtype: Any) -> jnp.dtype:
    """float32 or bfloat16 as a dtype, from its name or type; `ValueError` for any other."""
    name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"dtype={name!r} is not supported; known: {', '.join(COMPUTE_DTYPES)}")
    return jnp.dtype(name)


def family_of(config: PreTrainedConfig) -> Family:
    """The family of `config.model_type`; `ValueError` with the supported ones if there is none."""
    if config.model_type not in FAMILIES:
        raise ValueError(_unsupported(config.model_type))
    return FAMILIES[config.model_type]


def _read(config: PreTrainedConfig) -> tuple[Family, BlockConfig]:
    family = family_of(config)
    return family, family.read_config(config.to_dict())


def load_config(directory: Path) -> PreTrainedConfig:
    """Read `directory`'s config.json; `OSError` if unreadable, `ValueError` if not supported."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} has no {CONFIG_FILE}; it holds: {listing(directory)}. "
            "A Hugging Face checkpoint directory is expected"
        )
    values = read_json(path)
    if values.get("model_type") not in FAMILIES:
        raise ValueError(f"{path}: {_unsupported(values.get('model_type'))}")
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a valid config: {' '.join(str(error).split())}") from error


def _unsupported(model_type: object) -> str:
    return f"model_type={model_type!r} is not supported; supported: {', '.join(sorted(FAMILIES))}"


def _own_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy that is the model's own, with the two outputs of question answering."""
    config = copy.deepcopy(config)
    if config.num_labels != 2:
        config.num_labels = 2
    return config


# ---- names ---------------------------------------------------------------------------------------


def _named(model: AutoModelForQuestionAnswering) -> Named:
    """All that a checkpoint of the model holds, by its whole names there."""
    family = family_of(model.config)
    return named_parameters(model, family, family.prefix)


def _resolved(config: LoraConfig, model: AutoModelForQuestionAnswering) -> LoraConfig:
    name_of = partial(layer_name, family_of(model.config))
    layers = [name_of(path) for path, _ in adapters.dense_layers(model.encoder)]
    return adapters.resolved(config, layers, _named(model))
