"""Stage 4 of 7: LoRA adapters (Hu et al. 2021), compatible with PEFT's names and files."""

import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from qa_flax import messages
from qa_flax.messages import escaped, first_few, shown
from qa_flax.models.dropout import dropout
from qa_flax.models.files import (
    ADAPTER_CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    checkpoint_directory,
    read_json,
)
from qa_flax.models.grouped import LoraConvolution, PointwiseConvolution
from qa_flax.models.layers import NO_RNGS, Dense, Fixed, ParamPath, zeros
from qa_flax.models.patterns import matching
from qa_flax.models.weights import NamedParameters
from qa_flax.ranges import BELOW_1, SEED, Range, check_numbers

_MOST = 10**6
_RANGES = {
    "r": Range(f"a whole number from 1 to {_MOST:,}", lambda v: 1 <= v <= _MOST, is_whole=True),
    "lora_alpha": Range(f"a number from {-_MOST:,} to {_MOST:,}", lambda v: abs(v) <= _MOST),
    "lora_dropout": BELOW_1,
}

logger = messages.logger(__name__)


# ---- configuration -------------------------------------------------------------------------------


class TaskType(StrEnum):
    """PEFT's task types, for `LoraConfig(task_type=...)`; only question answering is supported.

    Example:
        >>> from qa_flax import LoraConfig, TaskType
        >>> config = LoraConfig(task_type=TaskType.QUESTION_ANS, target_modules=["query"])
        >>> config.task_type
        'QUESTION_ANS'
    """

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


