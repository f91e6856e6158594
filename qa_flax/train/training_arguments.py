"""transformers' TrainingArguments: the older spellings, and what each argument does here (host).

Every argument is honoured, or without effect and said so, or refused with the reason: one that is
ignored in silence costs somebody a week.
"""

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import transformers
from transformers.trainer_utils import SchedulerType
from transformers.training_args import trainer_log_levels

logger = logging.getLogger(__name__)

HONOURED = [
    "output_dir",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "label_smoothing_factor",
    "activation_checkpointing",
    "gradient_checkpointing",
    "bf16",
    "bf16_full_eval",
    "logging_strategy",
    "logging_steps",
    "logging_first_step",
    "include_num_input_tokens_seen",
    "log_level",
    "log_level_replica",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "prediction_loss_only",
    "include_for_metrics",
    "save_only_model",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "ignore_data_skip",
    "seed",
    "data_seed",
    "dataloader_drop_last",
    "train_sampling_strategy",
    "debug",
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
    "use_cpu",
]

# Given another value than transformers' default, these are warned of once, with the reason.
_TORCH_LOADER = "batches are assembled by NumPy in the training process"
_TORCH_DDP = "cores are driven by JAX, not by torch.distributed"
_TORCH_REMAT = "every layer is checkpointed, in the one way that XLA has"
_NO_HUB = "it matters with push_to_hub alone"
WITHOUT_EFFECT = {
    "average_tokens_across_devices": "losses are always averaged over the rows of all cores",
    "tf32": "set JAX's jax_default_matmul_precision instead",
    "activation_checkpointing_kwargs": _TORCH_REMAT,
    "gradient_checkpointing_kwargs": _TORCH_REMAT,
    "torch_compile": "the steps are always compiled, by XLA",
    "torch_compile_backend": "the steps are always compiled, by XLA",
    "torch_compile_mode": "the steps are always compiled, by XLA",
    "liger_kernel_config": "it matters with use_liger_kernel alone",
    "use_cache": "these models generate nothing",
    "torch_empty_cache_steps": "XLA's memory needs no emptying",
    "log_on_each_node": "one process logs",
    "logging_nan_inf_filter": "a loss that is not finite stops the training",
    "eval_accumulation_steps": "predictions go to the host batch by batch anyway",
    "hub_token": _NO_HUB,
    "hub_private_repo": _NO_HUB,
    "hub_model_id": _NO_HUB,
    "hub_strategy": _NO_HUB,
    "hub_revision": _NO_HUB,
    "restore_callback_states_from_checkpoint": "the callbacks' states are always restored",
    "full_determinism": "a run is a function of its seed, up to the rounding of the hardware",
    "accelerator_config": _TORCH_DDP,
    "dataloader_num_workers": _TORCH_LOADER,
    "dataloader_pin_memory": _TORCH_LOADER,
    "dataloader_persistent_workers": _TORCH_LOADER,
    "dataloader_prefetch_factor": _TORCH_LOADER,
    "dataloader_multiprocessing_context": _TORCH_LOADER,
    "dataloader_in_order": _TORCH_LOADER,
    "remove_unused_columns": "columns that nothing needs are never looked at",
    "length_column_name": "lengths are counted",
    "ddp_find_unused_parameters": _TORCH_DDP,
    "ddp_bucket_cap_mb": _TORCH_DDP,
    "ddp_broadcast_buffers": _TORCH_DDP,
    "ddp_static_graph": _TORCH_DDP,
    "ddp_backend": _TORCH_DDP,
    "ddp_timeout": _TORCH_DDP,
    "fsdp_config": "it matters with fsdp alone",
    "local_rank": _TORCH_DDP,
}

