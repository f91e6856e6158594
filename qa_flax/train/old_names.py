"""Names of transformers 4 for training arguments, and the warnings about them (host).

A name that was replaced acts when it is given or set: it changes the argument of today, and reading
it gives the value of that one. Names without a replacement are fields without effect.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import FrameType
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """What an old name stands for."""

    advice: str
    """What to use instead, in the warning."""
    name: str
    """The attribute that it sets."""
    get: Callable[[Any], Any]
    """From the training arguments to the value that the old name would have."""
    set: Callable[[Any, Any], Any] = lambda args, value: value
    """From the training arguments and the old name's value to the value of the attribute."""


def _options(value: Any) -> list[str]:
    """The names in a list of options or enum members, or in a text of them; None: none."""
    values = value.split() if isinstance(value, str) else value or ()
    return [getattr(option, "value", option) for option in values]


def _strategy(args: Any) -> str:
    return getattr(args.eval_strategy, "value", args.eval_strategy)


OLD_NAMES: dict[str, Replacement] = {
    "evaluation_strategy": Replacement("eval_strategy", "eval_strategy", _strategy),
    "warmup_ratio": Replacement(
        "warmup_steps, with a value below 1,",
        "warmup_steps",
        lambda args: args.warmup_steps if args.warmup_steps < 1 else 0.0,
    ),
    "group_by_length": Replacement(
        'train_sampling_strategy="group_by_length"',
        "train_sampling_strategy",
        lambda args: args.train_sampling_strategy == "group_by_length",
        lambda args, value: "group_by_length" if value else "random",
    ),
    "tpu_metrics_debug": Replacement(
        'debug="tpu_metrics_debug"',
        "debug",
        lambda args: "tpu_metrics_debug" in _options(args.debug),
        lambda args, value: "tpu_metrics_debug" if value else "",
    ),
    "logging_dir": Replacement(
        "the environment variable TENSORBOARD_LOGGING_DIR",
        "_logging_dir",
        lambda args: vars(args).get("_logging_dir"),
    ),
    "adafactor": Replacement(
        'optim="adafactor"',
        "optim",
        lambda args: getattr(args.optim, "value", args.optim) == "adafactor",
        lambda args, value: "adafactor" if value else "adamw_torch",
    ),
    "include_inputs_for_metrics": Replacement(
        'include_for_metrics=["inputs"]',
        "include_for_metrics",
        lambda args: "inputs" in args.include_for_metrics,
        lambda args, value: (
            [*args.include_for_metrics, "inputs"]
            if value
            else [name for name in args.include_for_metrics if name != "inputs"]
        ),
    ),
    "no_cuda": Replacement(
        "the environment variable JAX_PLATFORMS=cpu", "use_cpu", lambda args: args.use_cpu
    ),
    "per_gpu_train_batch_size": Replacement(
        "per_device_train_batch_size",
        "per_device_train_batch_size",
        lambda args: args.per_device_train_batch_size,
    ),
    "per_gpu_eval_batch_size": Replacement(
        "per_device_eval_batch_size",
        "per_device_eval_batch_size",
        lambda args: args.per_device_eval_batch_size,
    ),
}
# Arguments of today with which an old name may be given together.
_COMBINED = ("include_for_metrics", "_logging_dir")

_FLOAT16 = "the model computes in bfloat16 if fp16 or bf16 is set"
_ALL_CORES = "JAX uses all cores of the process"
# Names that transformers 5 removed without a replacement -> default in 4, and why it has no effect.
REMOVED: dict[str, tuple[Any, str]] = {
    "use_legacy_prediction_loop": (False, "there is only one loop for evaluation and prediction"),
    "jit_mode_eval": (False, "XLA always compiles the training and evaluation steps"),
    "tpu_num_cores": (None, _ALL_CORES),
    "past_index": (-1, "extractive models return no past states"),
    "save_safetensors": (True, "weights are always saved as safetensors"),
    "fp16_backend": ("auto", _FLOAT16),
    "half_precision_backend": ("auto", _FLOAT16),
    "fp16_opt_level": ("O1", _FLOAT16),
    "use_mps_device": (False, _ALL_CORES),
    "include_tokens_per_second": (False, "use include_num_input_tokens_seen instead"),
    "torchdynamo": (None, "XLA always compiles the training and evaluation steps"),
    "ray_scope": ("last", "it is of the backend ray, and hyperparameter_search has only optuna"),
}

_REMOVED_HELP = "Has no effect: transformers 5 removed it."


