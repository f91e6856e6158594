"""The part of `Trainer` that searches for hyperparameters, as transformers' does (host)."""

import inspect
import logging
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import transformers
from transformers import TrainerCallback
from transformers.trainer_utils import BestRun, HPSearchBackend, default_hp_space_optuna

from qa_flax import storage
from qa_flax.distributed import processes
from qa_flax.distributed.exchange import broadcast_from_main
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.custom import Custom
from qa_flax.train.plan import output_dir
from qa_flax.train.shared_attributes import SharedAttributes
from qa_flax.train.training_arguments import plain_value
from qa_flax.train.trials import (
    as_json,
    from_json,
    import_optuna,
    require_completed,
    run_trials,
)

logger = logging.getLogger(__name__)

# What evaluation adds to the metrics of `compute_metrics`: no quality of the model, or not of the
# evaluation set.
_NO_METRICS = ("_runtime", "_per_second", "_time", "_fill", "_accuracy_start", "_accuracy_end")


def default_compute_objective(metrics: Mapping[str, float]) -> float:
    """Return `eval_loss` if there are no other metrics, else the sum of the others.

    It is transformers' rule. Speeds, times and what this package adds (`eval_fill`, accuracies,
    metrics of training questions) do not count.

    Args:
        metrics: the result of `evaluate`.

    Example:
        >>> default_compute_objective({"eval_loss": 2.0, "eval_f1": 40.0, "eval_runtime": 9.0})
        40.0
        >>> default_compute_objective({"eval_loss": 2.0, "epoch": 1.0, "eval_fill": 0.9})
        2.0
    """
    counted = {
        name: value
        for name, value in metrics.items()
        if name not in ("eval_loss", "epoch", "num_input_tokens_seen")
        and not name.startswith("train_")
        and not name.endswith(_NO_METRICS)
    }
    return sum(counted.values()) if counted else metrics["eval_loss"]


