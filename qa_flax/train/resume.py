"""A run's checkpoints: what is written into one, and read back by the run that resumes (host)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.trainer_callback import ExportableState, TrainerState

from qa_flax.data.windows import Windows
from qa_flax.device.step import TrainState, weights_of
from qa_flax.distributed import processes
from qa_flax.distributed.exchange import barrier, check_shared_folder
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train import checkpoints
from qa_flax.train.best import find_best
from qa_flax.train.events import Events
from qa_flax.train.live_state import LiveState
from qa_flax.train.plan import Plan, output_dir

Flags = dict[str, bool]
"""Of `TrainerControl`, what is still to be done: `should_evaluate`, `should_save`."""


@dataclass
class Position:
    """Where a run is, beside its step."""

    epochs_ended: int = 0
    last_logged: int = 0
    pending: Flags = field(default_factory=dict)
    """What a resumed run does first: the run that was stopped had not come to the end of it."""


class RunCheckpoints:
    """The checkpoints of one run.

    Args:
        events: whose state they hold, and whose callbacks'.
        live: the owner of the weights.
        conditions: `conditions_of` the run.
        save_model: writes model and tokenizer into a folder, on the main process.
    """

    def __init__(
        self,
        events: Events,
        live: LiveState,
        conditions: dict[str, Any],
        save_model: Callable[[Path], None],
    ):
        self._events, self._live, self._args = events, live, events.args
        self._conditions, self._save_model = conditions, save_model
        self._output = output_dir(events.args)
        self._saved: tuple[int, Flags] | None = None

    def prepare(self, is_needed: bool) -> None:
        """Put right what a killed run left; every process must see the same folder."""
        if is_needed:
            if processes.is_main():
                checkpoints.recover(self._output)
            check_shared_folder(self._output)

    def load(
        self, given: Any, like: TrainState, accept_changes: bool
    ) -> tuple[TrainState, dict[str, Any], TrainerState]:
        """The state, the run's description and the trainer's state of the checkpoint `given`.

        Raises:
            ResumeError: there is none, it does not fit, or it is of another run.
        """
        path = checkpoints.find(given, self._output)
        state, run = checkpoints.load_state(path, like._replace(fixed=()))
        if not accept_changes:
            checkpoints.check_same_run(run["conditions"], self._conditions)
        trainer_state = TrainerState.load_from_json(str(path / checkpoints.TRAINER_STATE))
        find_best(trainer_state, self._output)  # the folder may have been moved
        self._saved = trainer_state.global_step, run.get("pending", {})
        return state._replace(fixed=like.fixed), run, trainer_state

    def save(self, run: dict[str, Any], position: Position, callbacks: Any = None) -> None:
        """Save all that a run needs to resume here. The main process writes, the others wait.

        Args:
            run: what describes the training beside `position`.
            position: where it is.
            callbacks: their states, if not as they are now.
        """
        state, args = self._events.state, self._args
        step = state.global_step
        directory = self._output / f"checkpoint-{step}"
        find_best(state, self._output, directory)
        state.stateful_callbacks = self.callback_states() if callbacks is None else callbacks
        description = run | asdict(position) | {"conditions": self._conditions}
        taken = None if args.save_only_model else self._live.host_copy()
        self._live.gather_shards()
        if processes.is_main():
            with checkpoints.new_folder(directory) as folder:
                self._save_model(folder)
                if taken is not None:
                    checkpoints.save_state(folder, taken, description)
                state.save_to_json(str(folder / checkpoints.TRAINER_STATE))
            best = state.best_model_checkpoint
            checkpoints.rotate(self._output, args.save_total_limit, directory, best)
        barrier(directory.name)
        self._saved = step, position.pending

    def has(self, pending: Flags) -> bool:
        """Whether nothing has happened since the last checkpoint, or before the first update."""
        step = self._events.state.global_step
        return not step or (step, pending) == self._saved

    def callback_states(self) -> Any:
        """What the callbacks and the control have to remember, as transformers writes it."""
        exported = [*self._events.handler.callbacks, self._events.control]
        stateful: Any = [one for one in exported if isinstance(one, ExportableState)]
        return TrainerState(stateful_callbacks=stateful).stateful_callbacks


def restore_callbacks(events: Events, is_at_end: bool) -> bool:
    """Give the callbacks the states in `events.state`; whether they had stopped the training.

    A run that had come to its end stops for that reason, not because of a callback.
    """
    stateful: Any = events.state.stateful_callbacks  # a dict, whatever its annotation says
    kept = dict(stateful or {})
    control = kept.pop("TrainerControl", None)
    for name, states in kept.items():
        states = states if isinstance(states, list) else [states]
        callbacks = [c for c in events.handler.callbacks if type(c).__name__ == name]
        for callback, one in zip(callbacks, states, strict=False):
            for attribute, value in one["attributes"].items():
                setattr(callback, attribute, value)
    return control is not None and not is_at_end and control["args"]["should_training_stop"]


def conditions_of(
    args: Any, plan: Plan, windows: Windows, model: AutoModelForQuestionAnswering
) -> dict[str, Any]:
    """What a resumed run must share with the one that was stopped."""
    return {
        "seed": args.seed,
        "data_seed": data_seed_of(args),
        "rows_per_update": plan.rows * plan.accumulation,
        "dataloader_drop_last": args.dataloader_drop_last,
        "train_sampling_strategy": args.train_sampling_strategy,
        "windows": len(windows),
        "windows_digest": checkpoints.digest(windows),
        "model": _sizes(model.config),
        "lora": None if model.lora is None else model.lora.to_peft(None),
        "fixed_digest": checkpoints.digest_of(weights_of(model).fixed),
    }


def data_seed_of(args: Any) -> int:
    """The seed of the windows' order."""
    return args.seed if args.data_seed is None else args.data_seed


def _sizes(config: PreTrainedConfig) -> dict[str, Any]:
    """The config without what changes from one load to the next."""
    values = config.to_diff_dict()
    return {name: value for name, value in values.items() if not name.startswith(("_", "transf"))}
