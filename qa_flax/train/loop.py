"""One call of `Trainer.train`: epochs, evaluation, checkpoints, the best model; resumed or not."""

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import transformers
from flax import nnx
from tqdm import tqdm
from transformers import PreTrainedConfig
from transformers.trainer_callback import (
    CallbackHandler,
    ExportableState,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import TrainOutput, speed_metrics

from qa_flax import storage
from qa_flax.data.batches import HostBatch, Loader, train_batches
from qa_flax.data.windows import Windows
from qa_flax.device import parallel
from qa_flax.device.memory import HELP, memory_plan, state_pattern
from qa_flax.device.optim import count_batches, count_updates, make_optimizer
from qa_flax.device.step import TrainState, make_train_step, weights_of
from qa_flax.distributed import exchange, preemption, processes
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.sharding import bytes_of
from qa_flax.storage import AnyPath
from qa_flax.train import checkpoints
from qa_flax.train.schedules import Schedule, make_schedule
from qa_flax.train.training import Training

logger = logging.getLogger(__name__)


class MetricError(ValueError):
    """`metric_for_best_model` is not among the metrics."""


@runtime_checkable
class Owner(Protocol):
    """What a training asks of the trainer that it belongs to."""

    args: transformers.TrainingArguments
    state: TrainerState
    control: TrainerControl
    callback_handler: CallbackHandler
    model: AutoModelForQuestionAnswering
    eval_dataset: Any
    compute_metrics: Any

    def evaluate(self) -> dict[str, Any]:
        """Metrics of the evaluation set."""
        ...

    def log(self, logs: dict[str, Any]) -> None:
        """Into the log history, and to the callbacks."""
        ...

    def save_model(self, output_dir: Any = None) -> None:
        """Model and tokenizer into a folder."""
        ...

    def notify(self, event: str, *positional: Any, **kwargs: Any) -> None:
        """Tell the callbacks."""
        ...

    def use_weights(self, on_cores: Any) -> None:
        """Evaluate with these from now on; None: with the model's own."""
        ...


class TrainingLoop:
    """One call of `train`.

    Args:
        trainer: whose model is trained, and who evaluates, logs and tells the callbacks.
        windows: what to train on, with labels.
        graphdef: the model's, in the dtype to compute in.
        resume_from_checkpoint, accept_changes: as of `Trainer.train`.
    """

    bytes_per_step = 8  # that come to the host: loss and gradient norm

    def __init__(
        self,
        trainer: Owner,
        windows: Windows,
        graphdef: nnx.GraphDef,
        resume_from_checkpoint: Any,
        accept_changes: bool,
    ):
        args = trainer.args
        self._trainer, self._args, self._windows = trainer, args, windows
        self._rows = parallel.core_count() * args.per_device_train_batch_size
        _check_rows(args, len(windows), self._rows)
        _check_best_metric(trainer)
        self._batches_per_epoch = count_batches(len(windows), self._rows, args.dataloader_drop_last)
        self._per_epoch, total = count_updates(
            len(windows),
            self._rows,
            args.gradient_accumulation_steps,
            float(args.num_train_epochs),
            args.max_steps,
            args.dataloader_drop_last,
        )
        self._schedule = _schedule(args, total)
        optimizer = _optimizer(args)
        self._is_sharded = bool(getattr(args, "shard_params", False))
        with parallel.on_host():
            params, fixed = weights_of(trainer.model)
            state = TrainState(jnp.int32(0), params, fixed, optimizer.init(params))
        pattern = state_pattern(trainer.model, optimizer, self._is_sharded)
        self._conditions = self._describe_conditions()
        self._epochs_ended = self._last_logged = 0
        self._had_been_stopped = False
        trainer.state, trainer.control = new_state(), TrainerControl()
        before: dict[str, Any] = {}
        if resume_from_checkpoint or args.save_strategy != "no":
            if processes.is_main():
                checkpoints.recover(self._output_dir())
            exchange.require_shared(self._output_dir())
        if resume_from_checkpoint:
            path = checkpoints.find(resume_from_checkpoint, self._output_dir())
            found, before = checkpoints.load_state(path, state._replace(fixed=()))
            state = found._replace(fixed=fixed)
            if not accept_changes:
                checkpoints.check_same_run(before["conditions"], self._conditions)
            self._resume(path, before, total)
        step = make_train_step(graphdef, optimizer, float(args.label_smoothing_factor))
        self._training = Training(
            parallel.put_parts(state, pattern),
            parallel.over_cores(step, (0, 0, None, None), (0, None), donate=True),
            parallel.run_key(args.seed),
            partial(self._tell_memory, pattern),
        )
        self._memory_told = 0
        if before:
            self._training.resume(before["counters"])
        self._is_resumed = bool(before)
        self._pending: dict[str, bool] = before.get("pending", {})
        self._saved = (trainer.state.global_step, self._pending)
        self._before_evaluation: tuple[int, dict[str, bool], Any] | None = None
        self._first_step = trainer.state.global_step
        self._set_state(total, optimizer)

    def run(self) -> TrainOutput:
        """Train to the end; whatever happens, the model holds what was learnt."""
        started = time.time()
        try:
            self._trainer.use_weights(self._training.state.weights)
            self._trainer.notify("on_train_begin")
            self._trainer.control.should_training_stop |= self._had_been_stopped
            if self._args.eval_on_start and not self._is_resumed:
                self._evaluate()
            self._run_epochs()
        except preemption.Preempted:
            self._trainer.use_weights(None)
            self._save_preempted()
            raise
        except BaseException:
            # Also after an error or Ctrl-C: what was learnt so far is the caller's.
            self._trainer.use_weights(None)
            if not (self._is_sharded and processes.count() > 1):  # the others may not come
                self._keep_learnt()
            raise
        self._trainer.use_weights(None)
        self._keep_learnt()
        return self._end(started)

    def _keep_learnt(self) -> None:
        """The model gets what it is now on the cores, unless a failed step has taken that along."""
        if (learnt := self._training.params()) is not None:
            self._take_over(learnt)

    def _take_over(self, params: Any) -> None:
        with parallel.on_host() if self._is_sharded else nullcontext():
            self._trainer.model.take_over(params)

    def _tell_memory(self, pattern: TrainState, compiled: Any, arrays: Any) -> None:
        """Say what the step takes, once, and again where a batch of another shape takes more."""
        plan, limit = memory_plan(pattern, compiled), parallel.memory_limit()
        is_first, is_too_much = not self._memory_told, limit is not None and plan.total > limit
        if is_first or (is_too_much and plan.total > self._memory_told):
            rows, tokens = arrays["input_ids"].shape[-2:]
            said = plan.text(limit, f"{rows} x {tokens} tokens")
            if is_too_much:
                logger.warning("%s. %s.", said, HELP)
            elif processes.is_main() and not self._args.disable_tqdm:
                tqdm.write(said, file=sys.stderr)  # above the bar, where there is one
        self._memory_told = max(self._memory_told, plan.total)

    # ---- epochs ----------------------------------------------------------------------------------

    def _run_epochs(self) -> None:
        trainer, state, args = self._trainer, self._trainer.state, self._args
        epochs = state.num_train_epochs
        if state.global_step == self._epochs_ended * self._per_epoch:
            self._follow_pending()  # of the end of an epoch
        while self._epochs_ended < epochs and not trainer.control.should_training_stop:
            done = state.global_step - self._epochs_ended * self._per_epoch
            trainer.notify("on_epoch_begin")
            self._follow_pending()
            for batch in self._batches(self._epochs_ended, 0 if args.ignore_data_skip else done):
                if trainer.control.should_epoch_stop or trainer.control.should_training_stop:
                    break
                self._step(batch)
            self._epochs_ended += 1
            trainer.notify("on_epoch_end")
            self._follow_control()

    def _step(self, batch: HostBatch) -> None:
        trainer, state = self._trainer, self._trainer.state
        trainer.notify("on_step_begin")
        for _ in range(self._batches_of_next_update() - 1):
            trainer.notify("on_substep_end")
        trainer.notify("on_pre_optimizer_step")
        rate = self._schedule.rate(state.global_step)
        self._training.start_step(batch.arrays, rate, batch.windows)
        trainer.notify("on_optimizer_step")
        trainer.use_weights(self._training.state.weights)
        state.global_step += 1
        state.epoch = self._epoch_now()
        self._count_tokens(batch)
        trainer.notify("on_step_end", progress=self._training.progress())
        self._follow_control()
        preemption.check()

    def _batches(self, epoch: int, skip: int) -> Iterator[HostBatch]:
        args = self._args
        return train_batches(
            self._windows,
            parallel.core_count(),
            args.per_device_train_batch_size,
            self._conditions["data_seed"],
            epoch,
            args.train_sampling_strategy,
            accumulation=args.gradient_accumulation_steps,
            drop_last=args.dataloader_drop_last,
            skip=skip,
            mine=parallel.host_cores(),
        )

    def _batches_of_next_update(self) -> int:
        """Fewer than `gradient_accumulation_steps` at the end of an epoch."""
        updates = self._trainer.state.global_step - self._epochs_ended * self._per_epoch
        accumulation = self._args.gradient_accumulation_steps
        return min(accumulation, self._batches_per_epoch - updates * accumulation)

    def _epoch_now(self) -> float:
        """Epochs done, counted in batches, as transformers does."""
        updates = self._trainer.state.global_step - self._epochs_ended * self._per_epoch
        batches = updates * self._args.gradient_accumulation_steps
        return self._epochs_ended + min(batches, self._batches_per_epoch) / self._batches_per_epoch

    def _count_tokens(self, batch: HostBatch) -> None:
        counted = getattr(self._args, "include_num_input_tokens_seen", "no")
        if counted == "non_padding":
            self._trainer.state.num_input_tokens_seen += batch.tokens
        elif counted != "no":
            width = batch.arrays["input_ids"].shape[-1]
            self._trainer.state.num_input_tokens_seen += batch.windows * width

    def _follow_control(self) -> None:
        """Log, evaluate and save where a callback asked for it, in transformers' order."""
        trainer = self._trainer
        if trainer.control.should_log and trainer.state.global_step > self._last_logged:
            self._last_logged = trainer.state.global_step
            trainer.log(self._training.logs())
        if trainer.control.should_evaluate:
            flags = {"should_evaluate": True, "should_save": trainer.control.should_save}
            history = len(trainer.state.log_history)
            self._before_evaluation = history, flags, self._callback_states()
            with self._training.paused():
                is_best = self._note_best(self._evaluate())
            self._before_evaluation = None
            if self._args.save_strategy == "best":
                trainer.control.should_save = is_best
        if trainer.control.should_save:
            with self._training.paused():
                self._save_checkpoint()
            trainer.notify("on_save")

    def _follow_pending(self) -> None:
        """Evaluate and save where the run that was stopped had not come to the end of it."""
        pending, self._pending = self._pending, {}
        for name, value in pending.items():
            setattr(self._trainer.control, name, value)
        self._follow_control()

    def _save_preempted(self) -> None:
        """Save, as a run that goes on from here would have it: without the evaluation under way."""
        state, pending, callbacks = self._trainer.state, {}, None
        if self._before_evaluation is not None:
            history, pending, callbacks = self._before_evaluation
            del state.log_history[history:]
        # At step 0 there is nothing to keep, and a checkpoint may just have been saved.
        if state.global_step and (state.global_step, pending) != self._saved:
            self._save_checkpoint(pending, callbacks)

    def _evaluate(self) -> dict[str, Any]:
        metrics = self._trainer.evaluate()
        if self._schedule.follows_metric:
            self._schedule.observe(_followed_metric(self._args, metrics))
        return metrics

    def _end(self, started: float) -> TrainOutput:
        args, state = self._args, self._trainer.state
        # Of what was done in this call: a resumed run did the rest before.
        share = (state.global_step - self._first_step) / state.max_steps
        rows = args.max_steps * self._conditions["rows_per_update"] if args.max_steps > 0 else None
        metrics = speed_metrics(
            "train",
            started,
            num_samples=round(share * (rows or len(self._windows) * args.num_train_epochs)),
            num_steps=state.global_step - self._first_step,
        )
        metrics["total_flos"] = state.total_flos
        metrics["train_loss"] = self._training.mean_loss()
        metrics = exchange.of_main("training metrics", metrics)
        if args.load_best_model_at_end:
            self._load_best_model()
        self._trainer.log(metrics)
        best = state.best_model_checkpoint
        if args.save_total_limit == 1 and best is not None and processes.is_main():
            # The last one was kept beside the best, to resume from.
            checkpoints.delete_others(self._output_dir(), storage.path(best))
        self._trainer.notify("on_train_end")
        return TrainOutput(state.global_step, metrics["train_loss"], metrics)

    # ---- best model and checkpoints --------------------------------------------------------------

    def _note_best(self, metrics: dict[str, Any]) -> bool:
        """Remember the best value of `metric_for_best_model`; a NaN never is. Whether it is new."""
        if self._args.metric_for_best_model is None:
            return False
        state = self._trainer.state
        value, best = _followed_metric(self._args, metrics), state.best_metric
        better = best is None or (value > best if self._args.greater_is_better else value < best)
        if not (math.isfinite(value) and better):
            return False
        state.best_metric = value
        if self._args.save_strategy != "no":
            state.best_global_step = state.global_step
        return True

    def _save_checkpoint(
        self, pending: dict[str, bool] | None = None, callbacks: Any = None
    ) -> None:
        """Save what a run needs to go on from here; `pending` is what it is to do first.

        `callbacks`: their states, if not as they are. The main host writes, the others wait.
        """
        trainer, state, output = self._trainer, self._trainer.state, self._output_dir()
        directory = output / f"checkpoint-{state.global_step}"
        self._keep_learnt()
        self._find_best(state, directory)
        state.stateful_callbacks = self._callback_states() if callbacks is None else callbacks
        description = self._description() | {"pending": pending or {}}
        taken = None if self._args.save_only_model else self._training.taken()
        if processes.is_main():
            with checkpoints.new_folder(directory) as folder:
                trainer.save_model(folder)
                if taken is not None:
                    checkpoints.save_state(folder, taken, description)
                state.save_to_json(str(folder / checkpoints.TRAINER_STATE))
            best = state.best_model_checkpoint
            checkpoints.rotate(output, self._args.save_total_limit, directory, best)
        exchange.wait_for_all(directory.name)
        self._saved = state.global_step, pending or {}

    def _callback_states(self) -> Any:
        """What the callbacks and the control have to remember, as transformers writes it."""
        trainer = self._trainer
        exported = [*trainer.callback_handler.callbacks, trainer.control]
        stateful: Any = [one for one in exported if isinstance(one, ExportableState)]
        return TrainerState(stateful_callbacks=stateful).stateful_callbacks

    def _find_best(self, state: TrainerState, coming: AnyPath | None = None) -> None:
        """Note where the best model's checkpoint is, if there is one (or soon will be)."""
        if state.best_global_step is not None:
            best = self._output_dir() / f"checkpoint-{state.best_global_step}"
            if best == coming or best.is_dir():
                state.best_model_checkpoint = str(best)

    def _description(self) -> dict[str, Any]:
        """What a run that goes on from here needs to know, beside the state on the cores."""
        return {
            "epochs_ended": self._epochs_ended,
            "last_logged": self._last_logged,
            "conditions": self._conditions,
            "counters": self._training.counters(),
            "schedule": self._schedule.state_dict(),
        }

    def _describe_conditions(self) -> dict[str, Any]:
        """What a resumed run must share with the one that was stopped."""
        args, model = self._args, self._trainer.model
        return {
            "seed": args.seed,
            "data_seed": args.seed if args.data_seed is None else args.data_seed,
            "rows_per_update": self._rows * args.gradient_accumulation_steps,
            "dataloader_drop_last": args.dataloader_drop_last,
            "train_sampling_strategy": args.train_sampling_strategy,
            "windows": len(self._windows),
            "windows_digest": checkpoints.digest(self._windows),
            "model": _sizes(model.config),
            "lora": None if model.lora is None else model.lora.to_peft(None),
            "fixed_digest": checkpoints.digest_of(weights_of(model).fixed),
        }

    def _resume(self, path: Path, before: dict[str, Any], total: int) -> None:
        """Take the trainer's and the callbacks' state from a checkpoint."""
        trainer = self._trainer
        self._epochs_ended, self._last_logged = before["epochs_ended"], before["last_logged"]
        self._schedule.load_state_dict(before["schedule"])
        state = TrainerState.load_from_json(str(path / checkpoints.TRAINER_STATE))
        trainer.state = state
        self._find_best(state)  # the folder may have been moved
        stateful: Any = state.stateful_callbacks  # a dict, whatever its annotation says
        kept = dict(stateful or {})
        control = kept.pop("TrainerControl", None)
        # A run that had come to its end stops for that reason, not because of a callback.
        if control is not None and state.global_step < min(state.max_steps, total):
            self._had_been_stopped = control["args"]["should_training_stop"]
        for name, states in kept.items():
            states = states if isinstance(states, list) else [states]
            callbacks = [c for c in trainer.callback_handler.callbacks if type(c).__name__ == name]
            for callback, one in zip(callbacks, states, strict=False):
                for attribute, value in one["attributes"].items():
                    setattr(callback, attribute, value)

    def _load_best_model(self) -> None:
        state = self._trainer.state
        if state.best_model_checkpoint is None:
            logger.warning("load_best_model_at_end: no checkpoint of a best model was saved.")
            return
        logger.info(
            "The best model is that of %s (%s).", state.best_model_checkpoint, state.best_metric
        )
        model, best = self._trainer.model, state.best_model_checkpoint
        load = model.from_pretrained if model.lora is None else model.with_adapter
        with parallel.on_host() if self._is_sharded else nullcontext():
            self._take_over(weights_of(load(best)).params)

    # ---- small things ----------------------------------------------------------------------------

    def _set_state(self, total: int, optimizer: Any) -> None:
        state, handler = self._trainer.state, self._trainer.callback_handler
        state.is_local_process_zero = state.is_world_process_zero = processes.is_main()
        state.max_steps, state.num_train_epochs = total, math.ceil(total / self._per_epoch)
        state.train_batch_size = self._args.per_device_train_batch_size
        state.compute_steps(self._args, total)
        loader: Any = Loader(lambda: self._batches(0, 0), self._per_epoch)
        handler.optimizer, handler.train_dataloader = optimizer, loader
        handler.lr_scheduler = self._schedule  # pyright: ignore[reportAttributeAccessIssue]

    def _output_dir(self) -> AnyPath:
        return output_dir(self._args)


def new_state() -> TrainerState:
    """A trainer's state before it has done anything."""
    is_main = processes.is_main()
    return TrainerState(is_local_process_zero=is_main, is_world_process_zero=is_main)


def output_dir(args: transformers.TrainingArguments) -> AnyPath:
    """Where the files of a run go."""
    return storage.path(args.output_dir or "trainer_output")


# ---- what the arguments ask for ------------------------------------------------------------------


def _schedule(args: transformers.TrainingArguments, total: int) -> Schedule:
    kwargs: Any = args.lr_scheduler_kwargs
    return make_schedule(
        getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
        float(args.learning_rate),
        args.get_warmup_steps(total),
        total,
        kwargs,
        greater_is_better=bool(args.greater_is_better),
    )


def _optimizer(args: transformers.TrainingArguments) -> Any:
    return make_optimizer(
        getattr(args.optim, "value", args.optim),
        weight_decay=float(args.weight_decay),
        adam_beta1=float(args.adam_beta1),
        adam_beta2=float(args.adam_beta2),
        adam_epsilon=float(args.adam_epsilon),
        max_grad_norm=float(args.max_grad_norm or 0),
        optim_args=args.optim_args,
    )


def optimizer_bytes(
    args: transformers.TrainingArguments, model: AutoModelForQuestionAnswering
) -> int:
    """What the optimizer's state of the trained parameters takes on each core."""
    is_sharded = bool(getattr(args, "shard_params", False))
    return bytes_of(state_pattern(model, _optimizer(args), is_sharded).opt_state)


def _check_rows(args: transformers.TrainingArguments, windows: int, rows: int) -> None:
    if args.dataloader_drop_last and windows < rows:
        raise ValueError(
            f"dataloader_drop_last leaves nothing: {windows} windows are no batch of {rows}; leave "
            "it out, or lower per_device_train_batch_size"
        )


def _metric_name(args: transformers.TrainingArguments) -> str:
    name = args.metric_for_best_model or "loss"
    return name if name.startswith("eval_") else f"eval_{name}"


def _check_best_metric(trainer: Owner) -> None:
    """Refuse a metric that no evaluation can give, before hours have gone by."""
    args, given = trainer.args, trainer.eval_dataset
    is_needed = args.metric_for_best_model is not None and args.eval_strategy != "no"
    if not is_needed or trainer.compute_metrics is not None:
        return
    known = [f"eval_{name}_loss" for name in given] if isinstance(given, Mapping) else ["eval_loss"]
    if _metric_name(args) not in known:
        raise MetricError(
            f"metric_for_best_model={args.metric_for_best_model!r}: without compute_metrics "
            f"evaluation gives only {', '.join(known)}"
        )


def _followed_metric(args: transformers.TrainingArguments, metrics: dict[str, Any]) -> float:
    name = _metric_name(args)
    if name not in metrics:
        raise MetricError(
            f"metric_for_best_model: evaluation gave no {name}; it gave: "
            f"{', '.join(sorted(metrics))}"
        )
    return float(metrics[name])


def _sizes(config: PreTrainedConfig) -> dict[str, Any]:
    """The config without what changes from one load to the next."""
    found = config.to_diff_dict()
    return {name: value for name, value in found.items() if not name.startswith(("_", "transf"))}
