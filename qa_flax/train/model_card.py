"""The model card (README.md) of a trained model, from transformers' template (host)."""

from typing import Any

import jax
import transformers
from transformers.modelcard import TrainingSummary, parse_log_history
from transformers.trainer_callback import TrainerState

from qa_flax import storage
from qa_flax.device import parallel
from qa_flax.train.plan import ema_decay_of
from qa_flax.train.training_arguments import plain_value, trains_in_bfloat16


def model_card(
    args: transformers.TrainingArguments,
    state: TrainerState,
    finetuned_from: str | None = None,
    model_name: str | None = None,
    tags: str | list[str] | None = None,
    tasks: str | list[str] | None = "question-answering",
    **kwargs: Any,
) -> str:
    """The model card as Markdown, with the metadata that the Hub reads.

    Args:
        args: hyperparameters of the training.
        state: its log history has the training and evaluation results.
        finetuned_from: Hub id or path of the base model. The card does not show a local path,
            because nobody else could load the model from it.
        model_name: by default the name of `output_dir`.
        tags: tags in addition to `generated_from_trainer` and `jax`.
        tasks: as in transformers' `Trainer.create_model_card`.
        **kwargs: other fields of transformers' `TrainingSummary`, such as `dataset`.
    """
    is_folder = finetuned_from is not None and storage.path(finetuned_from).exists()
    extra_tags = [tags] if isinstance(tags, str) else list(tags or ())
    _, eval_lines, eval_results = parse_log_history(state.log_history or [{}])
    summary = TrainingSummary(
        model_name=model_name or _name(args.output_dir or "trainer_output"),
        finetuned_from=None if is_folder else finetuned_from,
        tags=list(dict.fromkeys([*extra_tags, "generated_from_trainer", "jax"])),
        tasks=tasks,
        eval_results=eval_results,
        eval_lines=eval_lines or None,
        hyperparameters=_hyperparameters(args),
        source="qa_flax",  # transformers' own line would name PyTorch
        **kwargs,
    )
    card = summary.to_model_card() + f"- JAX {jax.__version__}\n"
    if is_folder:  # transformers' template has no text for a base model without a name
        card = card.replace(
            "was trained from scratch on", "was fine-tuned from a local checkpoint on"
        )
    return card


def _name(folder: str) -> str:
    path = storage.path(folder)
    return path.name if storage.is_remote(folder) else path.resolve().name


def _hyperparameters(args: transformers.TrainingArguments) -> dict[str, Any]:
    cores = parallel.core_count()
    rows = cores * args.per_device_train_batch_size * args.gradient_accumulation_steps
    values: dict[str, Any] = {
        "learning_rate": args.learning_rate,
        "train_batch_size": args.per_device_train_batch_size,
        "eval_batch_size": args.per_device_eval_batch_size,
        "seed": args.seed,
        "num_devices": cores,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "total_train_batch_size": rows,
        "optimizer": f"{plain_value(args.optim)}, betas=({args.adam_beta1}, "
        f"{args.adam_beta2}), epsilon={args.adam_epsilon}, weight_decay={args.weight_decay}, "
        f"optim_args={args.optim_args}",
        "lr_scheduler_type": plain_value(args.lr_scheduler_type),
        "lr_scheduler_warmup_steps": args.warmup_steps,
        "num_epochs": args.num_train_epochs,
        "training_steps": args.max_steps if args.max_steps > 0 else None,
        "label_smoothing_factor": args.label_smoothing_factor or None,
        "ema_decay": ema_decay_of(args) or None,
        "mixed_precision_training": "bfloat16" if trains_in_bfloat16(args) else None,
    }
    return {name: value for name, value in values.items() if value is not None}
