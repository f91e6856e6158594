"""Stage 4 of 7: LoRA (Hu et al. 2021), in PEFT's words: small trained layers beside frozen ones."""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from qa_flax.models.dropout import dropout
from qa_flax.models.files import ADAPTER_CONFIG_FILE, WEIGHTS_FILE, read_json
from qa_flax.models.layers import NO_RNGS, Dense, Fixed, ParamPath, zeros
from qa_flax.models.weights import Named

logger = logging.getLogger(__name__)


# ---- what is wanted ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """PEFT's `LoraConfig`: its names and defaults; what is not here is not supported.

    Args:
        r: the rank, columns of A and rows of B.
        target_modules: the dense layers that get adapters, by PyTorch's names: the whole name or
            what comes after a dot in it, as `["query", "value"]`. A text is a regular expression
            of whole names, but for "all-linear": every dense layer before the span head.
        lora_alpha: an adapter's result is multiplied by `lora_alpha / r`,
        use_rslora: or by `lora_alpha / sqrt(r)` (Kalajdzievski 2023).
        lora_dropout: of an adapter's input.
        modules_to_save: what else is trained; the span head always is, and nothing else can be.
        task_type, bias: "QUESTION_ANS" (or None), "none".

    Raises:
        ValueError: a value is not supported.
    """

    r: int = 8
    target_modules: Sequence[str] | str | None = None
    lora_alpha: int | float = 8
    lora_dropout: int | float = 0.0
    use_rslora: bool = False
    modules_to_save: Sequence[str] | None = None
    task_type: str | None = "QUESTION_ANS"
    bias: str = "none"

    def __post_init__(self):
        for name in ("target_modules", "modules_to_save"):
            if (value := getattr(self, name)) is not None and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))  # hashable, as a module's parts are
        if self.r < 1:
            raise ValueError(f"r={self.r}: the rank of LoRA adapters must be at least 1")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise ValueError(f"lora_dropout={self.lora_dropout}: it must be in [0, 1)")
        for name, known in (("task_type", ("QUESTION_ANS", None)), ("bias", ("none",))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is not supported; known: {known}")

    @property
    def scaling(self) -> float:
        """What an adapter's result is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def targets(self, layer: str) -> bool:
        """Whether the dense layer of that name gets an adapter."""
        wanted = self.target_modules or ()
        if isinstance(wanted, str):
            return wanted == "all-linear" or re.fullmatch(wanted, layer) is not None
        return any(_ends(layer, target) for target in wanted)

    @classmethod
    def from_peft(cls, file: Path) -> "LoraConfig":
        """Read adapter_config.json; `ValueError` names every setting that is not supported."""
        values = read_json(file)
        own = {name: values[name] for name in asdict(cls()) if name in values}
        refused = [
            f"{name}={value!r}"
            for name, value in values.items()
            if value and name not in own and name not in WITHOUT_EFFECT and value != FIXED.get(name)
        ]
        if refused:
            raise ValueError(f"{file}: not supported: {', '.join(refused)}")
        try:
            return cls(**own)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: {error}") from error

    def to_peft(self, base: str | None) -> dict[str, Any]:
        """What adapter_config.json holds; `base` is the name or path of the whole model."""
        own = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return FIXED | {"base_model_name_or_path": base, "inference_mode": True} | own


# Of adapter_config.json: what is always so, and what changes no result. Any other setting must be
# off: null, false or empty.
FIXED = {"peft_type": "LORA", "init_lora_weights": True}
WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
)


class Base(NamedTuple):
    """Which model adapters are made for."""

    name: str
    revision: str | None


def base_of(directory: Path) -> Base:
    """As a directory of adapters names it; `ValueError` if it does not, or holds a model itself."""
    file = directory / ADAPTER_CONFIG_FILE
    if (directory / WEIGHTS_FILE).is_file():
        raise ValueError(
            f"{directory} holds a whole model ({WEIGHTS_FILE}) and the adapters of one "
            f"({ADAPTER_CONFIG_FILE}); move either elsewhere"
        )
    values = read_json(file)
    if not (name := values.get("base_model_name_or_path")):
        raise ValueError(
            f"{file} has no base_model_name_or_path; load that model and call its "
            f"with_adapter({str(directory)!r})"
        )
    return Base(name, values.get("revision"))


