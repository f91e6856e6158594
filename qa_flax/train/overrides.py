"""Methods of transformers' Trainer that a subclass replaces, and that this trainer would not call.

A method that is replaced and never called would be a wrong result without notice. So it is refused,
when the trainer is built and again in `train()`, with the argument to use instead (host).
"""

from typing import Any

_LOSS = (
    "compute_loss_func=f, a JAX function of (logits, batch) that returns one loss for each window"
)
_OPTIMIZER = "optim=, lr_scheduler_type=, or optimizers=(optax transformation, schedule)"
_DATA = (
    "get_train_dataloader, get_eval_dataloader or get_test_dataloader, which may be overridden, or "
    "the training arguments (train_sampling_strategy, dataloader_drop_last)"
)
_CALLBACK = "a TrainerCallback; checkpoints are written by save_strategy and save_steps"
_EVALUATE = "override evaluate or predict, or pass compute_metrics="
_LOOP = "evaluation_loop, or set use_legacy_prediction_loop=True"
_LOGITS = "preprocess_logits_for_metrics= or compute_metrics="
_DEVICES = "nothing: JAX places the model and the batches on the devices"
_LOADING = "train(resume_from_checkpoint=...)"

NOT_CALLED: dict[str, str] = {
    "compute_loss": _LOSS,
    "training_step": _LOSS,
    "compute_loss_context_manager": "bf16=True",
    "autocast_smart_context_manager": "bf16=True",
    "get_batch_samples": _DATA,
    "_get_num_items_in_batch": _LOSS,
    "create_optimizer": _OPTIMIZER,
    "create_scheduler": _OPTIMIZER,
    "create_optimizer_and_scheduler": _OPTIMIZER,
    "get_optimizer_cls_and_kwargs": _OPTIMIZER,
    "get_decay_parameter_names": "optimizers=(optax transformation with a mask, schedule)",
    "get_optimizer_group": _OPTIMIZER,
    "get_learning_rates": _OPTIMIZER,
    "_get_learning_rate": _OPTIMIZER,
    "get_num_trainable_parameters": "model.num_parameters(only_trainable=True)",
    "_clip_grad_norm": "max_grad_norm=",
    "_get_grad_norm": "max_grad_norm=",
    "_mixed_mesh_grad_norm": "max_grad_norm=",
    "_has_mixed_mesh_grads": "max_grad_norm=",
    "_get_dataloader": _DATA,
    "_get_train_sampler": _DATA,
    "_get_eval_sampler": _DATA,
    "_set_signature_columns_if_needed": _DATA,
    "_remove_unused_columns": _DATA,
    "_get_collator_with_removed_columns": _DATA,
    "num_examples": _DATA,
    "prediction_step": _LOGITS,
    "_evaluate": _EVALUATE,
    "_determine_best_metric": "metric_for_best_model= and greater_is_better=",
    "_maybe_log_save_evaluate": _CALLBACK,
    "_save": "override save_model",
    "_save_checkpoint": _CALLBACK,
    "_save_rng_state": _CALLBACK,
    "_save_optimizer_and_scheduler": _CALLBACK,
    "_save_scaler": _CALLBACK,
    "_get_output_dir": "output_dir=",
    "_load_from_checkpoint": _LOADING,
    "_load_best_model": "load_best_model_at_end=True",
    "_load_rng_state": _LOADING,
    "_load_optimizer_and_scheduler": _LOADING,
    "_load_scaler": _LOADING,
    "_load_callback_state": "restore_callback_states_from_checkpoint=True",
    "_issue_warnings_after_load": _LOADING,
    "_inner_training_loop": "override train, or pass a TrainerCallback",
    "_init_training_state": "a TrainerCallback (on_train_begin)",
    "_prepare_for_training": "a TrainerCallback (on_train_begin)",
    "_run_epoch": "a TrainerCallback (on_epoch_begin, on_epoch_end)",
    "_finalize_training": "a TrainerCallback (on_train_end)",
    "end": "a TrainerCallback (on_train_end)",
    "set_initial_training_values": "num_train_epochs= or max_steps=",
    "get_total_train_batch_size": "per_device_train_batch_size=",
    "_update_auto_batch_size": "per_device_train_batch_size=",
    "_track_num_input_tokens": "include_num_input_tokens_seen=",
    "store_flos": "a TrainerCallback",
    "floating_point_ops": "a TrainerCallback",
    "_prepare_input": _DEVICES,
    "_prepare_inputs": _DEVICES,
    "_prepare_context_parallel_inputs": _DEVICES,
    "_move_model_to_device": _DEVICES,
    "_wrap_model": _DEVICES,
    "_sync_replicated_trainable_parameters": _DEVICES,
    "_defer_fsdp_gradient_reduction": _DEVICES,
    "get_sp_size": _DEVICES,
    "get_cp_size": _DEVICES,
    "get_tp_size": _DEVICES,
    "create_accelerator_and_postprocess": _DEVICES,
    "_build_accelerator_args": _DEVICES,
    "loss_is_scaled_for_ga": _LOSS,
    "_validate_args": "the constructor of your subclass",
    "_hp_search_setup": "the hp_space= of hyperparameter_search",
    "_report_to_hp_search": "the compute_objective= of hyperparameter_search",
    "_tune_save_checkpoint": "save_strategy=, and backend='optuna' in hyperparameter_search",
    "_push_from_checkpoint": "hub_strategy=, or a TrainerCallback (on_save)",
}
"""Methods of transformers' Trainer that this one never calls, and what to use instead."""


def is_replaced(trainer: Any, name: str) -> bool:
    """Whether a subclass, or an assignment to the trainer, replaces a method of this package."""
    return name in _replaced(trainer)


def _replaced(trainer: Any) -> dict[str, str]:
    """The attributes that subclasses and the trainer itself define -> where, such as `Mine.log`."""
    found: dict[str, str] = {}
    for cls in type(trainer).__mro__:
        if not (cls is object or cls.__module__.split(".")[0] == "qa_flax"):
            found |= {name: f"{cls.__name__}.{name}" for name in vars(cls)}
    return found | {name: f"trainer.{name}" for name in vars(trainer)}


def check_overrides(trainer: Any, *, calls_prediction_loop: bool = False) -> None:
    """Refuse methods of `NOT_CALLED` in the trainer's own class, its bases or the object itself.

    Args:
        trainer: the trainer.
        calls_prediction_loop: whether `use_legacy_prediction_loop` is set. Without it only a
            script's own `evaluate` or `predict` can call a `prediction_loop`.

    Raises:
        ValueError: names each method and what to use instead.
    """
    replaced = _replaced(trainer)
    found = {name: place for name, place in replaced.items() if name in NOT_CALLED}
    if not (calls_prediction_loop or {"evaluate", "predict"} & replaced.keys()):
        found |= {name: replaced[name] for name in ("prediction_loop",) if name in replaced}
    if found:
        lines = [f"{place}: use {NOT_CALLED.get(name, _LOOP)}" for name, place in found.items()]
        raise ValueError(
            "qa_flax never calls these methods, so replacing them would have no effect; remove "
            "them from the class:\n  " + "\n  ".join(lines)
        )