@dataclass(frozen=True, init=False)
class LoraConfig:
    """The configuration of LoRA adapters, with the names and defaults of PEFT's `LoraConfig`.

    Two defaults differ: `task_type` is "QUESTION_ANS", and `target_modules` must be given, because
    there are no defaults for each model type. PEFT's other settings are accepted with values that
    switch them off, and refused by name otherwise.

    Args:
        r: the rank of the adapters: the columns of A and the rows of B.
        target_modules: the dense layers that get adapters. A list or set has PyTorch's names of
            layers or their last components, such as `["query", "value"]`. A string is a regular
            expression that must match the full name, or "all-linear" for every dense layer except
            the span head.
        lora_alpha: the output of an adapter is scaled by `lora_alpha / r`.
        lora_dropout: dropout probability of an adapter's input.
        use_rslora: scale by `lora_alpha / sqrt(r)` instead (Kalajdzievski 2023).
        modules_to_save: modules that are trained in full. Only the span head is supported, and it
            is always trained.
        task_type: "QUESTION_ANS" or None.
        bias: "none".
        **peft_settings: PEFT's other settings, such as `inference_mode`.

    Raises:
        ValueError: a value is not supported.
        TypeError: PEFT has no such setting.

    Example:
        >>> from qa_flax import LoraConfig
        >>> config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
        >>> config.scaling
        2.0
    """

    r: int = 8
    target_modules: Sequence[str] | str | None = None
    lora_alpha: int | float = 8
    lora_dropout: int | float = 0.0
    use_rslora: bool = False
    modules_to_save: Sequence[str] | None = None
    task_type: str | None = "QUESTION_ANS"
    bias: str = "none"

    def __init__(
        self,
        *,
        r: int = 8,
        target_modules: Collection[str] | str | None = None,
        lora_alpha: int | float = 8,
        lora_dropout: int | float = 0.0,
        use_rslora: bool = False,
        modules_to_save: Collection[str] | None = None,
        task_type: str | None = "QUESTION_ANS",
        bias: str = "none",
        **peft_settings: Any,
    ):
        _check_peft_settings(peft_settings)
        settings = {
            "r": r,
            "target_modules": target_modules,
            "lora_alpha": lora_alpha,
            "lora_dropout": lora_dropout,
            "use_rslora": use_rslora,
            "modules_to_save": modules_to_save,
            "task_type": getattr(task_type, "value", task_type),
            "bias": bias,
        }
        _check_settings(settings)
        for name, value in settings.items():
            is_list = name in ("target_modules", "modules_to_save")
            object.__setattr__(self, name, _as_tuple(value) if is_list else value)

    @property
    def scaling(self) -> float:
        """The factor of an adapter's output."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def targets(self, layer: str) -> bool:
        """Return whether the dense layer with the PyTorch name `layer` gets an adapter.

        Raises `ValueError` as `targeted` does.
        """
        return layer in self.targeted([layer])

    def targeted(self, layers: Sequence[str]) -> frozenset[str]:
        """Return those of some dense layers, by their PyTorch names, that get an adapter.

        Raises:
            ValueError: `target_modules` is no regular expression, or one whose match takes too
                long.
        """
        targets = self.target_modules or ()
        if targets == "all-linear":
            return frozenset(layers)
        if isinstance(targets, str):
            try:
                return matching(targets, tuple(layers))
            except ValueError as error:
                raise ValueError(f"target_modules={error}") from error
        return frozenset(n for n in layers if any(_has_suffix(n, target) for target in targets))

    @classmethod
    def from_peft(cls, file: Path) -> "LoraConfig":
        """Read adapter_config.json.

        Raises:
            ValueError: settings are not supported; the message lists them.
        """
        values = read_json(file)
        settings = {name: values[name] for name in asdict(cls()) if name in values}
        others = {name: v for name, v in values.items() if v and name not in settings}
        init = values.get("init_lora_weights")
        unsupported = [
            f"{escaped(name)}={shown(value)}"
            for name, value in others.items()
            if name not in IGNORED_SETTINGS and value != CONSTANT_SETTINGS.get(name)
            if name not in ("init_lora_weights", "eva_config") or init not in INITIALIZATIONS
        ]
        if unsupported:
            raise ValueError(f"{file}: these settings are not supported: {first_few(unsupported)}")
        try:
            _check_settings(settings)
            return cls(**settings)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: {error}") from error

    def to_peft(self, base: str | None) -> dict[str, Any]:
        """Return the contents of adapter_config.json.

        Args:
            base: the name or path of the base model, if it is known.
        """
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        base_settings = {"base_model_name_or_path": base, "inference_mode": True}
        return CONSTANT_SETTINGS | base_settings | settings


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse values of wrong types, and those that are not supported, with `ValueError`."""
    check_numbers(_RANGES, **{name: settings[name] for name in _RANGES if name in settings})
    use_rslora = settings.get("use_rslora", False)
    if not isinstance(use_rslora, bool):
        raise ValueError(f"use_rslora={shown(use_rslora)}: it must be true or false")
    for name, supported in (("task_type", ("QUESTION_ANS", None)), ("bias", ("none",))):
        if (value := settings.get(name, supported[0])) not in supported:
            choices = ", ".join(map(repr, supported))
            raise ValueError(f"{name}={shown(value)} is not supported; supported: {choices}")
    for name in ("target_modules", "modules_to_save"):
        value: Any = settings.get(name)
        is_list = isinstance(value, Collection) and not isinstance(value, Mapping | str)
        is_valid = is_list and all(isinstance(item, str) for item in value)
        is_text = name == "target_modules" and isinstance(value, str)
        if value is not None and not is_valid and not is_text:
            raise ValueError(
                f"{name}={shown(value)}: it must be a list of names of modules"
                + ", or a text" * (name == "target_modules")
            )


def _as_tuple(names: Collection[str] | str | None) -> Any:
    """A hashable form, because the config is part of a model's graph definition."""
    if names is None or isinstance(names, str):
        return names
    return tuple(sorted(names) if isinstance(names, set | frozenset) else names)


# PEFT's further settings, which must be off here: None, False, 0 or empty.
OFF_SETTINGS = frozenset(
    {
        "alora_invocation_tokens",
        "alpha_pattern",
        "arrow_config",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "kasa_config",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_bias",
        "lora_ga_config",
        "megatron_config",
        "monteclora_config",
        "rank_pattern",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "use_dora",
        "use_qalora",
        "velora_config",
    }
)