class HyperparameterSearch(SharedAttributes):
    """The part of `Trainer` for searches; see there for the arguments."""

    _custom: Custom
    model_init: Callable[..., AutoModelForQuestionAnswering] | None
    hp_search_backend: HPSearchBackend | None = None
    hp_space: Callable[[Any], dict[str, Any]] | None = None
    hp_name: Callable[[Any], str] | None = None
    compute_objective: Callable[[dict[str, Any]], Any] | None = None
    objective: Any = None
    """The objective of the latest evaluation of the present trial."""
    is_pruned = False
    """Whether the present trial has been stopped because it is hopeless."""
    _trial: Any = None

    if TYPE_CHECKING:
        train: Callable[..., Any]
        evaluate: Callable[..., dict[str, Any]]

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, Any]], Any] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: str | HPSearchBackend | None = "optuna",
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Train with several hyperparameters, and return the best.

        Each trial builds a model with `model_init` and trains it with the arguments of the trainer,
        changed as `hp_space` says; afterwards they are what they were. A trial of the same shapes
        compiles nothing if it differs from an earlier one only in learning rate and schedule,
        epochs, seed, weight decay and layer-wise decay; each dropout is compiled once. A trial
        whose loss is not finite fails, and the search goes on. Checkpoints, if `save_strategy` asks
        for some (its default does not count), are in `run-<number>` in `output_dir`.

        Args:
            hp_space: called with an `optuna.Trial`; returns training arguments by name. None:
                transformers' default, over learning rate, epochs, seed and batch size.
            compute_objective: called with the metrics of each `evaluate`; returns the number to
                minimize or maximize, or several. None: `default_compute_objective`. The latest
                evaluation of a trial counts; by the earlier ones optuna's pruner may stop it.
            n_trials: the number of trials, at least 1.
            direction: "minimize" or "maximize"; with several objectives a list of these.
            backend: "optuna", or None for it; others are not supported.
            hp_name: called with the trial; the name of its folder and of `state.trial_name`.
            kwargs: of `optuna.create_study`, such as `pruner`, or `storage`, `study_name` and
                `load_if_exists` to resume; and `timeout`, `catch`, `callbacks`, `gc_after_trial`
                of `Study.optimize`. Without a `sampler`: optuna's default, seeded by `args.seed`.

        Returns:
            transformers' `BestRun`: `run_id` (the trial's number, str), `objective` (float) and
            `hyperparameters` (what was drawn, dict). With several objectives a list of them.

        Raises:
            RuntimeError: the trainer has no `model_init`.
            MissingOptunaError: optuna is not installed; an ImportError and a RuntimeError.
            ValueError: an argument is invalid, or no trial was completed.

        Example:
            >>> import qa_flax
            >>> from transformers import AutoTokenizer
            >>> name = "bert-base-uncased"
            >>> tokenizer = AutoTokenizer.from_pretrained(name)
            >>> examples = qa_flax.load_examples("train-v1.1.json")
            >>> train, validation = qa_flax.split_examples(examples, 0.25)
            >>> trainer = qa_flax.Trainer(
            ...     model_init=lambda: qa_flax.AutoModelForQuestionAnswering.from_pretrained(name),
            ...     args=qa_flax.TrainingArguments(max_steps=2, disable_tqdm=True),
            ...     train_dataset=qa_flax.prepare_train_features(train, tokenizer, 64, 16),
            ...     eval_dataset=qa_flax.prepare_validation_features(validation, tokenizer, 64, 16))
            >>> def space(trial):
            ...     return {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3)}
            >>> best = trainer.hyperparameter_search(space, n_trials=2)  # doctest: +ELLIPSIS
            {...
            >>> sorted(best.hyperparameters)
            ['learning_rate']
        """
        self._check_search(backend, n_trials, direction, kwargs)
        optuna = import_optuna()
        self.hp_space = default_hp_space_optuna if hp_space is None else hp_space
        self.hp_name = hp_name
        self._warn_of_direction(compute_objective, direction)
        self.compute_objective = compute_objective or default_compute_objective
        return self._search(optuna, n_trials, direction, kwargs)

    def _search(
        self, optuna: Any, n_trials: int, direction: str | list[str], kwargs: dict[str, Any]
    ) -> BestRun | list[BestRun]:
        """Run the trials, and return the best."""
        running = {name: kwargs.pop(name) for name in _OF_OPTIMIZE if name in kwargs}
        running["seed"] = None if "sampler" in kwargs else int(self.args.seed)
        is_several, study = isinstance(direction, list), None
        if processes.is_main():
            directions: dict[str, Any] = {"directions" if is_several else "direction": direction}
            study = optuna.create_study(**directions, **kwargs)
        self.hp_search_backend = HPSearchBackend.OPTUNA
        arguments = TrialArguments(self.args)
        try:
            if study is None:
                self._follow_trials(arguments, running.get("catch", (FloatingPointError,)))
            else:
                self._lead_trials(optuna, study, arguments, n_trials, running)
        finally:
            self.hp_search_backend, self._trial = None, None
            arguments.restore()
        runs = _best_runs(study, is_several)
        return runs if is_several else runs[0]

    def call_model_init(self, trial: Any = None) -> AutoModelForQuestionAnswering:
        """Call `model_init`, with the trial of a search (or None) if it has a parameter."""
        assert self.model_init is not None
        takes_trial = len(inspect.signature(self.model_init).parameters) > 0
        return self.model_init(trial) if takes_trial else self.model_init()

    # ---- one trial -------------------------------------------------------------------------------

    def _lead_trials(
        self,
        optuna: Any,
        study: Any,
        arguments: "TrialArguments",
        n_trials: int,
        running: Mapping[str, Any],
    ) -> None:
        """Run the trials on the main process, and let the other processes run them, too."""
        lead = partial(self._lead_trial, arguments=arguments, optuna=optuna)
        try:
            run_trials(study, lead, n_trials, **running)
        finally:
            broadcast_from_main("trial", None)

    def _lead_trial(self, trial: Any, *, arguments: "TrialArguments", optuna: Any) -> Any:
        assert self.hp_space is not None
        values = dict(self.hp_space(trial))
        broadcast_from_main("trial", [*as_json(trial), values])
        objective = self.run_trial(trial, values, arguments)
        if self.is_pruned:
            raise optuna.TrialPruned
        return objective

    def _follow_trials(
        self, arguments: "TrialArguments", catch: tuple[type[Exception], ...]
    ) -> None:
        """Run the trials of the main process until there are no more."""
        while (drawn := broadcast_from_main("trial", None)) is not None:
            *trial, values = drawn
            try:
                self.run_trial(from_json(*trial), values, arguments)
            except catch:  # the main process reports it
                logger.debug("trial %d has failed", trial[0])

    def run_trial(self, trial: Any, values: Mapping[str, Any], arguments: "TrialArguments") -> Any:
        """Train with some arguments, and return the objective of the latest evaluation.

        Args:
            trial: an `optuna.Trial`, or what has its `number`, `params`, `report` and
                `should_prune`.
            values: training arguments by name.
            arguments: those of this trainer.
        """
        _refuse_without_effect(self._custom, values)
        self._trial, self.is_pruned, self.objective = trial, False, None
        name = f"run-{trial.number}" if self.hp_name is None else self.hp_name(trial)
        arguments.set_for_trial(values, name)
        callback = _TrialCallback(trial, None if self.hp_name is None else name)
        callbacks = self._events.handler.callbacks
        callbacks.insert(0, callback)  # before those that read the state
        try:
            self.train()
            if self.objective is None:  # nothing was evaluated during the training
                self._report_to_trial(self.evaluate())
                self.is_pruned = False
        finally:
            callbacks.remove(callback)
        return self.objective

    def _evaluate_in_training(self) -> dict[str, Any]:
        """`evaluate()`; in a search it is also reported to the trial, which may be stopped."""
        metrics = self.evaluate()
        if self._trial is not None:
            self._report_to_trial(metrics)
        return metrics

    def _report_to_trial(self, metrics: dict[str, Any]) -> None:
        assert self.compute_objective is not None
        self.objective = self.compute_objective(dict(metrics))
        if isinstance(self.objective, list | tuple):
            return  # optuna prunes by one objective only
        is_hopeless = False
        if processes.is_main() and self.objective == self.objective:
            self._trial.report(self.objective, self.state.global_step)
            is_hopeless = bool(self._trial.should_prune())
        if broadcast_from_main("pruned", is_hopeless):
            self.is_pruned = self._events.control.should_training_stop = True

    # ---- checks ----------------------------------------------------------------------------------

    def _check_search(
        self, backend: Any, n_trials: Any, direction: Any, kwargs: Mapping[str, Any]
    ) -> None:
        if self.model_init is None:
            raise RuntimeError(
                "hyperparameter_search needs a new model for each trial: pass model_init=, a "
                "function that returns one, to the trainer instead of model="
            )
        if plain_value(backend) not in ("optuna", None):
            raise ValueError(
                f"backend={plain_value(backend)!r} is not supported; it must be 'optuna' or None"
            )
        if not isinstance(n_trials, int) or isinstance(n_trials, bool) or n_trials < 1:
            raise ValueError(f"n_trials is {n_trials!r}; it must be a whole number of at least 1")
        directions = direction if isinstance(direction, list) else [direction]
        if not directions or not {*directions} <= {"minimize", "maximize"}:
            raise ValueError(
                f"direction={direction!r}: it must be 'minimize' or 'maximize', or a list of these "
                "for several objectives"
            )
        if kwargs.get("n_jobs", 1) != 1:
            raise ValueError(
                f"n_jobs={kwargs['n_jobs']!r}: trials run one after the other, each on all cores; "
                "leave it out"
            )

    def _warn_of_direction(self, compute_objective: Any, direction: Any) -> None:
        if compute_objective is None and direction == "minimize" and self.compute_metrics:
            logger.warning(
                "The objective is the sum of the metrics of compute_metrics, and "
                "direction='minimize' looks for the smallest. If higher metrics are better, such "
                "as EM and F1, pass direction='maximize'; to minimize the loss, pass "
                "compute_objective=lambda metrics: metrics['eval_loss']."
            )


_OF_OPTIMIZE = ("timeout", "catch", "callbacks", "gc_after_trial")
"""Arguments of `optuna.study.Study.optimize`."""


def _best_runs(study: Any, is_several: bool) -> list[BestRun]:
    """Return the best trials, in every process.

    Args:
        study: the study on the main process; None on others.
        is_several: whether there are several objectives.

    Raises:
        ValueError: no trial was completed.
    """
    best = None
    if study is not None:
        require_completed(study)
        trials = study.best_trials if is_several else [study.best_trial]
        best = [[t.number, t.values if is_several else t.value, t.params] for t in trials]
    best = broadcast_from_main("best trials", best)
    return [BestRun(str(number), value, params) for number, value, params in best]


_OF_SCHEDULE = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
_OF_OPTIMIZER = ("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")


def _refuse_without_effect(custom: Custom, values: Mapping[str, Any]) -> None:
    """Refuse arguments of a trial that a script's own optimizer or schedule replaces.

    Raises:
        ValueError: names them.
    """
    names = [*_OF_SCHEDULE] if custom.optimizer or custom.schedule else []
    names += [*_OF_OPTIMIZER, "optim", "optim_args"] if custom.optimizer else []
    if useless := [name for name in names if name in values]:
        raise ValueError(
            f"hp_space sets {', '.join(useless)}, which has no effect beside the trainer's own "
            "optimizers=; leave optimizers out, or search over other arguments"
        )


class _TrialCallback(TrainerCallback):
    """Tells the state of a training that it is a trial, as transformers' `TrainerState` has it."""

    def __init__(self, trial: Any, name: str | None):
        self._trial, self._name = trial, name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the fields."""
        state.is_hyper_param_search, state.trial_params = True, dict(self._trial.params)
        state.trial_name = self._name


class TrialArguments:
    """The trainer's arguments, which each trial changes.

    Args:
        args: changed in place.
    """

    def __init__(self, args: transformers.TrainingArguments):
        self._args, self._before = args, dict(vars(args))

    def restore(self) -> None:
        """Give all arguments the values that they had before the search."""
        values = vars(self._args)
        for name in values.keys() - self._before.keys():
            del values[name]
        values.update(self._before)

    def set_for_trial(self, values: Mapping[str, Any], folder: str) -> None:
        """Set the arguments of a trial; others have their values of before the search.

        Args:
            values: by name; names that are no arguments are left to `model_init`, with a warning.
            folder: the name of the trial's folder for files.
        """
        self.restore()
        args = self._args
        vars(args)["_is_trial"] = True  # see `plan.is_adjustable`
        is_default = plain_value(args.save_strategy) == "steps" and args.save_steps == 500
        if is_default and not args.load_best_model_at_end:
            args.save_strategy = "no"  # pyright: ignore[reportAttributeAccessIssue]
        args.output_dir = str(output_dir(args) / folder)
        storage.check_encodable(args.output_dir, "output_dir")
        for name, value in values.items():
            if not hasattr(args, name):
                logger.warning(
                    "hp_space has set %s, which is no training argument; it has no effect unless "
                    "model_init(trial) reads it from trial.params.",
                    name,
                )
                continue
            setattr(args, name, _converted(value, getattr(args, name)))


def _converted(value: Any, before: Any) -> Any:
    """Return a value as the type that the argument had, unless that would change it."""
    if isinstance(before, Enum):
        return type(before)(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and isinstance(before, float):
        return float(value)
    if is_number and isinstance(before, int) and not isinstance(before, bool) and value % 1 == 0:
        return int(value)
    return value
