"""Save the whole state of a run in checkpoints, and restore it when the run is resumed (host).

`checkpoints.py` handles the files; this module decides what they contain.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedConfig
from transformers.trainer_callback import ExportableState, TrainerState

from qa_flax.device.step import TrainState, weights_of
from qa_flax.distributed import processes
from qa_flax.distributed.exchange import broadcast_from_main, check_shared_folder
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.parameters import frozen_names
from qa_flax.storage import AnyPath
from qa_flax.train import checkpoints
from qa_flax.train.best import set_best_checkpoint
from qa_flax.train.checkpoints import ResumeError
from qa_flax.train.events import Events
from qa_flax.train.layer_rates import layerwise_decay
from qa_flax.train.live_state import LiveState
from qa_flax.train.output_room import check_room, checkpoint_room
from qa_flax.train.plan import (
    Plan,
    dropout_bits_of,
    ema_decay_of,
    has_bf16_gradients,
    output_dir,
)
from qa_flax.train.reinitialize import reinit_count
from qa_flax.train.train_data import TrainData, data_seed_of

logger = logging.getLogger(__name__)

Flags = dict[str, bool]
"""Flags of `TrainerControl` for actions still to be done: `should_evaluate`, `should_save`."""


@dataclass
class Position:
    """The position of a run in addition to its step; the field names are keys of `run.json`."""

    epochs_ended: int = 0
    """Number of finished epochs."""
    epoch_start: int = 0
    """Step at which the current epoch began. A callback may have stopped earlier epochs."""
    last_logged: int = 0
    """Step of the last log entry."""
    pending: Flags = field(default_factory=dict)
    """Actions that the stopped run did not finish; the resumed run does them first."""


class RunCheckpoints:
    """Saves and loads the checkpoints of one run.

    Args:
        events: the trainer's; its state and the states of its callbacks are saved.
        live: the owner of the weights.
        conditions: the result of `conditions_of` for the run.
        save_model: writes the model and the tokenizer into a folder; called on the main process.
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

    def prepare(self, is_needed: bool, state: TrainState | None = None) -> None:
        """Clean up after a killed run, and check that all processes see the same `output_dir`.

        Args:
            is_needed: False if the run neither saves nor resumes; then nothing is done.
            state: what is saved, of the sizes it will have; its fixed weights are not.

        Raises:
            OSError: the run saves, and there is no room, or writing is not permitted.
        """
        if is_needed:
            if processes.is_main():
                checkpoints.recover(self._output)
                if self._args.save_strategy != "no" and state is not None:
                    saved = None if self._args.save_only_model else state._replace(fixed=())
                    room = checkpoint_room(self._live.model, saved)
                    check_room(self._output, room, "a checkpoint")
            check_shared_folder(self._output)

    def load(
        self, checkpoint: Any, like: TrainState, accept_changes: bool
    ) -> tuple[TrainState, dict[str, Any], TrainerState]:
        """Load a checkpoint.

        Args:
            checkpoint: its path, or True for the latest valid one.
            like: a state with the structure, shapes and dtypes to expect, and the fixed weights.
            accept_changes: load it even if the conditions differ.

        Returns:
            The training state, the content of `run.json`, and transformers' trainer state.

        Raises:
            ResumeError: there is none, it does not fit `like`, or it was saved by another run.
        """
        path = checkpoints.find(checkpoint, self._output)
        before = checkpoints.load_run(path)["conditions"]
        self._check_frozen(before.get("frozen"))
        saved = like.params if before.get("ema_decay") else None
        state, run = checkpoints.load_state(path, like._replace(fixed=(), average=saved))
        if not accept_changes:
            checkpoints.check_same_run(before, self._conditions)
        state = _with_average(state, like.average is not None, path)
        trainer_state = TrainerState.load_from_json(str(path / checkpoints.TRAINER_STATE))
        # The folder may have been moved, so the path in the state may be outdated.
        set_best_checkpoint(trainer_state, self._output)
        self._saved = trainer_state.global_step, run.get("pending", {})
        return state._replace(fixed=like.fixed), run, trainer_state

    def _check_frozen(self, before: list[str] | None) -> None:
        if before != (now := self._conditions["frozen"]):
            raise ResumeError(
                "resume_from_checkpoint: the frozen parameters (requires_grad=False, "
                f"freeze_layers, freeze_embeddings) were {_joined(before)}, and now are "
                f"{_joined(now)}; freeze the same ones, because the checkpoint has optimizer "
                "states of the trained parameters only. To train others, load the checkpoint as a "
                "model, and start a new run"
            )

    def save(self, run: dict[str, Any], position: Position, callbacks: Any = None) -> None:
        """Save everything needed to resume. The main process writes, and the others wait for it.

        Args:
            run: JSON values to save in `run.json` in addition to `position` and the conditions.
            position: the position of the run.
            callbacks: the callbacks' states to save; None for their current states.
        """
        state, args = self._events.state, self._args
        step = state.global_step
        directory = self._output / f"checkpoint-{step}"
        set_best_checkpoint(state, self._output, directory)
        state.stateful_callbacks = self.callback_states() if callbacks is None else callbacks
        train_state = None if args.save_only_model else self._live.host_copy()
        if self._live.has_new_fixed:
            # Checkpoints do not contain fixed weights: a resumed run must start with these.
            fixed = weights_of(self._live.model).fixed
            self._conditions |= {"fixed_digest": checkpoints.tensors_digest(fixed)}
        description = run | asdict(position) | {"conditions": self._conditions}
        self._live.gather_shards()
        is_free = True
        if processes.is_main() and (is_free := checkpoints.is_free(directory)):
            with checkpoints.new_folder(directory) as folder:
                self._save_model(folder)
                if train_state is not None:
                    checkpoints.save_state(folder, train_state, description)
                checkpoints.write_trainer_state(state, folder)
            best = state.best_model_checkpoint
            checkpoints.rotate(self._output, args.save_total_limit, directory, best)
        if broadcast_from_main(directory.name, is_free):
            self._saved = step, position.pending
        elif processes.is_main():
            logger.warning("%s is not saved, because something else has that name.", directory)

    def is_current(self, pending: Flags) -> bool:
        """Whether resuming from the current step needs no new checkpoint.

        True before the first update, and if the latest checkpoint has the same step and the same
        pending actions.
        """
        step = self._events.state.global_step
        return not step or (step, pending) == self._saved

    @property
    def latest(self) -> AnyPath | None:
        """The checkpoint that this run saved last or resumed from, if it can be resumed from."""
        if self._saved is None or self._args.save_only_model:
            return None
        return self._output / f"checkpoint-{self._saved[0]}"

    def callback_states(self) -> Any:
        """The states of the callbacks and the control, in the form of `trainer_state.json`."""
        exported = [*self._events.handler.callbacks, self._events.control]
        stateful: Any = [item for item in exported if isinstance(item, ExportableState)]
        return TrainerState(stateful_callbacks=stateful).stateful_callbacks