def _check_peft_settings(settings: Mapping[str, Any]) -> None:
    known = OFF_SETTINGS.union(IGNORED_SETTINGS, CONSTANT_SETTINGS, ["runtime_config"])
    for name, value in settings.items():
        if name not in known:
            raise TypeError(f"LoraConfig has no setting {name!r}")
        if name in OFF_SETTINGS and value:
            raise ValueError(f"LoraConfig: {name}={shown(value)} is not supported; leave it out")
        if name in CONSTANT_SETTINGS and value is not None:
            constant = CONSTANT_SETTINGS[name]
            if getattr(value, "value", value) != constant:
                raise ValueError(
                    f"LoraConfig: {name}={shown(value)} is not supported; supported: {constant!r}"
                )


# Settings of adapter_config.json with a single supported value, and settings that have no effect
# here. Any setting that is neither in these tables nor in `LoraConfig` must be off: null, false, 0
# or empty.
CONSTANT_SETTINGS = {"peft_type": "LORA", "init_lora_weights": True}
# PEFT's ways to fill new adapters that leave the base model as it is, so that they do not matter
# for adapters that are loaded. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base
# model's weights when the adapters are loaded, too.
INITIALIZATIONS = ("gaussian", "orthogonal", "eva", "mica")
IGNORED_SETTINGS = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
)


class PeftModel:
    """PEFT's way to load adapters onto a model.

    Example:
        >>> from qa_flax import AutoModelForQuestionAnswering, LoraConfig, PeftModel
        >>> from qa_flax import get_peft_model
        >>> base = AutoModelForQuestionAnswering.from_pretrained("bert-base-uncased")
        >>> config = LoraConfig(r=4, target_modules=["query", "value"])
        >>> get_peft_model(base, config).save_pretrained("adapter")
        >>> PeftModel.from_pretrained(base, "adapter").lora.r
        4
    """

    @staticmethod
    def from_pretrained(
        model: Any,
        model_id: Any,
        adapter_name: str = "default",
        is_trainable: bool = False,
        **keywords: Any,
    ) -> Any:
        """Return a copy of `model` with the adapters of a directory: `model.with_adapter`.

        Args:
            model: the base model.
            model_id: the directory, or the URL of one in a bucket.
            adapter_name: "default"; a model has one set of adapters.
            is_trainable: accepted; the adapters can be trained in any case.
            **keywords: those that tell PyTorch where to put weights have no effect.

        Raises:
            ValueError: a keyword is not supported, or the adapters do not fit the model.
        """
        placement = {"torch_device", "low_cpu_mem_usage", "autocast_adapter_dtype", "device_map"}
        if unknown := sorted(keywords.keys() - placement):
            raise ValueError(
                f"PeftModel.from_pretrained: {', '.join(unknown)} is not supported; leave it out"
            )
        if adapter_name != "default":
            raise ValueError(
                f"adapter_name={adapter_name!r}: a model has one set of adapters, 'default'; merge "
                "the first with merge_and_unload() to add another"
            )
        return model.with_adapter(model_id)


class BaseModel(NamedTuple):
    """The base model that adapters belong to: its name or path, and its revision on the hub."""

    name: str
    revision: str | None


GIVE_BASE = "give the base model's folder or hub id with base_model="
"""The advice of messages in Python's words; `qa-flax run` names its argument instead."""


def read_base_model(directory: Path) -> BaseModel:
    """Return the base model that a directory of adapters names.

    Raises:
        ValueError: the directory names none.
    """
    file = directory / ADAPTER_CONFIG_FILE
    values = read_json(file)
    name, revision = values.get("base_model_name_or_path"), values.get("revision")
    if name is None or name == "":
        raise ValueError(f"{file} has no base_model_name_or_path; {GIVE_BASE}")
    if not isinstance(name, str) or not isinstance(revision, str | None):
        raise ValueError(
            f"{file}: base_model_name_or_path={shown(name)} with revision={shown(revision)} is not "
            f"the name of a model; {GIVE_BASE}"
        )
    return BaseModel(name, revision)


