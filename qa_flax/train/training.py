"""One call of `Trainer.train`: set up or resume a training run, run it, and clean up (host)."""

import itertools
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from transformers.trainer_utils import TrainOutput, speed_metrics

from qa_flax import storage
from qa_flax.data.interrupts import interrupts_deferred
from qa_flax.device import parallel
from qa_flax.device.counters import device_report
from qa_flax.device.memory import HELP, abstract_state, memory_plan
from qa_flax.device.prefetch import ready
from qa_flax.device.programs import train_program
from qa_flax.device.step import TrainState, Weights, weights_of
from qa_flax.distributed import preemption, processes
from qa_flax.distributed.exchange import broadcast_from_main
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.transfers import implicit_transfers
from qa_flax.models.weights import size_without_embeddings
from qa_flax.train import checkpoints
from qa_flax.train.custom import Custom, OptimizerView, OwnSchedule, as_direction
from qa_flax.train.early_stopping import describe_late_stop, describe_stop
from qa_flax.train.epochs import Epochs
from qa_flax.train.events import Events
from qa_flax.train.extra_data import extra_ratio
from qa_flax.train.folder_lock import check_lock
from qa_flax.train.live_state import LiveState
from qa_flax.train.loop import Actions, TrainingLoop
from qa_flax.train.plan import (
    Plan,
    describe_few_evaluations,
    dropout_bits_of,
    ema_decay_of,
    has_bf16_gradients,
    initial_optimizer_state,
    is_sharded,
    logging_steps_of,
    optimizer_of,
    output_dir,
    pads_tables,
    schedule_of,
    wants_device_report,
)
from qa_flax.train.profiling import Profiler
from qa_flax.train.progress import close_bars, print_above_bar
from qa_flax.train.reinitialize import mark_reinitialized
from qa_flax.train.resume import (
    Position,
    RunCheckpoints,
    conditions_of,
    restore_callbacks,
)
from qa_flax.train.schedules import Schedule
from qa_flax.train.steps import Steps
from qa_flax.train.train_data import TrainData, reports_fill

logger = logging.getLogger(__name__)

BYTES_PER_STEP = 8  # copied to the host: loss and gradient norm, float32

_memory_lines = itertools.count()  # the line about the memory is printed once in a process


class Resume(NamedTuple):
    """Whether and how to resume, as in `Trainer.train`."""

    checkpoint: Any
    """A path, True for the latest checkpoint, or None or False to start a new run."""
    accept_changes: bool
    """Whether to resume a run with other conditions, such as another seed."""


class TrainerActions(NamedTuple):
    """Methods of the trainer that a training calls."""

    evaluate: Callable[[], dict[str, Any]]
    """Evaluates with the weights of the latest update and returns the metrics."""
    save_model: Callable[[Any], None]
    """Writes the model and the tokenizer into a folder; called on the main process."""
    log: Callable[[dict[str, Any]], None]


def run_training(
    events: Events,
    live: LiveState,
    data: TrainData,
    loader: Any,
    graphdef: nnx.GraphDef,
    resume: Resume,
    actions: TrainerActions,
    custom: Custom,
) -> TrainOutput:
    """Train a model. Afterwards it has the trained weights, if possible also after an error.

    Args:
        events: the trainer's events. Their state is reset, or loaded from the checkpoint.
        live: the owner of the model's weights.
        data: the training set, with labels.
        loader: the training set's data loader, for callbacks.
        graphdef: the model's graph definition, with the compute dtype.
        resume: the checkpoint to resume from, if any.
        actions: the trainer's methods, which a subclass may have replaced.
        custom: the script's own loss, optimizer and schedule.

    Raises:
        ValueError: an argument is invalid, or the checkpoint cannot be resumed from.
        FloatingPointError: the loss or gradient norm of a step is not finite.
        Preempted: SIGTERM was received; a checkpoint was saved.
        KeyboardInterrupt: Ctrl-C was received; a checkpoint was saved, unless save_strategy is
            "no" or it was the second Ctrl-C. On the command line this is an `Interrupted`.
    """
    training = _Training(events, live, data, loader, graphdef, resume, actions, custom)
    if custom.loss is None and processes.is_main():
        events.warn_once("training", data.describe_labels_outside())
    if processes.is_main():
        events.warn_once("training", data.describe_packing(events.args))
        message = describe_few_evaluations(events.args, events.state.max_steps)
        events.warn_once("training", message)
        if _is_command_line(events.args) or not events.args.disable_tqdm:
            for line in data.describe(events.args):
                print_above_bar(line)
    started, first_step = time.time(), events.state.global_step
    try:
        with device_report("training", wants_device_report(events.args)) as report:
            stopped = training.run()
            report.steps = events.state.global_step - first_step
            report.bytes_to_host = report.steps * BYTES_PER_STEP
        live.end()
    except BaseException as error:
        # The model gets the weights trained so far after any error, Ctrl-C included.
        with interrupts_deferred():
            live.abandon()
            close_bars(events.handler, training=True)
        if isinstance(error, KeyboardInterrupt):
            training.report_interrupt()
        raise
    if stopped is not None:
        close_bars(events.handler, training=True)
    if isinstance(stopped, preemption.Preempted):
        raise stopped
    if stopped is not None:
        if _is_command_line(events.args):
            raise preemption.Interrupted(training.describe_interrupt())
        training.report_interrupt()
        raise KeyboardInterrupt
    return training.finish(started)


