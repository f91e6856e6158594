"""The loop of a training: epochs and updates, and what callbacks ask for between them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from qa_flax.data.batches import HostBatch
from qa_flax.distributed import preemption
from qa_flax.train.best import followed_metric, note_best
from qa_flax.train.events import Events
from qa_flax.train.plan import Plan
from qa_flax.train.resume import Flags, Position
from qa_flax.train.schedules import Schedule
from qa_flax.train.steps import Steps


class Actions(NamedTuple):
    """What the loop has done by others."""

    batches: Callable[[int, int], Iterator[HostBatch]]
    """(epoch, updates to skip) -> the batches of its updates."""
    evaluate: Callable[[], dict[str, Any]]
    """Metrics of the evaluation set, with the weights of the last update."""
    save: Callable[[Position, Any], None]
    """Save a checkpoint at a position; the callbacks' states, if not as they are now."""
    callback_states: Callable[[], Any]


class TrainingLoop:
    """Goes through the epochs of a plan, from a position on.

    Args:
        events: what callbacks see; `state.global_step` is the loop's own count, too.
        plan: how many updates there are.
        steps: runs them.
        schedule: their learning rates.
        position: where to begin: at the start, or where a run was stopped.
        actions: see `Actions`.
    """

    def __init__(
        self,
        events: Events,
        plan: Plan,
        steps: Steps,
        schedule: Schedule,
        position: Position,
        actions: Actions,
    ):
        self._events, self._args = events, events.args
        self._plan, self._steps, self._schedule = plan, steps, schedule
        self._actions = actions
        self.position = position
        self._before_evaluation: tuple[int, Flags, Any] | None = None

    def run(self) -> None:
        """Until the last update, or until a callback stops the training.

        Raises:
            Preempted: SIGTERM has come; `interrupted()` then says what is left to do.
        """
        events, state, position = self._events, self._events.state, self.position
        if self._updates_in_epoch() == 0:
            self._follow_pending()  # of the end of an epoch
        while position.epochs_ended < state.num_train_epochs and not self._is_stopped():
            done = self._updates_in_epoch()
            events.notify("on_epoch_begin")
            self._follow_pending()
            skip = 0 if self._args.ignore_data_skip else done
            for batch in self._actions.batches(position.epochs_ended, skip):
                if events.control.should_epoch_stop or self._is_stopped():
                    break
                self._update(batch)
            position.epochs_ended += 1
            events.notify("on_epoch_end")
            self._follow_control()

    def evaluate(self) -> dict[str, Any]:
        """Metrics of the evaluation set, which a schedule may follow."""
        metrics = self._actions.evaluate()
        if self._schedule.follows_metric:
            self._schedule.observe(followed_metric(self._args, metrics))
        return metrics

    def interrupted(self) -> Any:
        """After `Preempted`: discard the interrupted evaluation, which will run again.

        The position then says so; returns the callbacks' states from before it, or None.
        """
        self.position.pending = {}
        if self._before_evaluation is None:
            return None
        history, self.position.pending, callbacks = self._before_evaluation
        del self._events.state.log_history[history:]
        return callbacks

    # ---- one update ------------------------------------------------------------------------------

    def _update(self, batch: HostBatch) -> None:
        events, state = self._events, self._events.state
        events.notify("on_step_begin")
        for _ in range(self._plan.batches_of_update(self._updates_in_epoch()) - 1):
            events.notify("on_substep_end")
        events.notify("on_pre_optimizer_step")
        self._steps.start(batch, self._schedule.rate(state.global_step))
        events.notify("on_optimizer_step")
        state.global_step += 1
        ended = self.position.epochs_ended
        state.epoch = self._plan.epoch_after(ended, self._updates_in_epoch())
        self._count_tokens(batch)
        events.notify("on_step_end", progress=self._steps.progress())
        self._follow_control()
        preemption.check()

    def _updates_in_epoch(self) -> int:
        ended = self.position.epochs_ended
        return self._events.state.global_step - ended * self._plan.updates_per_epoch

    def _is_stopped(self) -> bool:
        return self._events.control.should_training_stop

    def _count_tokens(self, batch: HostBatch) -> None:
        counted = getattr(self._args, "include_num_input_tokens_seen", "no")
        if counted == "non_padding":
            self._events.state.num_input_tokens_seen += batch.tokens
        elif counted != "no":
            width = batch.arrays["input_ids"].shape[-1]
            self._events.state.num_input_tokens_seen += batch.windows * width

    # ---- what callbacks ask for ------------------------------------------------------------------

    def _follow_control(self) -> None:
        """Log, evaluate and save where a callback asked for it, in transformers' order."""
        events = self._events
        if events.control.should_log and events.state.global_step > self.position.last_logged:
            self.position.last_logged = events.state.global_step
            events.log(self._steps.logs())
        if events.control.should_evaluate:
            flags = {"should_evaluate": True, "should_save": events.control.should_save}
            history = len(events.state.log_history)
            self._before_evaluation = history, flags, self._actions.callback_states()
            with self._steps.paused():
                is_best = note_best(self._args, events.state, self.evaluate())
            self._before_evaluation = None
            if self._args.save_strategy == "best":
                events.control.should_save = is_best
        if events.control.should_save:
            with self._steps.paused():
                self._actions.save(self.position, None)
            events.notify("on_save")

    def _follow_pending(self) -> None:
        """Evaluate and save where the run that was stopped had not come to the end of it."""
        pending, self.position.pending = self.position.pending, {}
        for name, value in pending.items():
            setattr(self._events.control, name, value)
        self._follow_control()