def base_directory(
    directory: Path, base_model: str | os.PathLike[str] | None = None, **hub: Any
) -> tuple[BaseModel, Path]:
    """Find the base model of a directory of adapters.

    Args:
        directory: the adapters.
        base_model: the base model's directory, URL or name; None: the one that the adapters name.
        **hub: further arguments of `huggingface_hub.snapshot_download`.

    Returns:
        Its name, and its local directory.

    Raises:
        OSError: the base model does not exist or could not be downloaded.
        ValueError: the adapters name none, it has adapters itself, or `directory` also contains a
            full model.
    """
    full = [name for name in (WEIGHTS_FILE, INDEX_FILE) if (directory / name).is_file()]
    if full:
        raise ValueError(
            f"{directory} contains both a full model ({full[0]}) and adapters "
            f"({ADAPTER_CONFIG_FILE}); move one of them to another directory"
        )
    base = read_base_model(directory) if base_model is None else BaseModel(str(base_model), None)
    try:
        folder = checkpoint_directory(base.name, revision=base.revision, **hub)
    except OSError as error:
        raise OSError(
            f"the base model of the adapters in {directory} cannot be loaded: {error}; "
            f"if it is at another place, {GIVE_BASE}"
        ) from error
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        raise ValueError(
            f"the base model of the adapters in {directory} is {base.name}, which has adapters "
            "itself; only one set of adapters can be loaded. Save that model without adapters, as "
            f"merge_and_unload() returns it, and {GIVE_BASE}"
        )
    return base, folder


def refuse_base(base_model: Any, directory: Path) -> None:
    """Refuse a base model that was given for a folder without adapters, if one was."""
    if base_model is not None:
        raise ValueError(
            f"base_model={str(base_model)!r} is for adapters, but {directory} has no "
            f"{ADAPTER_CONFIG_FILE}; leave it out"
        )


def resolve_config(config: LoraConfig, layers: Sequence[str], named: NamedParameters) -> LoraConfig:
    """Complete `config` for one model.

    `target_modules="all-linear"` is replaced by the layers' names, and `modules_to_save` by the
    names of the span head's modules.

    Args:
        config: the user's configuration.
        layers: PyTorch's names of the model's dense layers.
        named: all parameters of the model.

    Raises:
        ValueError: `target_modules` matches no layer, or `modules_to_save` has more than the head.
    """
    short = ", ".join(sorted({re.sub(r"\.\d+\.", ".*.", name) for name in layers}))
    targets = config.target_modules
    if not config.targeted(layers):
        raise ValueError(
            f"target_modules={shown(targets)} matches none of this model's dense layers, "
            f"which are: {short}"
        )
    if targets == "all-linear":
        targets = tuple(layers)
    elif not isinstance(targets, str):
        for target in targets or ():
            if not any(_has_suffix(layer, target) for layer in layers):
                logger.warning(
                    "target_modules: %s matches none of the layers %s", escaped(target), short
                )
    head = [name.rpartition(".")[0] for name, (path, _) in named.items() if path[0] == "head"]
    for module in config.modules_to_save or ():
        if any(_is_inside(name, module) and path[0] != "head" for name, (path, _) in named.items()):
            raise ValueError(
                f"modules_to_save={shown(module)} is not supported: besides the adapters only the "
                f"span head is trained ({', '.join(dict.fromkeys(head))})"
            )
    return replace(config, target_modules=targets, modules_to_save=tuple(dict.fromkeys(head)))


