"""A warning when the validation set gets worse while the training set gets better (host).

What was warned of before follows from the log history, which a resumed run has, too: so a warning
is given once in a training, however often it is resumed.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformers import EarlyStoppingCallback

from qa_flax.distributed import processes
from qa_flax.train.events import Events

RISES = 3
"""Evaluations in a row whose loss has risen, to warn."""
GAP = 15.0
"""Points between the accuracies of training and validation, at two evaluations, to warn."""

_AGAINST_RISE = ("early_stopping_patience", "hidden_dropout_prob", "layerwise_lr_decay")
_AGAINST_GAP = ("hidden_dropout_prob", "weight_decay", "layerwise_lr_decay")

History = Sequence[Mapping[str, Any]]


def warn_of_overfitting(events: Events) -> None:
    """Warn after an evaluation if it is the first that shows overfitting.

    Early stopping, if it is on, does what the warning of a rising loss would advise.
    """
    if processes.is_main():
        callbacks = events.handler.callbacks
        stops_early = any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks)
        prefix = "--" if vars(events.args).get("_is_command_line") else ""
        for message in warnings_of(events.state.log_history, prefix, stops_early=stops_early):
            events.warn(message)


def warnings_of(history: History, prefix: str = "", *, stops_early: bool = False) -> list[str]:
    """Return what the latest evaluation shows and none before it did.

    Args:
        history: the log history, whose last entry is of an evaluation.
        prefix: what arguments begin with in the text: "--" on the command line.
        stops_early: whether early stopping is on.
    """
    evaluations = _evaluations(history)
    # From the latest evaluation back, so that usually one or two are looked at.
    until = [evaluations[:end] for end in range(len(evaluations), 0, -1)]

    def rises() -> Iterator[bool]:
        return (_rises(some, history) for some in until)

    if not stops_early and _is_first(rises()):
        best = min(evaluations, key=lambda entry: entry["eval_loss"])
        return [
            f"validation loss has risen for {RISES} evaluations while training loss falls; the "
            f"best was at step {best['step']}: {_names(_AGAINST_RISE, prefix)}"
        ]
    gap = _gap(evaluations)
    is_first = gap is not None and _is_first(_gap(some) is not None for some in until)
    if gap is not None and is_first and (stops_early or not any(rises())):
        train, validation = gap
        return [
            f"the accuracy of starts and ends is {train:.1f}% on the training questions and "
            f"{validation:.1f}% on the validation set, {train - validation:.0f} points lower: "
            f"{_names(_AGAINST_GAP, prefix)}"
        ]
    return []


def _names(names: Sequence[str], prefix: str) -> str:
    return ", ".join(prefix + name for name in names)


def _is_first(flags: Iterable[bool]) -> bool:
    """Whether the latest is true and none before it; they come from the latest back."""
    flags = iter(flags)
    return next(flags, False) and not any(flags)


def _evaluations(history: History) -> list[Mapping[str, Any]]:
    """The evaluations with a loss, the first of each step.

    A later one of the same step is one after the training, maybe of the best model.
    """
    by_step: dict[int, Mapping[str, Any]] = {}
    for entry in history:
        loss = entry.get("eval_loss")
        if isinstance(loss, int | float) and math.isfinite(loss):
            by_step.setdefault(entry["step"], entry)
    return list(by_step.values())


def _rises(evaluations: History, history: History) -> bool:
    """Whether the loss has risen at the latest evaluations, and the training loss has fallen."""
    latest = evaluations[-RISES - 1 :]
    losses = [entry["eval_loss"] for entry in latest]
    is_rising = all(after > before for before, after in itertools.pairwise(losses))
    if len(latest) <= RISES or not is_rising:
        return False
    before = evaluations[-RISES - 2]["step"] if len(evaluations) > RISES + 1 else -1
    first, now = (
        _training_loss(history, start, end)
        for start, end in ((before, latest[0]["step"]), (latest[-2]["step"], latest[-1]["step"]))
    )
    return first is not None and now is not None and now < first


def _training_loss(history: History, start: int, end: int) -> float | None:
    """The mean of the training losses logged after step `start` and until `end`.

    Without any, the one logged last until `end`.
    """
    logged = [(e["step"], e["loss"]) for e in history if "loss" in e and e["step"] <= end]
    losses = [loss for step, loss in logged if step > start] or [loss for _, loss in logged[-1:]]
    return sum(losses) / len(losses) if losses else None


def _gap(evaluations: History) -> tuple[float, float] | None:
    """The accuracies of training and validation at the latest evaluation, if they are far apart."""
    pairs = [_accuracies(entry) for entry in evaluations[-2:]]
    is_wide = [pair is not None and pair[0] - pair[1] >= GAP for pair in pairs]
    return pairs[-1] if len(is_wide) == 2 and all(is_wide) else None


def _accuracies(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """The means of the accuracies of starts and of ends, of training and of validation."""
    names = [f"{p}_accuracy_{end}" for p in ("train", "eval") for end in ("start", "end")]
    if not all(name in entry for name in names):
        return None
    values = [entry[name] for name in names]
    return sum(values[:2]) / 2, sum(values[2:]) / 2