def _is_command_line(args: Any) -> bool:
    return vars(args).get("_is_command_line", False)


def _trained_weights(model: AutoModelForQuestionAnswering) -> Weights:
    """`weights_of(model)`; `ValueError` if all parameters are frozen."""
    weights = weights_of(model)
    if not jax.tree.leaves(weights.params):
        raise ValueError(
            "all parameters of the model are frozen (requires_grad=False, freeze_layers, "
            "freeze_embeddings), so there is nothing to train; call requires_grad_(True) on those "
            "to train"
        )
    return weights


def _schedule_and_optimizer(
    args: Any, model: Any, plan: Plan, custom: Custom
) -> tuple[Schedule, optax.GradientTransformation]:
    if custom.optimizer is not None:
        return OwnSchedule(custom.schedule, applies=False), as_direction(custom.optimizer)
    if custom.schedule is not None:
        return OwnSchedule(custom.schedule, applies=True), optimizer_of(args, model)
    return schedule_of(args, plan.updates), optimizer_of(args, model)


def _initial_state(args: Any, model: Any, optimizer: Any, *, is_averaged: bool) -> TrainState:
    """The state before the first update, in the memory of the host."""
    # Creating arrays copies constants to the device, and optax mixes dtypes.
    with parallel.on_host(), implicit_transfers(), jax.numpy_dtype_promotion("standard"):
        params, fixed = _trained_weights(model)
        average = params if is_averaged else None
        opt_state = initial_optimizer_state(args, model, optimizer, params)
        return TrainState(jnp.int32(0), params, fixed, opt_state, average)


def _position(run: dict[str, Any], plan: Plan) -> Position:
    """Where a training begins: at the start, or where the run of a checkpoint was stopped."""
    if not run:
        return Position()
    ended = run["epochs_ended"]
    # Checkpoints of earlier versions have no epoch_start.
    epoch_start = run.get("epoch_start", ended * plan.updates_per_epoch)
    return Position(ended, epoch_start, run["last_logged"], run.get("pending", {}))