def _has_suffix(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _is_inside(name: str, module: str) -> bool:
    return f".{module}." in f".{name}"


# ---- the model -----------------------------------------------------------------------------------


class LoraLinear(Dense):
    """A frozen dense layer with an adapter: `x W + b + scaling (x A) B`."""

    def __init__(self, base: nnx.Linear, config: LoraConfig):
        n_in, n_out = base.in_features, base.out_features
        super().__init__(
            n_in,
            n_out,
            use_bias=base.use_bias,
            dtype=base.dtype,
            kernel_init=zeros,
            bias_init=zeros,
            rngs=NO_RNGS,
        )
        self.kernel = base.kernel
        if base.bias is not None:
            self.bias = base.bias
        self.lora_a = nnx.Param(zeros(None, (n_in, config.r)))
        self.lora_b = nnx.Param(zeros(None, (config.r, n_out)))
        self.scaling, self.dropout_rate = config.scaling, float(config.lora_dropout)

    def __call__(
        self,
        inputs: Float[Array, "*rows n_in"],
        out_sharding: Any = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "*rows n_out"]:
        """Apply the layer and its adapter in the compute dtype.

        The `dropout` stream of `rngs` is used for dropout on the adapter's input; None means no
        dropout. `out_sharding` is passed to `nnx.Linear`.
        """
        dropped = dropout(inputs, self.dropout_rate, rngs)
        dropped, a, b = self.promote_dtype(
            (dropped, self.lora_a[...], self.lora_b[...]), dtype=self.dtype
        )
        return super().__call__(inputs, out_sharding) + ((dropped @ a) @ b) * self.scaling


def dense_layers(module: nnx.Module) -> list[tuple[ParamPath, Any]]:
    """Return the paths and modules of all dense layers, which are those that can have adapters."""
    kinds = nnx.Linear, PointwiseConvolution
    return [(path, node) for path, node in nnx.iter_modules(module) if isinstance(node, kinds)]


def add_adapters(
    encoder: nnx.Module, config: LoraConfig, layer_name: Callable[[ParamPath], str]
) -> nnx.Module:
    """Freeze the encoder and add adapters to the layers that `config` targets.

    The adapters are filled with zeros; `initial_adapters` gives the values to train from.

    Args:
        encoder: the encoder.
        config: the configuration of the adapters.
        layer_name: returns PyTorch's name of the dense layer at a path.
    """

    names = {path: layer_name(path) for path, _ in dense_layers(encoder)}
    targeted = config.targeted(list(names.values()))

    def freeze_and_adapt(path: ParamPath, node: Any) -> Any:
        if isinstance(node, nnx.Module):
            for name, value in list(vars(node).items()):
                if isinstance(value, nnx.Param):
                    setattr(node, name, Fixed(value[...]))
        if names.get(path) not in targeted:
            return node
        if isinstance(node, PointwiseConvolution):
            rate = float(config.lora_dropout)
            return LoraConvolution(node, config.r, config.scaling, rate, names[path])
        assert isinstance(node, nnx.Linear)
        return LoraLinear(node, config)

    return nnx.recursive_map(freeze_and_adapt, encoder)


# ---- parameters ----------------------------------------------------------------------------------


def initial_adapters(seed: int) -> Callable[[ParamPath, tuple[int, ...]], np.ndarray]:
    """Build a function of path and shape that returns the initial values of an adapter's matrix.

    As in PEFT, A is Kaiming uniform with a = sqrt(5), and B is zero. An adapter with these values
    does not change the model's output.
    """
    check_numbers({"seed": SEED}, seed=seed)
    random = np.random.default_rng(seed)

    def array(path: ParamPath, shape: tuple[int, ...]) -> np.ndarray:
        if path[-1] == "lora_b":
            return np.zeros(shape, np.float32)
        bound = 1.0 / math.sqrt(shape[-2])
        return random.uniform(-bound, bound, shape).astype(np.float32)

    return array


def saved_parameters(named: NamedParameters, config: LoraConfig) -> NamedParameters:
    """Return the parameters that PEFT saves, by its names: adapters and `modules_to_save`."""
    modules = config.modules_to_save or ()
    return {
        f"base_model.model.{name}": (path, param)
        for name, (path, param) in named.items()
        if isinstance(param, nnx.Param)
        and (path[0] != "head" or any(_is_inside(name, module) for module in modules))
    }


def merge_adapters(
    arrays: Mapping[ParamPath, np.ndarray], config: LoraConfig
) -> dict[ParamPath, np.ndarray]:
    """Add the scaled product A B of each adapter to its layer's kernel, and remove the adapters.

    Raises:
        ValueError: the kernel of a layer is in groups, so that it cannot hold the product.
    """
    merged = dict(arrays)
    for *layer, leaf in arrays:
        if leaf == "lora_a":
            a, b = merged.pop((*layer, "lora_a")), merged.pop((*layer, "lora_b"))
            if a.shape[-1] != b.shape[-2]:
                raise ValueError(
                    f"the adapter of {'.'.join(map(str, layer))} cannot be merged: the layer's "
                    "weights are in groups, and the adapter's are not; use the model with adapters"
                )
            update = np.float32(config.scaling) * (a @ b)
            merged[*layer, "kernel"] = merged[*layer, "kernel"] + update
    return merged
