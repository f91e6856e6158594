"""Run the trials of an optuna study one after the other (host).

A search is a function of its seed: the sampler's random numbers depend on the seed and on how many
trials are finished. So a stopped search that is resumed draws what it would have drawn.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

INSTALL = "pip install 'qa-flax[tune]'"
FAILED = "failed"
"""The user attribute of a trial that says why it has failed, if that did not end the search."""

Objective = Callable[[Any], Any]
"""Trains with the hyperparameters of an optuna trial, and returns what to minimize or maximize."""


class MissingOptunaError(ImportError, RuntimeError):
    """optuna is not installed; transformers raises a `RuntimeError` for that."""


def import_optuna(what: str = "hyperparameter_search") -> Any:
    """Import optuna.

    Args:
        what: what needs it, for the message.

    Raises:
        MissingOptunaError: says how to install it.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingOptunaError(
            f"{what} needs optuna, which is not installed; install it with {INSTALL}"
        ) from error
    return optuna


def run_trials(
    study: Any,
    objective: Objective,
    n_trials: int,
    *,
    seed: int | None,
    timeout: float | None = None,
    catch: tuple[type[Exception], ...] = (FloatingPointError,),
    gc_after_trial: bool = False,
    callbacks: Any = None,
    **sampler: Any,
) -> None:
    """Run trials until `n_trials` more are finished.

    Args:
        study: an optuna study.
        objective: see `Objective`. It may raise `optuna.TrialPruned`.
        n_trials: how many.
        seed: of the sampler, Tree-structured Parzen Estimators (Bergstra et al. 2011); None: the
            study has a sampler of its own.
        timeout: no trial begins after this many seconds; None: no limit.
        catch: errors that end a trial only, such as a loss that is not finite.
        gc_after_trial: as of `optuna.study.Study.optimize`.
        callbacks: as of `optuna.study.Study.optimize`.
        sampler: arguments of `optuna.samplers.TPESampler`.
    """
    optuna = import_optuna()
    began = time.monotonic()

    def guarded(trial: Any) -> Any:
        try:
            value = objective(trial)
        except catch as error:
            trial.set_user_attr(FAILED, str(error))
            raise
        values = value if isinstance(value, list | tuple) else [value]
        if any(math.isnan(v) for v in values):  # optuna lets the trial fail
            trial.set_user_attr(FAILED, "the objective is NaN")
        return value

    for _ in range(n_trials):
        if timeout is not None and time.monotonic() - began >= timeout:
            return
        if seed is not None:
            drawn = np.random.SeedSequence([seed, len(finished_trials(study))]).generate_state(1)
            study.sampler = optuna.samplers.TPESampler(seed=int(drawn[0]), **sampler)
        settings = {"catch": catch, "gc_after_trial": gc_after_trial, "callbacks": callbacks}
        study.optimize(guarded, n_trials=1, **settings)
        if vars(study).get("_stop_flag"):  # a callback called `study.stop()`
            return


def finished_trials(study: Any) -> list[Any]:
    """Return the trials that count: completed, pruned or failed, but not interrupted ones."""
    states = import_optuna().trial.TrialState
    ended = (states.COMPLETE, states.PRUNED)
    return [t for t in study.get_trials(deepcopy=False) if t.state in ended or is_failed(t)]


def is_failed(trial: Any) -> bool:
    """Return whether a trial has failed by itself: it was not interrupted."""
    return trial.state.name == "FAIL" and FAILED in trial.user_attrs


def end_interrupted(study: Any) -> None:
    """Mark trials that a killed process has left running, so that they are not waited for.

    Call it only while no other process runs trials of this study.
    """
    states = import_optuna().trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        study.tell(trial.number, state=states.FAIL)


def require_completed(study: Any) -> None:
    """Refuse a study without a result.

    Raises:
        ValueError: says how the trials have ended.
    """
    states = import_optuna().trial.TrialState
    trials = study.get_trials(deepcopy=False)
    if any(trial.state == states.COMPLETE for trial in trials):
        return
    reasons = [str(trial.user_attrs[FAILED]) for trial in trials if is_failed(trial)]
    raise ValueError(
        f"none of the {len(trials)} trials was completed, so there is no best one"
        + (f"; the last that failed: {reasons[-1]}" if reasons else "")
        + ". Narrow the space, such as to lower learning rates, or allow more trials"
    )


# ---- trials of other processes -------------------------------------------------------------------


def as_json(trial: Any) -> list[Any]:
    """Return the number and what is drawn of a trial as JSON values."""
    to_json = import_optuna().distributions.distribution_to_json
    distributions = {name: to_json(d) for name, d in trial.distributions.items()}
    return [trial.number, trial.params, distributions]


def from_json(number: int, params: dict[str, Any], distributions: dict[str, str]) -> Any:
    """Return a trial that has drawn the same as the one of `as_json`."""
    optuna = import_optuna()
    read = optuna.distributions.json_to_distribution
    trial = optuna.trial.create_trial(
        value=0.0,  # it must have one
        params=params,
        distributions={name: read(text) for name, text in distributions.items()},
    )
    trial.number = number
    return trial
