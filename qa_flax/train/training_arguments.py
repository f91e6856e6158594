"""transformers' TrainingArguments: deprecated names, and which arguments are supported (host).

No argument is ignored silently. Each is in one of three lists: `SUPPORTED`; `WITHOUT_EFFECT`, which
logs a warning; or `REFUSED`, which raises. The last two give a reason for each argument.
"""

import logging
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any

import transformers
from transformers.trainer_utils import SchedulerType
from transformers.training_args import trainer_log_levels

from qa_flax import storage
from qa_flax.train.argument_ranges import outside_ranges
from qa_flax.train.hub_arguments import HUB_ARGUMENTS, invalid_hub_arguments, without_push
from qa_flax.train.more_data import MoreData, invalid_more_data
from qa_flax.train.old_names import OLD_NAMES as OLD_NAMES
from qa_flax.train.old_names import REMOVED, OldNames, warn_user
from qa_flax.train.placement import LocalRank, Placement
from qa_flax.train.regularization import (
    Regularization,
    invalid_values,
    set_for_early_stopping,
)

logger = logging.getLogger(__name__)

SUPPORTED = [
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
    "fp16",
    "fp16_full_eval",
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
    "remove_unused_columns",
    "train_sampling_strategy",
    "debug",
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
    "use_cpu",
    "push_to_hub",
    *HUB_ARGUMENTS,
]

_NO_DATA_LOADER = "NumPy builds the batches in the training process, without a PyTorch DataLoader"
_NO_DDP = "JAX runs the training on all cores, without torch.distributed or accelerate"
_NO_REMAT_OPTIONS = "activation checkpointing recomputes every layer and has no options"
_ALWAYS_COMPILED = "XLA always compiles the training and evaluation steps"
# Argument -> why it has no effect. A value that differs from transformers' default logs a warning.
WITHOUT_EFFECT = {
    "average_tokens_across_devices": "the loss is always averaged over the rows of all cores",
    "tf32": "set JAX's option jax_default_matmul_precision instead, such as to tensorfloat32",
    "activation_checkpointing_kwargs": _NO_REMAT_OPTIONS,
    "gradient_checkpointing_kwargs": _NO_REMAT_OPTIONS,
    "torch_compile": _ALWAYS_COMPILED,
    "torch_compile_backend": _ALWAYS_COMPILED,
    "torch_compile_mode": _ALWAYS_COMPILED,
    "liger_kernel_config": "it is used only with use_liger_kernel, which is not supported",
    "use_cache": "extractive models generate no text, so they have no key-value cache",
    "torch_empty_cache_steps": "XLA manages the device memory and has no cache to empty",
    "log_on_each_node": "only the main process logs",
    "logging_nan_inf_filter": "training stops with an error when the loss is not finite",
    "eval_accumulation_steps": "predictions are always copied to the host after each batch",
    "restore_callback_states_from_checkpoint": "a resumed run always restores callback states",
    "full_determinism": "runs with the same seed are always equal, up to the hardware's rounding",
    "accelerator_config": _NO_DDP,
    "dataloader_num_workers": _NO_DATA_LOADER,
    "dataloader_pin_memory": _NO_DATA_LOADER,
    "dataloader_persistent_workers": _NO_DATA_LOADER,
    "dataloader_prefetch_factor": _NO_DATA_LOADER,
    "dataloader_multiprocessing_context": _NO_DATA_LOADER,
    "dataloader_in_order": _NO_DATA_LOADER,
    "length_column_name": "each window's length is counted from its tokens",
    "ddp_find_unused_parameters": _NO_DDP,
    "ddp_bucket_cap_mb": _NO_DDP,
    "ddp_broadcast_buffers": _NO_DDP,
    "ddp_static_graph": _NO_DDP,
    "ddp_backend": _NO_DDP,
    "ddp_timeout": _NO_DDP,
    "fsdp_config": "it is used only with fsdp, which is not supported; see shard_params",
    "local_rank": _NO_DDP,
}