def restore_callbacks(events: Events) -> bool:
    """Restore the callbacks from `events.state`, and return whether early stopping ended the run.

    Their attributes are always restored. With `restore_callback_states_from_checkpoint`, as in
    transformers, they are also built with the arguments they had. A callback that is in the
    checkpoint but not in the trainer is reported in a warning.

    Any other callback that stopped the run, such as a time limit, does not stop the resumed one.
    """
    stateful: Any = events.state.stateful_callbacks  # a dict, although annotated as a list
    saved = dict(stateful or {})
    saved.pop("TrainerControl", None)
    callbacks, missing = events.handler.callbacks, []
    for name, states in saved.items():
        states = states if isinstance(states, list) else [states]
        places = [n for n, callback in enumerate(callbacks) if type(callback).__name__ == name]
        missing += [name] * (len(places) < len(states))
        for n, state in zip(places, states, strict=False):
            if events.args.restore_callback_states_from_checkpoint:
                callbacks[n] = type(callbacks[n])(**state["args"])
            for attribute, value in state["attributes"].items():
                setattr(callbacks[n], attribute, value)
    if missing:
        logger.warning(
            "The checkpoint has the state of callbacks that this trainer does not have: %s. "
            "Training continues without them; pass them in callbacks=[...] to use them "
            "(EarlyStoppingCallback: or set early_stopping_patience).",
            ", ".join(missing),
        )
    return any(
        isinstance(callback, EarlyStoppingCallback)
        and callback.early_stopping_patience_counter >= callback.early_stopping_patience
        for callback in callbacks
    )


def _with_average(state: TrainState, is_averaged: bool, path: Path) -> TrainState:
    """The loaded state with or without an average, if `accept_changes` has allowed the change.

    An average that the checkpoint does not have starts with its parameters.
    """
    if is_averaged and state.average is None:
        logger.warning(
            "ema_decay: the run that saved %s kept no average of its weights, so the average "
            "starts with the weights of that checkpoint.",
            path,
        )
        return state._replace(average=state.params)
    if not is_averaged and state.average is not None:
        logger.warning(
            "ema_decay=0: the average of the weights in %s is dropped; training, evaluation and "
            "saving continue with the plain weights.",
            path,
        )
        return state._replace(average=None)
    return state


def _joined(names: list[str] | None) -> str:
    return ", ".join(names or ["none"])


def conditions_of(
    args: Any, plan: Plan, data: TrainData, model: AutoModelForQuestionAnswering
) -> dict[str, Any]:
    """The settings that a resumed run must share with the run that saved the checkpoint.

    They are saved in `run.json`, and `checkpoints.check_same_run` compares them.
    """
    return {
        "seed": args.seed,
        "data_seed": data_seed_of(args),
        "rows_per_update": plan.rows * plan.accumulation,
        "dataloader_drop_last": args.dataloader_drop_last,
        "train_sampling_strategy": args.train_sampling_strategy,
        "packing": data.packed_as(args),
        "windows": plan.windows,
        "windows_digest": data.digest(),
        "model": _config_values(model.config),
        "lora": None if model.lora is None else model.lora.to_peft(None),
        "frozen": frozen_names(model) or None,
        # None, as in checkpoints of versions without these arguments.
        "ema_decay": ema_decay_of(args) or None,
        "bf16_gradients": has_bf16_gradients(args) or None,
        "dropout_bits": None if dropout_bits_of(args) == "hash" else dropout_bits_of(args),
        "layerwise_lr_decay": None if layerwise_decay(args) == 1.0 else layerwise_decay(args),
        "reinit_layers": reinit_count(args) or None,
        "fixed_digest": checkpoints.tensors_digest(weights_of(model).fixed),
        **data.conditions(args),
    }


def _config_values(config: PreTrainedConfig) -> dict[str, Any]:
    """The config without the path it was loaded from and the version of transformers."""
    values = config.to_diff_dict()
    return {name: value for name, value in values.items() if not name.startswith(("_", "transf"))}
