"""Stage 4 of 7: the model as Hugging Face users know it: config.json + safetensors in and out."""

import copy
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import ArrayLike, Int
from safetensors.numpy import save_file
from transformers import AutoConfig, PreTrainedConfig

from qa_flax.models.families import FAMILIES, Family
from qa_flax.models.files import (
    CONFIG_FILE,
    FLOAT_DTYPES,
    WEIGHTS_FILE,
    StoredTensor,
    checkpoint_directory,
    listing,
    read_json,
    replacing,
    stored_tensors,
)
from qa_flax.models.layers import Fixed, ParamPath, SpanLogits, Stack

# A parameter's place in the model and its shape -> its float32 values.
MakeArray = Callable[[ParamPath, tuple[int, ...]], np.ndarray]

logger = logging.getLogger(__name__)

COMPUTE_DTYPES = ("float32", "bfloat16")


class AutoModelForQuestionAnswering(nnx.Module):
    """An encoder with a span head, made from a Hugging Face config or checkpoint.

    Parameters are float32; `dtype` is the compute dtype. Call it with NumPy or JAX arrays `[B, L]`.
    Make one with `from_pretrained` or `from_config`; the class itself gives parameters of zeros.
    """

    def __init__(self, config: PreTrainedConfig, *, dtype: Any = jnp.float32):
        family = family_of(config)
        sizes = family.read_config(config.to_dict())
        self.dtype = compute_dtype(dtype)
        self.encoder: Any = family.encoder(sizes, dtype=self.dtype)
        self.head: Any = family.head(sizes, dtype=self.dtype)
        self._config = _ByIdentity(config)

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
        return _filled(cls._shapes_only(config, dtype), _initial_arrays(config, seed))

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

        `config` replaces the checkpoint's own. Raises `OSError` for files that are absent or
        unreadable, and `ValueError` with the whole difference for a checkpoint that does not fit.
        """
        directory = checkpoint_directory(
            pretrained_model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        config = _own_config(load_config(directory) if config is None else config)
        model = cls._shapes_only(config, dtype)
        return _filled(model, _stored_arrays(model, directory, seed))

    @classmethod
    def _shapes_only(cls, config: PreTrainedConfig, dtype: Any) -> "AutoModelForQuestionAnswering":
        # No arrays yet, so that nothing is made to be thrown away.
        return nnx.eval_shape(lambda: cls(config, dtype=dtype))

    def take_over(self, params: Any) -> None:
        """Put parameters (a state of the same model, NumPy or JAX arrays) in place of its own."""
        nnx.update(self, jax.tree.map(jnp.asarray, params))

    def num_parameters(self) -> int:
        """How many numbers are learnt."""
        return sum(param.size for _, param in _parameters(self))

    def with_dtype(self, dtype: Any) -> "AutoModelForQuestionAnswering":
        """The same parameters, not copied, in a model made anew from `config` for `dtype`."""
        graphdef = nnx.graphdef(self._shapes_only(self.config, dtype))
        return nnx.merge(graphdef, nnx.state(self))

    def with_remat(self, remat: bool = True) -> "AutoModelForQuestionAnswering":
        """The same parameters, not copied, with or without gradient checkpointing."""
        model = nnx.merge(*nnx.split(self))
        for _, module in nnx.iter_modules(model):
            if isinstance(module, Stack):
                module.remat = remat
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, each whole or not at all.

        PyTorch transformers' `AutoModelForQuestionAnswering.from_pretrained` reads them exactly.
        """
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        family = family_of(self.config)
        config = copy.deepcopy(self.config)
        config.architectures = [family.architecture]
        config.dtype = "float32"
        tensors = {
            weight_name(path, family, prefix=family.prefix): torch_layout(path, param[...])
            for path, param in _parameters(self)
        }
        with replacing(directory / CONFIG_FILE) as temporary:
            temporary.write_text(config.to_json_string())
        with replacing(directory / WEIGHTS_FILE) as temporary:
            # transformers refuses a file that does not say its format.
            save_file(tensors, temporary, metadata={"format": "pt"})
            # safetensors writes for the owner's eyes alone; the user's umask decides, as elsewhere.
            shutil.copymode(directory / CONFIG_FILE, temporary)


def _int32(values: ArrayLike | None) -> jax.Array | None:
    return None if values is None else jnp.asarray(values, jnp.int32)


# ---- configs -------------------------------------------------------------------------------------


class _ByIdentity:
    """Holds what cannot be hashed, so that a module with it can still be a key of jit's cache."""

    def __init__(self, value: PreTrainedConfig):
        self.value = value


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


# ---- names and layouts ---------------------------------------------------------------------------

# A dense kernel is [in, out] here and [out, in] in PyTorch; the rest differs by name only.
LEAF_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}


def weight_name(path: ParamPath, family: Family, prefix: str = "") -> str:
    """The checkpoint's name of the parameter at `path`, the encoder's with `prefix` before it."""
    part, *modules, leaf = map(str, path)
    names = {"encoder": family.weight_names, "head": family.head_weight_names}[part]
    module = ".".join(modules)
    for pattern, replacement in names.items():
        if match := re.fullmatch(pattern, module):
            before = prefix if part == "encoder" else ""
            return f"{before}{match.expand(replacement)}.{LEAF_NAMES[leaf]}"
    raise KeyError(f"no checkpoint name for the module {module}: a row is missing in its table")


