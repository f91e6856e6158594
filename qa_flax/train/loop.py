"""The training loop: epochs, updates, and logging, evaluation and saving between them (host)."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from qa_flax.data.batches import HostBatch
from qa_flax.device.prefetch import Ready
from qa_flax.distributed import preemption, processes
from qa_flax.train.best import followed_metric, update_best
from qa_flax.train.events import Events
from qa_flax.train.overfitting import warn_of_overfitting
from qa_flax.train.plan import Plan
from qa_flax.train.progress import set_progress
from qa_flax.train.resume import Flags, Position
from qa_flax.train.schedules import Schedule
from qa_flax.train.steps import Steps


class Actions(NamedTuple):
    """Functions that the loop calls."""

    batches: Callable[[int, int], Iterator[Ready]]
    """(epoch, updates to skip) -> the batches of its remaining updates."""
    evaluate: Callable[[], dict[str, Any]]
    """Evaluate with the weights of the latest update and return the metrics."""
    save: Callable[[Position, Any], None]
    """Save a checkpoint at a position, with these callback states; None: the current ones."""
    log: Callable[[dict[str, Any]], None]
    callback_states: Callable[[], Any]
    """Return the states of the callbacks and of the control."""
    after_update: Callable[[int], None]
    """Called with the number of each update that was started."""


class TrainingLoop:
    """Runs the epochs of a plan, starting at a position.

    Args:
        events: state, control and callbacks; the loop counts updates in `state.global_step`.
        plan: number of updates, in all and per epoch.
        steps: runs the updates.
        schedule: gives the learning rate of each update.
        position: where to start: at the beginning, or where the resumed run was stopped.
        actions: see `Actions`.
        flops_per_token: floating point operations to count for each token, padding included.
    """

    def __init__(
        self,
        events: Events,
        plan: Plan,
        steps: Steps,
        schedule: Schedule,
        position: Position,
        actions: Actions,
        flops_per_token: int = 0,
    ):
        self._events, self._args = events, events.args
        self._plan, self._steps, self._schedule = plan, steps, schedule
        self._actions, self._flops_per_token = actions, flops_per_token
        self.position = position
        # During an evaluation: length of the log history, flags and callback states before it.
        self._before_evaluation: tuple[int, Flags, Any] | None = None
        self._tokens = self._positions = 0
        self.extra_batches = 0
        """How many batches were of the extra training set; a resumed run counts its own only."""

    def run(self) -> None:
        """Train until the last update, or until a callback stops the training.

        Raises:
            Preempted: SIGTERM was received; call `discard_evaluation` before saving a checkpoint.
            FloatingPointError: the loss or gradient norm of a step is not finite.
        """
        events, state, position = self._events, self._events.state, self.position
        if self._updates_in_epoch() == 0:
            self._resume_pending()  # the run was stopped at the end of an epoch
        while position.epochs_ended < state.num_train_epochs and not self._is_stopped():
            done = self._updates_in_epoch()
            events.notify("on_epoch_begin")
            self._resume_pending()
            skip = 0 if self._args.ignore_data_skip else done
            batches = self._actions.batches(position.epochs_ended, skip)
            # The flags are read before a batch is built: a stream may be slow to give it.
            while not (events.control.should_epoch_stop or self._is_stopped()):
                if state.global_step >= state.max_steps:  # resumed from its last checkpoint
                    events.control.should_training_stop = True
                elif (batch := next(batches, None)) is None:
                    break
                else:
                    self._update(batch)
            position.epochs_ended += 1
            position.epoch_start = state.global_step
            events.notify("on_epoch_end")
            self._apply_control()

    def fill(self) -> float:
        """Return the share of the computed positions that hold tokens; 0 before an update.

        A resumed run counts its own updates only.
        """
        return self._tokens / max(1, self._positions)

    def evaluate(self) -> dict[str, Any]:
        """Evaluate, pass the metric to a schedule that depends on it, and return the metrics."""
        metrics = self._actions.evaluate()
        if self._schedule.follows_metric:
            self._schedule.observe(followed_metric(self._args, metrics))
        return metrics

    def discard_evaluation(self) -> Any:
        """After `Preempted`, discard the interrupted evaluation; the resumed run will repeat it.

        Returns:
            The callback states from before the evaluation; None if none was interrupted.
        """
        self.position.pending = {}
        if self._before_evaluation is None:
            return None
        history, self.position.pending, callback_states = self._before_evaluation
        del self._events.state.log_history[history:]
        return callback_states

    # ---- one update ------------------------------------------------------------------------------

    def _update(self, ready: Ready) -> None:
        events, state = self._events, self._events.state
        events.notify("on_step_begin")
        for _ in range(self._plan.batches_of_update(self._updates_in_epoch()) - 1):
            events.notify("on_substep_end")
        events.notify("on_pre_optimizer_step")
        rate = self._schedule.rate(state.global_step)
        self._steps.start(ready, rate, *self._schedule.get_last_lr())
        events.notify("on_optimizer_step")
        state.global_step += 1
        epochs = self.position.epochs_ended
        state.epoch = self._plan.epoch_after(epochs, self._updates_in_epoch())
        self._count_tokens(ready.batch)
        set_progress(state, self._steps.progress())
        self._actions.after_update(state.global_step)
        events.notify("on_step_end")
        self._apply_control()
        preemption.check()

    def _updates_in_epoch(self) -> int:
        """Number of updates that are done in the current epoch."""
        return self._events.state.global_step - self.position.epoch_start

    def _is_stopped(self) -> bool:
        return self._events.control.should_training_stop

    def _count_tokens(self, batch: HostBatch) -> None:
        self._tokens += batch.tokens
        self.extra_batches += self._plan.accumulation * batch.is_extra
        self._positions += batch.arrays["input_ids"].size * processes.count()
        state, tokens = self._events.state, batch.positions
        state.total_flos += float(self._flops_per_token * tokens)
        which_tokens = getattr(self._args, "include_num_input_tokens_seen", "no")
        if which_tokens != "no":
            is_all = which_tokens != "non_padding"
            state.num_input_tokens_seen += tokens if is_all else batch.tokens

    # ---- what the control asks for ---------------------------------------------------------------

    def _apply_control(self) -> None:
        """Log, evaluate and save if the control asks for it, in the order of transformers."""
        events = self._events
        if events.control.should_log and events.state.global_step > self.position.last_logged:
            self.position.last_logged = events.state.global_step
            self._actions.log(self._steps.logs())
        if events.control.should_evaluate:
            flags = {"should_evaluate": True, "should_save": events.control.should_save}
            history = len(events.state.log_history)
            # A preempted run returns to this point: see `discard_evaluation`.
            self._before_evaluation = history, flags, self._actions.callback_states()
            with self._steps.paused():
                is_best = update_best(self._args, events.state, self.evaluate())
            warn_of_overfitting(events)
            self._before_evaluation = None
            if self._args.save_strategy == "best":
                events.control.should_save = is_best
        if events.control.should_save:
            with self._steps.paused():
                self._actions.save(self.position, None)
            events.notify("on_save")

    def _resume_pending(self) -> None:
        """Do the evaluation and saving that the stopped run had not finished."""
        pending, self.position.pending = self.position.pending, {}
        for name, value in pending.items():
            setattr(self._events.control, name, value)
        self._apply_control()