# Name -> the values that can be had, and why no others.
REFUSED: dict[str, tuple[tuple, str]] = {
    "auto_find_batch_size": ((False,), "a batch that does not fit has to be made smaller by hand"),
    "batch_eval_metrics": ((False,), "compute_metrics gets all predictions at once"),
    "deepspeed": ((None,), "it is torch's"),
    "enable_jit_checkpoint": ((False,), "save_steps decides when to save"),
    "eval_do_concat_batches": ((True,), "predictions are one array"),
    "eval_use_gather_object": ((False,), "predictions are arrays"),
    "fp16": ((False,), "XLA's hardware computes in bf16"),
    "fp16_full_eval": ((False,), "XLA's hardware computes in bf16"),
    "fsdp": ((None, "", []), "it is torch's; --shard_params divides what the cores hold"),
    "hub_always_push": ((False,), "nothing is pushed to the hub"),
    "label_names": (
        (None, ["start_positions", "end_positions"]),
        "these are the labels of extractive question answering",
    ),
    "neftune_noise_alpha": ((None,), "embeddings get no noise"),
    "optim_target_modules": ((None,), "the optimizers that need it are not here"),
    "parallelism_config": ((None,), "it is torch's"),
    "push_to_hub": ((False,), "upload output_dir with `hf upload`"),
    "save_on_each_node": ((False,), "one process writes"),
    "skip_memory_metrics": ((True,), "use --debug tpu_metrics_debug for the device's memory"),
    "use_liger_kernel": ((False,), "it is torch's"),
}

# Arguments of version 4 that have no counterpart, and their values then.
GONE = {
    "use_legacy_prediction_loop": False,
    "jit_mode_eval": False,
    "tpu_num_cores": None,
    "past_index": -1,
    "save_safetensors": True,
}

CHOICES = {
    "debug": ("tpu_metrics_debug",),
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
}

# What transformers' own checks see of arguments for which they would ask torch or accelerate, or
# which have no name there. "greedy" is checked like the plateau's schedule, but for torch.
STAND_INS = {
    "optim": "adamw_torch",
    "lr_scheduler_type": "greedy",
    "bf16": False,
    "bf16_full_eval": False,
    "fsdp": None,
}


def _log_to(directory: str) -> dict[str, Any]:
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", directory)  # read by transformers' callback
    return {}


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """transformers' arguments, with the names they had in version 4; each is warned of once."""

    # HfArgumentParser gives None for it, which transformers' own annotation leaves out, and reads
    # such a union only in this order.
    debug: None | str | list[str] = field(  # noqa: RUF036  # pyright: ignore[reportIncompatibleVariableOverride]
        default="", metadata={"help": "tpu_metrics_debug: what the device did."}
    )

    evaluation_strategy: str | None = field(default=None, metadata={"help": "Now eval_strategy."})
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "Now warmup_steps, which may be a share below 1."}
    )
    group_by_length: bool = field(
        default=False, metadata={"help": "Now train_sampling_strategy=group_by_length."}
    )
    tpu_metrics_debug: bool = field(
        default=False, metadata={"help": "Now debug=tpu_metrics_debug."}
    )
    logging_dir: str | None = field(
        default=None, metadata={"help": "Now the environment variable TENSORBOARD_LOGGING_DIR."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew though output_dir holds checkpoints."}
    )
    shard_params: bool = field(
        default=False,
        metadata={
            "help": "Divide parameters, gradients and optimizer state over the cores, for models "
            "that do not fit on one; layers are computed again in the backward pass."
        },
    )
    adafactor: bool = field(default=False, metadata={"help": "Now optim=adafactor."})
    include_inputs_for_metrics: bool = field(
        default=False, metadata={"help": "Now include_for_metrics=inputs."}
    )
    use_legacy_prediction_loop: bool = field(default=False, metadata={"help": "Without effect."})
    jit_mode_eval: bool = field(default=False, metadata={"help": "Without effect."})
    tpu_num_cores: int | None = field(default=None, metadata={"help": "Without effect."})
    past_index: int = field(default=-1, metadata={"help": "Without effect."})
    save_safetensors: bool = field(default=True, metadata={"help": "Without effect."})
    no_cuda: bool = field(default=False, metadata={"help": "Now JAX_PLATFORMS=cpu."})

    def __post_init__(self):
        self._take_older_names()
        given = {name: getattr(self, name) for name in STAND_INS}
        hidden = {name: value for name, value in given.items() if self._is_hidden(name, value)}
        for name in hidden:
            setattr(self, name, STAND_INS[name])
        super().__post_init__()
        for name, value in hidden.items():
            setattr(self, name, value)
        self.lr_scheduler_type = SchedulerType(self.lr_scheduler_type)

    def _is_hidden(self, name: str, value: Any) -> bool:
        if name == "lr_scheduler_type":
            # Without evaluations transformers refuses it, and shall, by its own name.
            return value == "reduce_lr_on_plateau" and self.eval_strategy != "no"
        return value == "lamb" if name == "optim" else bool(value)

    def _take_older_names(self) -> None:
        if self.warmup_ratio is not None and not 0.0 <= self.warmup_ratio < 1.0:
            raise ValueError(f"warmup_ratio is {self.warmup_ratio}; it must be in [0, 1)")
        for name, (now, takes) in OLDER.items():
            value = getattr(self, name)
            if value in (None, False) or (name == "warmup_ratio" and self.warmup_steps):
                continue  # as in version 4, a number of steps goes before a share
            warnings.warn(f"{name} is the older name of {now}.", FutureWarning, stacklevel=4)
            for other, given in takes(value).items():
                setattr(self, other, given)
        for name, usual in GONE.items():
            if getattr(self, name) != usual:
                logger.warning("%s has no effect: transformers 5 dropped it.", name)


# Older name -> what to write now, and what its value makes of other arguments.
OLDER: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "evaluation_strategy": ("eval_strategy", lambda value: {"eval_strategy": value}),
    "warmup_ratio": (
        "warmup_steps, with a value below 1",
        lambda value: {"warmup_steps": value} if value else {},
    ),
    "group_by_length": (
        'train_sampling_strategy="group_by_length"',
        lambda value: {"train_sampling_strategy": "group_by_length"},
    ),
    "tpu_metrics_debug": (
        'debug="tpu_metrics_debug"',
        lambda value: {"debug": "tpu_metrics_debug"},
    ),
    "logging_dir": ("the environment variable TENSORBOARD_LOGGING_DIR", _log_to),
    "adafactor": ('optim="adafactor"', lambda value: {"optim": "adafactor"}),
    "include_inputs_for_metrics": (
        'include_for_metrics=["inputs"]',
        lambda value: {"include_for_metrics": ["inputs"]},
    ),
    "no_cuda": ("JAX_PLATFORMS=cpu", lambda value: {"use_cpu": True}),
}