def _canonical(name: str, family: Family) -> str:
    """A checkpoint's name without the prefix and with today's LayerNorm words (was gamma, beta)."""
    name = name.removeprefix(family.prefix)
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def torch_layout(path: ParamPath, value: jax.Array) -> np.ndarray:
    """The array as PyTorch lays out the parameter at `path`."""
    array = np.asarray(value)
    # safetensors writes the memory as it lies, so a transposed view must be copied.
    return np.ascontiguousarray(array.T if path[-1] == "kernel" else array)


def _our_layout(path: ParamPath, array: np.ndarray) -> np.ndarray:
    return array.T if path[-1] == "kernel" else array


# ---- fitting it to the model ---------------------------------------------------------------------


def _filled(
    model: AutoModelForQuestionAnswering, array: MakeArray
) -> AutoModelForQuestionAnswering:
    """`model` with `array(path, shape)` for each parameter."""
    # A copy: JAX must be able to give its memory away (donation), which it cannot do with NumPy's.
    new = [(path, p.replace(jnp.array(array(path, p.shape)))) for path, p in _parameters(model)]
    return nnx.merge(nnx.graphdef(model), nnx.from_flat_state(new))


def _parameters(model: AutoModelForQuestionAnswering) -> list[tuple[ParamPath, nnx.Variable]]:
    """All that a checkpoint holds, trained or not, with its path, in NNX's own, stable order."""
    return list(nnx.to_flat_state(nnx.state(model, (nnx.Param, Fixed))))


def _initial_arrays(config: PreTrainedConfig, seed: int) -> MakeArray:
    """New weights. NumPy's generator gives the same ones on any hardware, and without compiling."""
    family = family_of(config)
    sizes = family.read_config(config.to_dict())
    random = np.random.default_rng(seed)
    fixed = family.fixed_arrays(sizes)

    def array(path: ParamPath, shape: tuple[int, ...]) -> np.ndarray:
        if path in fixed:
            return fixed[path]
        return family.initial_array(path, shape, sizes, random)

    return array


def _stored_arrays(model: AutoModelForQuestionAnswering, directory: Path, seed: int) -> MakeArray:
    """The checkpoint's weights, once it is known to fit, and a new span head if it has none."""
    family = family_of(model.config)
    named = {weight_name(path, family): (path, p) for path, p in _parameters(model)}
    shapes = {name: _torch_shape(path, p.shape) for name, (path, p) in named.items()}
    stored = _used_tensors(directory, family, shapes.keys())
    # The outputs are the head proper; a head's other layers may come from another task's.
    outputs = {name for name, (path, _) in named.items() if path[:2] == ("head", "outputs")}
    if not stored.keys() & outputs:
        head = sorted(n for n, (p, _) in named.items() if p[0] == "head" and n not in stored)
        shapes = {name: shape for name, shape in shapes.items() if name not in head}
        logger.warning(
            "%s has no span head: %s are newly initialised from seed %d. "
            "Fine-tune the model before using its answers.",
            directory,
            " and ".join(head),
            seed,
        )
    _check_fit(directory, shapes, stored)
    initial = _initial_arrays(model.config, seed)

    def array(path: ParamPath, shape: tuple[int, ...]) -> np.ndarray:
        tensor = stored.get(weight_name(path, family))
        return initial(path, shape) if tensor is None else _our_layout(path, tensor.read())

    return array


def _used_tensors(
    directory: Path, family: Family, wanted: Collection[str]
) -> dict[str, StoredTensor]:
    """The checkpoint's tensors by canonical name, without those not wanted of other tasks."""
    used: dict[str, StoredTensor] = {}
    for tensor in stored_tensors(directory):
        name = _canonical(tensor.name, family)
        unused = any(re.fullmatch(pattern, name) for pattern in family.unused_weights)
        if unused and name not in wanted:
            continue
        if name in used:
            raise ValueError(
                f"{directory} holds {name} twice, as {used[name].name} and {tensor.name}; "
                "remove one of them"
            )
        used[name] = tensor
    return used


def _check_fit(
    directory: Path, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor]
) -> None:
    """Raise with the whole difference unless names, shapes and dtypes agree both ways."""
    problems = [f"missing: {n} {list(shapes[n])}" for n in sorted(shapes.keys() - stored.keys())]
    problems += [
        f"unexpected: {stored[n].name} {list(stored[n].shape)}"
        for n in sorted(stored.keys() - shapes.keys())
    ]
    for name in sorted(shapes.keys() & stored.keys()):
        tensor = stored[name]
        if tensor.shape != shapes[name]:
            problems.append(
                f"wrong shape: {tensor.name} is {list(tensor.shape)} in the checkpoint, "
                f"{list(shapes[name])} by {CONFIG_FILE}"
            )
        if tensor.dtype not in FLOAT_DTYPES:
            problems.append(
                f"wrong dtype: {tensor.name} is {tensor.dtype}; known: {', '.join(FLOAT_DTYPES)}"
            )
    if problems:
        raise ValueError(
            f"the weights in {directory} do not fit the model its {CONFIG_FILE} describes, "
            f"{len(problems)} difference(s):\n  " + "\n  ".join(problems)
        )


def _torch_shape(path: ParamPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if path[-1] == "kernel" else shape