_SHARD_PARAMS = (
    "use shard_params=True (--shard_params) to shard parameters, gradients and optimizer state"
)
# Argument -> the supported values, and why there are no others or what to use instead.
REFUSED: dict[str, tuple[tuple, str]] = {
    "auto_find_batch_size": (
        (False,),
        "it is not implemented; if a batch does not fit into memory, lower "
        "per_device_train_batch_size",
    ),
    "batch_eval_metrics": (
        (False,),
        "compute_metrics is called once, with the predictions of all batches",
    ),
    "deepspeed": ((None,), f"DeepSpeed needs PyTorch; {_SHARD_PARAMS}"),
    "enable_jit_checkpoint": (
        (False,),
        "it is not needed: on SIGTERM a run always saves a checkpoint before it exits",
    ),
    "eval_do_concat_batches": ((True,), "predictions of all batches are always concatenated"),
    "eval_use_gather_object": (
        (False,),
        "predictions are arrays, which are gathered without pickling objects",
    ),
    "fsdp": ((None, "", []), f"FSDP needs PyTorch; {_SHARD_PARAMS}"),
    "label_names": (
        (None, ["start_positions", "end_positions"]),
        "the labels are always start_positions and end_positions",
    ),
    "neftune_noise_alpha": ((None,), "NEFTune (noise on embeddings) is not implemented"),
    "optim_target_modules": (
        (None,),
        "GaLore and APOLLO, the optimizers that use it, are not implemented",
    ),
    "parallelism_config": ((None,), f"it configures PyTorch; {_SHARD_PARAMS}"),
    "save_on_each_node": ((False,), "only the main process writes files"),
    "skip_memory_metrics": (
        (True,),
        'use debug="tpu_metrics_debug" (--debug tpu_metrics_debug) to report device memory',
    ),
    "use_liger_kernel": ((False,), "Liger kernels need PyTorch"),
}

CHOICES = {
    "debug": ("tpu_metrics_debug",),
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    "dropout_bits": ("hash", "hardware"),
}

FLAGS = ("shard_params", "bf16_gradients")
COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)

# Argument without effect -> others that transformers sets from it, or that mean the same.
SAID_BY = {
    "torch_compile": ("torch_compile_backend", "torch_compile_mode"),
    "activation_checkpointing_kwargs": ("gradient_checkpointing_kwargs",),
}

# transformers' own checks need torch or accelerate for these arguments, or do not know one of their
# values (optim="lamb"). During the checks they have these values instead. The schedule "greedy" is
# checked like "reduce_lr_on_plateau", but without torch.
STAND_INS = {
    "optim": "adamw_torch",
    "lr_scheduler_type": "greedy",
    "bf16": False,
    "bf16_full_eval": False,
    "tf32": None,
    "torch_compile": False,
    "torch_compile_backend": None,
    "torch_compile_mode": None,
    "fsdp": None,
    "deepspeed": None,
    "parallelism_config": None,
}