def plain_value(value: Any) -> Any:
    """The value of a member of an enumeration, such as `SchedulerType`; all else as it is."""
    return value.value if isinstance(value, Enum) else value


def set_log_level(args: transformers.TrainingArguments, is_main: bool) -> None:
    """`log_level`, here and in transformers; `log_level_replica` on other processes than the main.

    `passive` leaves both as they are.
    """
    level = trainer_log_levels[args.log_level if is_main else args.log_level_replica]
    if level != trainer_log_levels["passive"]:
        for name in ("transformers", "qa_flax"):
            logging.getLogger(name).setLevel(level)


def check_training_arguments(args: transformers.TrainingArguments) -> None:
    """Refuse what cannot be honoured, and warn of what has no effect, each by name with the reason.

    Raises:
        ValueError: names every argument that is refused.
    """
    # Here, so that arguments can be parsed without JAX.
    from qa_flax.device.optim import NEED_WHOLE_PARAMETERS, OPTIMIZERS

    refused = [
        f"{name}={value!r}: {reason} (allowed: {', '.join(map(repr, allowed))})"
        for name, (allowed, reason) in REFUSED.items()
        if (value := getattr(args, name, allowed[0])) not in allowed
    ]
    for name, allowed in (CHOICES | {"optim": tuple(OPTIMIZERS)}).items():
        value = getattr(args, name, allowed[0])
        values = [plain_value(v) for v in (value if isinstance(value, list) else [value])]
        if unknown := [v for v in values if v not in allowed]:
            refused.append(f"{name}={unknown[0]!r} (allowed: {', '.join(allowed)})")
    optim = plain_value(args.optim)
    if getattr(args, "shard_params", False) and optim in NEED_WHOLE_PARAMETERS:
        others = ", ".join(name for name in OPTIMIZERS if name not in NEED_WHOLE_PARAMETERS)
        refused.append(
            f"shard_params=True: optim={optim!r} needs whole parameters, and no core has them "
            f"(allowed: {others})"
        )
    if refused:
        raise ValueError(
            "these training arguments cannot be honoured by qa_flax:\n  "
            + "\n  ".join(refused)
            + "\nRemove them or give an allowed value."
        )
    usual = transformers.TrainingArguments(output_dir="")  # some values depend on the machine
    for name, reason in WITHOUT_EFFECT.items():
        value = getattr(args, name, None)
        if value is not None and value != getattr(usual, name, None):
            logger.warning("%s=%r has no effect: %s.", name, value, reason)
