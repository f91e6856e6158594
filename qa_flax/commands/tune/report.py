"""What `qa-flax tune` prints of its trials, and the command line of the best (host)."""

import json
import shlex
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from qa_flax.train.trials import FAILED, finished_trials

SHOWN = 5
"""How many trials the table has, best first."""


def values_line(values: Mapping[str, Any]) -> str:
    """The values of a trial in one line."""
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def name_of(trial: Any) -> str:
    """The name of a trial, also of its folder; the first is `run-0`, as in transformers."""
    return f"run-{trial.number}"


def trial_line(study: Any, trial: Any, metric: str, seconds: float) -> str:
    """How a trial has ended, in one line."""
    state = trial.state.name
    if state == "FAIL":
        return f"  failed after {seconds:.0f} s: {trial.user_attrs.get(FAILED, 'interrupted')}"
    if state == "PRUNED":
        step, value = max(trial.intermediate_values.items())
        return (
            f"  stopped at step {step} after {seconds:.0f} s: {metric} {value:.4g} is worse than "
            "the median of the earlier trials there"
        )
    best = study.best_trial
    place = "the best so far" if best.number == trial.number else f"best so far {best.value:.4g}"
    return f"  {metric} {trial.value:.4g} after {seconds:.0f} s ({place})"


def table(study: Any, metric: str) -> list[str]:
    """The lines of a table of the best trials."""
    trials = finished_trials(study)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    ranked = sorted(done, key=lambda trial: sign * trial.value)[:SHOWN]
    names = list(dict.fromkeys(name for trial in ranked for name in trial.params))
    rows = [["trial", metric, *names]]
    for trial in ranked:
        values = [_short(trial.params[name]) if name in trial.params else "" for name in names]
        rows.append([name_of(trial), f"{trial.value:.4g}", *values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    counts = {
        name: sum(trial.state.name == state for trial in trials)
        for state, name in (("COMPLETE", "completed"), ("PRUNED", "stopped"), ("FAIL", "failed"))
    }
    head = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return [f"{len(trials)} trials: {head}. The best:", *lines]


def best_line(trial: Any, metric: str) -> str:
    """One line about the best trial."""
    return f"Best trial: {name_of(trial)}, {metric} {trial.value:.4g}, {values_line(trial.params)}"


def run_command(given: Mapping[str, Any], found: Mapping[str, Any], folder: Path) -> str:
    """The command line of a run, quoted for a shell.

    Args:
        given: the arguments that were given, by name.
        found: those of the trial, which take precedence.
        folder: the run's `--output_dir`.

    Example:
        >>> given = {"model_name_or_path": "my model", "version_2_with_negative": True}
        >>> run_command(given, {"learning_rate": 5e-05}, Path("out")).split("--")[1:4]
        ["model_name_or_path 'my model' ", 'version_2_with_negative True ', 'learning_rate 5e-05 ']
    """
    words = ["qa-flax", "run"]
    for name, value in {**given, **found}.items():
        words += [f"--{name}", *_words(value)]
    return shlex.join([*words, "--do_train", "--do_eval", "--output_dir", str(folder)])


def _words(value: Any) -> list[str]:
    """An argument's value as words of the command line."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Mapping):
        return [json.dumps(value)]
    if isinstance(value, list | tuple):
        return [word for item in value for word in _words(item)]
    return [str(value)]