@dataclass
class TrainingArguments(  # pyright: ignore[reportIncompatibleMethodOverride,reportIncompatibleVariableOverride]
    OldNames, Placement, Regularization, MoreData, transformers.TrainingArguments
):
    """transformers' TrainingArguments, with `shard_params` and the names of transformers 4.

    All arguments of `transformers.TrainingArguments` are accepted, with the same defaults.
    `Trainer` raises a ValueError for each argument that it does not support, and logs a warning for
    each that has no effect. The names of transformers 4, such as `evaluation_strategy`, still work
    and issue a FutureWarning; those that transformers 5 removed without a replacement have no
    effect.

    Args:
        shard_params: shard parameters, gradients and optimizer state over the cores, for models
            that do not fit on one. Layers are recomputed in the backward pass.
        bf16_gradients: sum gradients over the cores in bfloat16, so that half as many bytes are
            sent. Each core's gradient is rounded to 8 bits of precision; parameters, optimizer
            state and the sums of microbatches stay in float32. With one core nothing changes.
        dropout_bits: where dropout takes its random bits from: `"hash"`, of each element's index,
            or `"hardware"`, the generator of the TPU or GPU with a byte for each element, which
            rounds probabilities to multiples of 1/256. It may be faster on a TPU; not timed there.
        packing: pack several windows into each row, for training and evaluation, so that less
            padding is computed. `train_fill` and `eval_fill` in the metrics are the share of
            positions that hold tokens; None: one window a row, without these metrics. What cannot
            be packed has rows of its own, with a warning that says why.
        profile: record this many updates with `jax.profiler`, after the first two of the call, and
            print how busy the cores were and the largest gaps. The trace is in
            `output_dir/profile`, for TensorBoard or Perfetto; 0: none.
        overwrite_output_dir: start from the beginning, even if `output_dir` has checkpoints
            (command line only; `Trainer.train` resumes only when asked to).
        optim: also `"lamb"`, which transformers does not have.
        hidden_dropout_prob: dropout probability of embeddings and layer outputs, set in the
            model's config under its family's own name when a training starts; None: the model's.
        attention_probs_dropout_prob: as `hidden_dropout_prob`, of the attention weights.
        classifier_dropout: as `hidden_dropout_prob`, before the span head; only DistilBERT and
            ModernBERT have a dropout there.
        layerwise_lr_decay: the span head has the full learning rate, the last layer this factor of
            it, the layer before the factor squared, and so on to the embeddings.
        freeze_layers: numbers of layers that are not trained, such as `"0-3"`, `"0,1,5"`, 2 or
            `[0, 1]`. Layer 0 follows the embeddings, and ranges include both ends.
        freeze_embeddings: do not train the embeddings and what else comes before the layers.
        reinit_layers: how many of the last layers are initialized anew, once for each model.
        early_stopping_patience: stop after this many evaluations without improvement.
        early_stopping_threshold: how much the metric must improve to count.
        ema_decay: evaluate and save a moving average of the weights with this decay; 0: none.
        eval_train_samples: evaluate this many training questions, too, at each evaluation.
        augment: change the training texts anew in each epoch, as `qa_flax.augment_examples`; the
            trainer needs `train_examples` and `processing_class`.
        paraphrases: other wordings of training questions: a file, or a dict of ids or questions.
        extra_train_ratio: the share of each epoch's batches that come from `extra_train_dataset`.

    Raises:
        ValueError: a value is invalid, or two arguments contradict each other.

    Example:
        >>> from qa_flax import TrainingArguments
        >>> args = TrainingArguments(output_dir="out", optim="lamb", warmup_steps=0.1)
        >>> args.optim, args.learning_rate, args.shard_params
        ('lamb', 5e-05, False)
    """

    # HfArgumentParser passes None if the flag is absent, which transformers' annotation does not
    # allow. It accepts such a union only in this order.
    debug: None | str | list[str] = field(  # noqa: RUF036  # pyright: ignore[reportIncompatibleVariableOverride]
        default="",
        metadata={
            "help": "tpu_metrics_debug: report compilations, step time and memory of the device."
        },
    )

    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start from the beginning, even if output_dir has checkpoints."},
    )
    shard_params: bool = field(
        default=False,
        metadata={
            "help": "Shard parameters, gradients and optimizer state over the cores, for models "
            "that do not fit on one; layers are recomputed in the backward pass."
        },
    )

    bf16_gradients: bool = field(
        default=False,
        metadata={
            "help": "Exchange gradients between the cores in bfloat16: half as many bytes are "
            "sent. Each core's gradient is rounded; everything else stays in float32."
        },
    )

    dropout_bits: str = field(
        default="hash",
        metadata={
            "help": "Where dropout takes its random bits from. hash: a hash of each element's "
            "index. hardware: the generator of the TPU or GPU, a byte for each element, which "
            "rounds dropout probabilities to multiples of 1/256; may be faster on a TPU.",
            "choices": ["hash", "hardware"],
        },
    )

    packing: bool | None = field(
        default=None,
        metadata={
            "help": "Pack several windows into each row, for training and evaluation: half of the "
            "positions are padding otherwise. Results are the same up to rounding. A warning says "
            "why a family or data cannot be packed. Default: true in qa-flax run, false in Python."
        },
    )

    profile: int = field(
        default=0,
        metadata={
            "help": "Record a trace of this many updates with jax.profiler, in output_dir/profile, "
            "and print how busy the cores were; 0: none."
        },
    )

    # Dataclasses write one of their own, which shows tokens.
    __repr__ = transformers.TrainingArguments.__str__

    local_rank = LocalRank()  # pyright: ignore[reportAssignmentType]

    def __post_init__(self):
        self.apply_inherited_old_names()
        check_values(self)
        vars(self)["_is_built"] = True