def resolved(config: LoraConfig, layers: Sequence[str], named: Named) -> LoraConfig:
    """`config` as it is for one model: "all-linear" by names, its head as `modules_to_save`.

    Args:
        config: as given.
        layers: the names of the model's dense layers.
        named: all its parameters.

    Raises:
        ValueError: none of the layers is meant, or more than the head is to be trained.
    """
    short = ", ".join(sorted({re.sub(r"\.\d+\.", ".*.", name) for name in layers}))
    targets = config.target_modules
    if not any(map(config.targets, layers)):
        raise ValueError(
            f"target_modules={targets!r} are none of this model's dense layers, which are: {short}"
        )
    if targets == "all-linear":
        targets = tuple(layers)
    elif not isinstance(targets, str):
        for target in targets or ():
            if not any(_ends(layer, target) for layer in layers):
                logger.warning("target_modules: %s is none of the layers %s", target, short)
    head = [name.rpartition(".")[0] for name, (path, _) in named.items() if path[0] == "head"]
    for module in config.modules_to_save or ():
        if any(_holds(module, name) and path[0] != "head" for name, (path, _) in named.items()):
            raise ValueError(
                f"modules_to_save={module!r}: beside adapters only the span head is trained "
                f"({', '.join(dict.fromkeys(head))})"
            )
    return replace(config, target_modules=targets, modules_to_save=tuple(dict.fromkeys(head)))


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _holds(module: str, name: str) -> bool:
    return f".{module}." in f".{name}"


# ---- the model -----------------------------------------------------------------------------------


class LoraLinear(Dense):
    """A frozen dense layer with an adapter beside it: `x W + b + scaling (x A) B`."""

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
        """In the compute dtype; `rngs=None` means no dropout of the adapter's input."""
        dropped = dropout(inputs, self.dropout_rate, rngs)
        dropped, a, b = self.promote_dtype(
            (dropped, self.lora_a[...], self.lora_b[...]), dtype=self.dtype
        )
        return super().__call__(inputs, out_sharding) + ((dropped @ a) @ b) * self.scaling


def dense_layers(module: nnx.Module) -> list[tuple[ParamPath, nnx.Linear]]:
    """The layers that can have adapters, with their paths."""
    return [(p, node) for p, node in nnx.iter_modules(module) if isinstance(node, nnx.Linear)]


def add_adapters(
    encoder: nnx.Module, config: LoraConfig, name_of: Callable[[ParamPath], str]
) -> nnx.Module:
    """The encoder frozen, with adapters of zeros where `config` wants them.

    `name_of` gives PyTorch's name of the dense layer at a path.
    """

    def change(path: ParamPath, node: Any) -> Any:
        if isinstance(node, nnx.Module):
            for name, value in list(vars(node).items()):
                if isinstance(value, nnx.Param):
                    setattr(node, name, Fixed(value[...]))
        if isinstance(node, nnx.Linear) and config.targets(name_of(path)):
            return LoraLinear(node, config)
        return node

    return nnx.recursive_map(change, encoder)


# ---- its parameters ------------------------------------------------------------------------------


def initial_adapters(seed: int) -> Callable[[ParamPath, tuple[int, ...]], np.ndarray]:
    """As PEFT begins: A Kaiming uniform with a = sqrt(5); B zero, so that nothing changes yet."""
    random = np.random.default_rng(seed)

    def array(path: ParamPath, shape: tuple[int, ...]) -> np.ndarray:
        if path[-1] == "lora_b":
            return np.zeros(shape, np.float32)
        bound = 1.0 / math.sqrt(shape[0])
        return random.uniform(-bound, bound, shape).astype(np.float32)

    return array


def saved(named: Named, config: LoraConfig) -> Named:
    """What PEFT's file holds, by its names: adapters, and of the head what `config` says."""
    modules = config.modules_to_save or ()
    return {
        f"base_model.model.{name}": (path, param)
        for name, (path, param) in named.items()
        if isinstance(param, nnx.Param)
        and (path[0] != "head" or any(_holds(module, name) for module in modules))
    }


def merged(
    arrays: Mapping[ParamPath, np.ndarray], config: LoraConfig
) -> dict[ParamPath, np.ndarray]:
    """The parameters with each adapter's product added to the kernel it stands beside."""
    found = dict(arrays)
    for *layer, leaf in arrays:
        if leaf == "lora_a":
            a, b = found.pop((*layer, "lora_a")), found.pop((*layer, "lora_b"))
            found[*layer, "kernel"] = found[*layer, "kernel"] + np.float32(config.scaling) * (a @ b)
    return found