@dataclass
class OldNames:
    """The fields of transformers 4 that transformers 5 no longer has; a mix-in."""

    evaluation_strategy: str | None = field(
        default=None, metadata={"help": "Deprecated: use eval_strategy."}
    )
    warmup_ratio: float | None = field(
        default=None,
        metadata={"help": "Deprecated: use warmup_steps, where a value below 1 is a ratio."},
    )
    group_by_length: bool = field(
        default=False,
        metadata={"help": "Deprecated: use train_sampling_strategy=group_by_length."},
    )
    tpu_metrics_debug: bool = field(
        default=False, metadata={"help": "Deprecated: use debug=tpu_metrics_debug."}
    )
    logging_dir: str | None = field(
        default=None,
        metadata={"help": "Deprecated: set the environment variable TENSORBOARD_LOGGING_DIR."},
    )
    adafactor: bool = field(default=False, metadata={"help": "Deprecated: use optim=adafactor."})
    include_inputs_for_metrics: bool = field(
        default=False, metadata={"help": "Deprecated: use include_for_metrics=inputs."}
    )
    no_cuda: bool = field(
        default=False,
        metadata={"help": "Deprecated: set the environment variable JAX_PLATFORMS=cpu."},
    )
    per_gpu_train_batch_size: int | None = field(
        default=None, metadata={"help": "Deprecated: use per_device_train_batch_size."}
    )
    per_gpu_eval_batch_size: int | None = field(
        default=None, metadata={"help": "Deprecated: use per_device_eval_batch_size."}
    )
    use_legacy_prediction_loop: bool = field(default=False, metadata={"help": _REMOVED_HELP})
    jit_mode_eval: bool = field(default=False, metadata={"help": _REMOVED_HELP})
    tpu_num_cores: int | None = field(default=None, metadata={"help": _REMOVED_HELP})
    past_index: int = field(default=-1, metadata={"help": _REMOVED_HELP})
    save_safetensors: bool = field(default=True, metadata={"help": _REMOVED_HELP})
    fp16_backend: str = field(default="auto", metadata={"help": _REMOVED_HELP})
    half_precision_backend: str = field(default="auto", metadata={"help": _REMOVED_HELP})
    fp16_opt_level: str = field(default="O1", metadata={"help": _REMOVED_HELP})
    use_mps_device: bool = field(default=False, metadata={"help": _REMOVED_HELP})
    include_tokens_per_second: bool = field(default=False, metadata={"help": _REMOVED_HELP})
    torchdynamo: str | None = field(default=None, metadata={"help": _REMOVED_HELP})
    ray_scope: str = field(default="last", metadata={"help": _REMOVED_HELP})

    def apply_inherited_old_names(self) -> None:
        """Apply old names to which a subclass has given another default."""
        for name in OLD_NAMES:
            if name in vars(self):
                _OldName(name, None).__set__(self, vars(self)[name])


class _Copied(str):
    """A value that `dataclasses.replace` or `to_dict` read, so that its copy does not warn."""


class _OldName:
    """The attribute of an old name.

    Copies are made from all fields. There an old name has its default, since it would otherwise
    contradict the argument that replaced it.

    Args:
        name: a key of `OLD_NAMES`.
        default: the field's default, which means that the name was not given.
    """

    def __init__(self, name: str, default: Any):
        self._name, self._default = name, default

    def __get__(self, args: Any, owner: type | None = None) -> Any:
        if args is None:
            return self._default
        value = OLD_NAMES[self._name].get(args)
        if not _is_copied(sys._getframe(1)):
            return value
        is_stored = self._name == "logging_dir" and value is not None
        return _Copied(value) if is_stored else self._default

    def __set__(self, args: Any, value: Any) -> None:
        is_new = not vars(args).get("_is_built")
        if value is None or (is_new and not value):
            return  # not given
        if isinstance(value, _Copied):
            vars(args)["_logging_dir"] = str(value)
            return
        if self._name == "warmup_ratio":
            if not 0.0 <= value < 1.0:
                raise ValueError(f"warmup_ratio is {value}; it must be in [0, 1)")
            if args.warmup_steps and args.warmup_steps != vars(args).get("_warmup_ratio"):
                # It takes precedence, as in transformers 4.
                warn_user(args, f"warmup_ratio={value} has no effect: warmup_steps is set.")
                return
            vars(args)["_warmup_ratio"] = value
        advice, name, _, convert = OLD_NAMES[self._name]
        old, new = getattr(args, name, None), convert(args, value)
        if old == new:
            return
        if is_new and name not in _COMBINED and old != _default(args, name):
            raise ValueError(
                f"{self._name}={value!r} contradicts {name}={getattr(old, 'value', old)!r}; remove "
                f"{self._name}, the old name"
            )
        warn_user(args, f"{self._name} is deprecated; use {advice} instead.")
        setattr(args, name, new)
        vars(args).setdefault("_used_old_names", set()).add(self._name)


def _default(args: Any, name: str) -> Any:
    return next(f.default for f in fields(args) if f.name == name)


for _name in OLD_NAMES:
    setattr(OldNames, _name, _OldName(_name, OldNames.__dataclass_fields__[_name].default))


def _is_copied(reader: FrameType | None) -> bool:
    """Whether a function that copies all fields reads the attribute."""
    return reader is not None and reader.f_globals.get("__name__") in (
        "dataclasses",
        "transformers.training_args",
    )


def used_name(args: Any, name: str) -> str:
    """The name under which the user gave an argument: `no_cuda` for `use_cpu`."""
    used = vars(args).get("_used_old_names", ())
    return next((old for old in used if old in OLD_NAMES and OLD_NAMES[old].name == name), name)


# ---- warnings ------------------------------------------------------------------------------------

_LIBRARIES = ("qa_flax", "transformers", "dataclasses")


def warn_user(args: Any, message: str, category: type[Warning] = FutureWarning) -> None:
    """Warn at the line that builds or changes the training arguments.

    Args:
        args: the training arguments, of which methods of a subclass may be running.
        message: the text of the warning.
        category: the class of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_inside(frame, args):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_inside(frame: FrameType, args: Any) -> bool:
    """Whether a frame belongs to a library, or to a method of `args` such as `__init__`."""
    package = str(frame.f_globals.get("__name__", "")).split(".")[0]
    if package in _LIBRARIES:
        return True
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return bool(names) and frame.f_locals.get(names[0]) is args