def check_values(args: transformers.TrainingArguments) -> None:
    """Check the values as transformers does at construction, and set those that follow from others.

    It may be called again after arguments have changed, and needs neither torch nor accelerate.

    Raises:
        ValueError: a value is invalid, or two arguments contradict each other.
    """
    if problems := outside_ranges(args) + invalid_values(args) + invalid_more_data(args):
        raise ValueError("; ".join(problems))
    _rename_gradient_checkpointing(args)
    set_for_early_stopping(args)
    values = {name: getattr(args, name, None) for name in STAND_INS}
    replaced = {name: v for name, v in values.items() if _needs_stand_in(args, name, v)}
    for name in replaced:
        setattr(args, name, STAND_INS[name])
    try:
        transformers.TrainingArguments.__post_init__(args)
    finally:
        for name, value in replaced.items():
            setattr(args, name, value)
    args.lr_scheduler_type = SchedulerType(args.lr_scheduler_type)


def _rename_gradient_checkpointing(args: transformers.TrainingArguments) -> None:
    """Rename it before transformers does, whose warning would point to a line of transformers.

    The options have no effect under either name. They are reported under the one that was given.
    """
    for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        new = old.replace("gradient", "activation")
        value = getattr(args, old)
        if value is None or getattr(args, new, value) is not None:
            continue
        setattr(args, new, value)
        vars(args).setdefault("_used_old_names", set()).add(old)
        if old == "gradient_checkpointing":
            warn_user(args, f"`{old}` is deprecated; use `{new}` instead.")


def _needs_stand_in(args: transformers.TrainingArguments, name: str, value: Any) -> bool:
    if name == "lr_scheduler_type":
        # Without evaluations transformers must see the real name: it then refuses it.
        return value == "reduce_lr_on_plateau" and args.eval_strategy != "no"
    return value == "lamb" if name == "optim" else bool(value)


def plain_value(value: Any) -> Any:
    """The value of an enum member, such as `SchedulerType.LINEAR`; other values unchanged."""
    return value.value if isinstance(value, Enum) else value


def set_log_level(args: transformers.TrainingArguments, is_main: bool) -> None:
    """Set the log level of the loggers `transformers` and `qa_flax`.

    The level is `log_level` on the main process and `log_level_replica` on the others. `passive`
    changes nothing.
    """
    level = trainer_log_levels[args.log_level if is_main else args.log_level_replica]
    if level != trainer_log_levels["passive"]:
        for name in ("transformers", "qa_flax"):
            logging.getLogger(name).setLevel(level)


def trains_in_bfloat16(args: transformers.TrainingArguments) -> bool:
    """Whether the layers compute in bfloat16; `fp16` asks for it, too, as `bf16`."""
    return bool(args.bf16 or args.fp16)


def evaluates_in_bfloat16(args: transformers.TrainingArguments) -> bool:
    """Whether evaluation computes in bfloat16 whatever the training does."""
    return bool(args.bf16_full_eval or args.fp16_full_eval)


def check_training_arguments(args: transformers.TrainingArguments) -> None:
    """Refuse unsupported arguments, and log a warning for each argument without effect.

    Each value is reported once, however often the arguments are checked.

    Raises:
        ValueError: names every unsupported argument, with the reason and the allowed values.
    """
    _refuse_unsupported(args)
    dashes = "--" if getattr(args, "_is_command_line", False) else ""
    storage.check_encodable(args.output_dir or "", f"{dashes}output_dir")
    for name, (value, text) in _remarks(args).items():
        report_once(args, name, value, text)