class _Training:
    """One training run, new or resumed: its plan, state, steps, loop and checkpoints."""

    def __init__(
        self,
        events: Events,
        live: LiveState,
        data: TrainData,
        loader: Any,
        graphdef: nnx.GraphDef,
        resume: Resume,
        actions: TrainerActions,
        custom: Custom,
    ):
        self._events, self._args, self._live = events, events.args, live
        self._data, self._actions = data, actions
        args, model = events.args, live.model
        self._plan = plan = data.plan(args)
        self._schedule, optimizer = _schedule_and_optimizer(args, model, plan, custom)
        conditions = conditions_of(args, plan, data, model)
        self._checkpoints = RunCheckpoints(events, live, conditions, actions.save_model)
        ema_decay = ema_decay_of(args)
        state = _initial_state(args, model, optimizer, is_averaged=bool(ema_decay))
        abstract = abstract_state(
            model,
            optimizer,
            is_sharded(args),
            is_averaged=bool(ema_decay),
            is_padded=custom.optimizer is None and pads_tables(args),
        )
        events.reset()
        self._checkpoints.prepare(bool(resume.checkpoint) or args.save_strategy != "no", state)
        run: dict[str, Any] = {}
        if resume.checkpoint:
            state, run, events.state = self._checkpoints.load(
                resume.checkpoint, state, resume.accept_changes
            )
            mark_reinitialized(args, model)  # before the checkpoint was saved
        self._was_stopped = False  # whether early stopping had ended the run that is resumed
        if run:
            self._schedule.load_state_dict(run["schedule"])
            self._was_stopped = restore_callbacks(events)
        self._start: TrainState | None = state
        self._abstract = abstract
        self._reported_memory = 0
        smoothing = float(args.label_smoothing_factor)
        reduces, bits = has_bf16_gradients(args), dropout_bits_of(args)
        program_settings = smoothing, custom.loss, ema_decay, reduces, bits
        self._steps = Steps(
            live,
            train_program(graphdef, optimizer, *program_settings),
            parallel.run_key(args.seed),
            int(state.step),
            partial(self._report_memory, abstract),
            is_shown=processes.is_main() and not args.disable_tqdm,
        )
        if run:
            self._steps.resume(run["counters"])
        self._is_resumed = bool(run)
        self._first_step = events.state.global_step
        self._loop = self._make_loop(_position(run, plan))
        self._begin_state(loader)

    def _make_loop(self, position: Position) -> TrainingLoop:
        args, data, plan, model = self._args, self._data, self._plan, self._live.model
        self._epochs = Epochs(
            partial(data.batches, args),
            partial(ready, limits=model.id_limits),
            plan.epochs,
            is_ahead=data.is_built_here,
        )
        self._profiler = Profiler(args, self._steps, self._first_step)
        actions = Actions(
            self._epochs.batches,
            self._actions.evaluate,
            self._save,
            self._actions.log,
            self._checkpoints.callback_states,
            self._profiler.after_update,
        )
        # As in transformers: two for the forward pass, four for the backward pass.
        flops = 6 * size_without_embeddings(model)
        return TrainingLoop(
            self._events, plan, self._steps, self._schedule, position, actions, flops
        )

    def run(self) -> preemption.Preempted | preemption.Interrupted | None:
        """Train to the last update or until a callback stops it; return what else stopped it."""
        try:
            with preemption.interrupt_handled(exits=_is_command_line(self._args)):
                return self._run_loop()
        except preemption.Interrupted as stopped:  # after the last update
            self._save_stopped(stopped)
            return stopped

    def _run_loop(self) -> preemption.Preempted | preemption.Interrupted | None:
        try:
            self._put_on_cores()
            self._events.notify("on_train_begin")
            self._events.control.should_training_stop |= self._was_stopped
            if self._args.eval_on_start and not self._is_resumed:
                self._actions.evaluate()  # a schedule that follows the metric does not count it
            with self._steps, self._epochs:
                try:
                    self._loop.run()
                finally:
                    self._profiler.end(self._events.state.global_step)
        except (preemption.Preempted, preemption.Interrupted) as stopped:
            self._save_stopped(stopped)
            return stopped
        return None

    def _put_on_cores(self) -> None:
        """Copy the state to the cores; begin to compile the step for the batches to come."""
        # Only `start` refers to the host's copy, which is freed once the cores have theirs.
        start, self._start = self._start, None
        position = self._loop.position
        skip = self._events.state.global_step - position.epoch_start
        updates = range(skip, skip + self._plan.updates - self._events.state.global_step)
        shapes = self._data.shapes(self._args, position.epochs_ended, updates)
        self._steps.compile_ahead(self._abstract, shapes)
        self._live.begin(parallel.put_state(start, self._abstract))

    def _save_stopped(self, stopped: BaseException) -> None:
        """Save a checkpoint to resume from, unless nothing has changed since the latest one.

        A preempted run always needs one. Who presses Ctrl-C has the choice: `save_strategy`.
        """
        callback_states = self._loop.discard_evaluation()
        if isinstance(stopped, preemption.Interrupted) and self._args.save_strategy == "no":
            return
        if not self._checkpoints.is_current(self._loop.position.pending):
            self._save(self._loop.position, callback_states)

    def finish(self, started: float) -> TrainOutput:
        """Load the best model if `load_best_model_at_end` is set; log and return the metrics.

        Args:
            started: `time.time()` at the start of the training.
        """
        args, state = self._args, self._events.state
        # A resumed run counts the updates of this call only.
        steps = state.global_step - self._first_step
        metrics = speed_metrics(
            "train",
            started,
            num_samples=round(steps / max(1, state.max_steps) * self._plan.samples(args)),
            num_steps=steps,
        )
        metrics["total_flos"] = state.total_flos
        metrics["train_loss"] = self._steps.mean_loss()
        if reports_fill(args):
            metrics["train_fill"] = self._loop.fill()
        if extra_ratio(args) is not None:
            metrics["train_extra_batches"] = self._loop.extra_batches
        metrics = broadcast_from_main("training metrics", metrics)
        is_best_loaded = bool(args.load_best_model_at_end) and self._load_best_model()
        self._report_early_stop(is_best_loaded)
        self._actions.log(metrics)
        best = state.best_model_checkpoint
        if args.save_total_limit == 1 and best is not None and processes.is_main():
            # The latest checkpoint was retained beside the best one only to resume from it.
            checkpoints.delete_others(output_dir(args), storage.path(best))
        self._events.notify("on_train_end")
        return TrainOutput(state.global_step, metrics["train_loss"], metrics)

    def describe_interrupt(self) -> str:
        """After Ctrl-C on the command line, say what is saved, and how to go on."""
        state, checkpoint = self._events.state, self._checkpoints.latest
        if checkpoint is not None:
            then = f"{checkpoint} is saved, and repeating the command resumes from it"
        elif self._args.save_strategy == "no":
            then = "with --save_strategy no, no checkpoint is saved"
        else:
            then = "there is no checkpoint to resume from yet"
        return f"interrupted after step {state.global_step} of {state.max_steps}; {then}"

    def report_interrupt(self) -> None:
        """After Ctrl-C, log what is kept, and how to go on."""
        if not processes.is_main() or self._live.is_lost:  # reading the model gives the reason
            return
        step, checkpoint = self._steps.started, self._checkpoints.latest
        resume = (
            "it has saved no checkpoint to resume from (save_strategy, save_steps)"
            if checkpoint is None
            else f"train(resume_from_checkpoint=True) resumes from {checkpoint}"
        )
        logger.warning(
            "Training was interrupted after step %d of %d. The model has the weights of step %d: "
            "it can be evaluated and saved. train() trains them further in a new run; %s.",
            step,
            self._events.state.max_steps,
            step,
            resume,
        )

    def _save(self, position: Position, callback_states: Any) -> None:
        check_lock(output_dir(self._args))
        run = {"counters": self._steps.counters(), "schedule": self._schedule.state_dict()}
        self._checkpoints.save(run, position, callback_states)

    def _report_early_stop(self, is_best_loaded: bool) -> None:
        callbacks, state = self._events.handler.callbacks, self._events.state
        line = describe_stop(callbacks, self._args, state, is_best_loaded=is_best_loaded)
        if line is not None and self._events.control.should_training_stop and processes.is_main():
            logger.warning("%s.", line)

    def _load_best_model(self) -> bool:
        """Load it and return True, or log a warning if there is none."""
        best, model = self._events.state.best_model_checkpoint, self._live.model
        if best is None:
            logger.warning(
                "load_best_model_at_end: no checkpoint of a best model was saved, so the model "
                "keeps its latest weights."
            )
            return False
        if not storage.is_real_folder(storage.path(best)):
            is_taken = storage.is_taken(storage.path(best))
            logger.warning(
                "load_best_model_at_end: %s %s, so the model keeps its latest weights.",
                best,
                "is no checkpoint of this run" if is_taken else "does not exist any more",
            )
            return False
        metric = self._events.state.best_metric
        logger.info("Loading the best model from %s (metric %s).", best, metric)
        load = model.from_pretrained if model.lora is None else model.with_adapter
        with parallel.on_host() if is_sharded(self._args) else nullcontext():
            params = weights_of(load(best)).params
            with interrupts_deferred():
                model.set_params(params)
        return True

    def _begin_state(self, loader: Any) -> None:
        state, handler, plan = self._events.state, self._events.handler, self._plan
        state.is_local_process_zero = state.is_world_process_zero = processes.is_main()
        state.max_steps, state.num_train_epochs = plan.updates, plan.epochs
        state.train_batch_size = self._args.per_device_train_batch_size
        state.compute_steps(self._args, plan.updates)
        if processes.is_main():
            late = describe_late_stop(handler.callbacks, self._args, state, plan)
            self._events.warn_once("training", late)
        if (steps := logging_steps_of(self._args, plan.updates)) is not None:
            state.logging_steps = steps
        view: Any = OptimizerView(self._args, self._schedule)
        handler.optimizer, handler.train_dataloader = view, loader
        handler.lr_scheduler = self._schedule  # pyright: ignore[reportAttributeAccessIssue]

    def _report_memory(self, abstract: TrainState, compiled: Any, arrays: Any) -> None:
        """Report the memory of a compiled step that exceeds the limit, and that of the first one.

        The first one of a process is reported if the limit is known, as it is on an accelerator, or
        if parameters are sharded, which is done to save memory.
        """
        plan, limit = memory_plan(abstract, compiled), parallel.memory_limit()
        is_too_much = limit is not None and plan.total > limit
        is_shown = processes.is_main() and not self._args.disable_tqdm
        is_useful = limit is not None or is_sharded(self._args)
        rows, tokens = arrays["input_ids"].shape[-2:]
        line = plan.text(limit, f"{rows} x {tokens} tokens")
        if is_too_much and plan.total > self._reported_memory:
            logger.warning("%s. %s.", line, HELP)
        elif is_useful and is_shown and next(_memory_lines) == 0:
            print_above_bar(line)
        self._reported_memory = max(self._reported_memory, plan.total)