def report_once(
    args: transformers.TrainingArguments, name: str, value: Any, consequence: str
) -> None:
    """Log a warning about a value, unless it was reported before.

    Args:
        args: the training arguments.
        name: the name of the argument, as the user wrote it.
        value: its value.
        consequence: the rest of the sentence.
    """
    reported = vars(args).setdefault("_reported", {})
    if reported.get(name) != repr(value):
        reported[name] = repr(value)
        logger.warning("%s=%r%s.", name, value, consequence)


def _refuse_unsupported(args: transformers.TrainingArguments) -> None:
    # Imported here so that arguments can be parsed without JAX.
    from qa_flax.device.optim import NEED_WHOLE_PARAMETERS, OPTIMIZERS

    problems = [
        f"{name}={value!r}: {reason} (allowed: {', '.join(map(repr, allowed))})"
        for name, (allowed, reason) in REFUSED.items()
        if (value := getattr(args, name, allowed[0])) not in allowed
    ]
    problems += [
        f"{name}={value!r}: it must be a whole number of at least 1"
        for name in COUNTS
        if not isinstance(value := getattr(args, name), int) or value < 1
    ]
    problems += [
        f"{name}={value!r}: it must be True or False"
        for name in FLAGS
        if not isinstance(value := getattr(args, name, False), bool)
    ]
    for name, allowed in (CHOICES | {"optim": tuple(OPTIMIZERS)}).items():
        value = getattr(args, name, allowed[0])
        values = [plain_value(v) for v in (value if isinstance(value, list) else [value])]
        if unknown := [v for v in values if v and v not in allowed]:
            problems.append(f"{name}={unknown[0]!r} (allowed: {', '.join(allowed)})")
    problems += invalid_hub_arguments(args)
    optim = plain_value(args.optim)
    if getattr(args, "shard_params", False) and optim in NEED_WHOLE_PARAMETERS:
        shardable = ", ".join(name for name in OPTIMIZERS if name not in NEED_WHOLE_PARAMETERS)
        problems.append(
            f"shard_params=True: optim={optim!r} needs whole parameters, but each core holds "
            f"only a shard (allowed: {shardable})"
        )
    if problems:
        raise ValueError(
            "qa_flax does not support these training arguments:\n  "
            + "\n  ".join(problems)
            + "\nRemove them or set them to an allowed value."
        )


def _remarks(args: transformers.TrainingArguments) -> dict[str, tuple[Any, str]]:
    """What to report: the names of arguments, their values, and the rest of the sentence."""
    remarks: dict[str, tuple[Any, str]] = {}
    for name in ("fp16", "fp16_full_eval"):
        if getattr(args, name):
            remarks[name] = True, ": the model computes in bfloat16 instead of float16"
    defaults = _defaults(bool(args.use_cpu))
    for name, reason in WITHOUT_EFFECT.items():
        # `local_rank` reads as the index of the process unless it was given.
        value = vars(args).get(name)
        if value is not None and value != vars(defaults).get(name):
            remarks[name] = value, f" has no effect: {reason}"
    remarks |= without_push(args, defaults)
    for name, (default, reason) in REMOVED.items():
        if (value := getattr(args, name, default)) != default:
            remarks[name] = value, f" has no effect: {reason}"
    if "gradient_checkpointing_kwargs" in vars(args).get("_used_old_names", ()):
        remarks.pop("activation_checkpointing_kwargs", None)
    for name, others in SAID_BY.items():
        for other in others if name in remarks else ():
            remarks.pop(other, None)
    return remarks


@cache
def _defaults(use_cpu: bool) -> TrainingArguments:
    """The defaults; some depend on the machine, and some on `use_cpu`."""
    return TrainingArguments(output_dir="", use_cpu=use_cpu)
