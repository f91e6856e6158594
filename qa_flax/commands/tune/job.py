"""The work of `qa-flax tune`: the parts of the data, the trials, and what is left of them."""

import copy
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from qa_flax import storage
from qa_flax.commands import tune as command
from qa_flax.commands.arguments import DataArguments, DistributedArguments, ModelArguments
from qa_flax.commands.env.report import start
from qa_flax.commands.errors import TOKENIZER_ARGUMENT, UsageError, usage_errors
from qa_flax.commands.run.folds import conditions_of
from qa_flax.commands.run.job import make_compute_metrics, make_post_processing, search_settings
from qa_flax.commands.run.model import load_model, load_model_and_tokenizer
from qa_flax.commands.run.output import print_on_main, report_backend, warn
from qa_flax.commands.run.split import examples_by_stage, limited, load_stage, report_rows
from qa_flax.commands.run.unanswerable import check_answers
from qa_flax.commands.tune.report import (
    best_line,
    name_of,
    run_command,
    table,
    trial_line,
    values_line,
)
from qa_flax.commands.tune.space import (
    Space,
    draw,
    first_trial,
    read_space,
    values_to_check,
)
from qa_flax.data.features import make_windows
from qa_flax.data.labels import learnable_examples
from qa_flax.data.splits import fold_examples
from qa_flax.distributed import failure
from qa_flax.distributed.preemption import Interrupted, sigterm_handled
from qa_flax.train.best import check_best_metric
from qa_flax.train.dropout_rates import dropout_settings
from qa_flax.train.folder_lock import FolderLockedError, locked
from qa_flax.train.model_arguments import check_model_arguments
from qa_flax.train.plan import output_dir
from qa_flax.train.qa_trainer import QuestionAnsweringTrainer
from qa_flax.train.search import TrialArguments
from qa_flax.train.train_data import data_seed_of
from qa_flax.train.training_arguments import (
    TrainingArguments,
    check_training_arguments,
    check_values,
)
from qa_flax.train.trials import (
    end_interrupted,
    finished_trials,
    import_optuna,
    require_completed,
    run_trials,
)

STUDY = "qa-flax tune"
TRIALS_FILE, RESULT_FILE = "trials.log", "tune.json"
"""optuna's journal of the trials, and the result."""
DEFAULT_SPLIT = 0.2
RANDOM_TRIALS = 6
"""So many trials are drawn without a look at the others."""

Part = tuple[datasets.Dataset, datasets.Dataset]
"""The examples to train on, and those to evaluate."""


def tune(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    distributed_args: DistributedArguments,
    tune_args: "command.TuneArguments",
    *,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Run the trials that are not finished yet, and print the command line of the best.

    Args:
        model_args, data_args, training_args, distributed_args, tune_args: the arguments.
        given: those of them that were given, by name.

    Returns:
        The content of `tune.json`.

    Raises:
        UsageError: a file, an argument, the data or the model is invalid.
        Preempted: SIGTERM was received; the same call resumes.
        Interrupted: Ctrl-C was pressed; the same call resumes.
    """
    vars(training_args)["_is_command_line"] = True  # messages name arguments with dashes
    training_args.do_train = training_args.do_eval = True
    if data_args.folds is None and data_args.validation_split is None:
        data_args.validation_split = DEFAULT_SPLIT
    if data_args.folds is not None:
        training_args.eval_strategy = "no"  # pyright: ignore[reportAttributeAccessIssue]
    with usage_errors(ValueError, OSError):
        folder = output_dir(training_args)
        if storage.is_remote(folder):
            raise ValueError(
                f"--output_dir {folder}: the trials are stored in a journal, which must be on this "
                "machine; give a local folder"
            )
        start(distributed_args)
        report_backend()
        check_training_arguments(training_args)
    failure.propagate_failures()
    with sigterm_handled(), ExitStack() as stack:
        with usage_errors(FolderLockedError, FileExistsError, NotADirectoryError):
            stack.enter_context(locked(folder))
        tuning = _Tuning(model_args, data_args, training_args, tune_args, given)
        return tuning.run()


class _Tuning:
    """One call of `qa-flax tune`.

    Args:
        model_args, data_args, training_args, tune_args, given: see `tune`.
    """

    def __init__(
        self,
        model_args: ModelArguments,
        data_args: DataArguments,
        training_args: TrainingArguments,
        tune_args: "command.TuneArguments",
        given: Mapping[str, Any],
    ):
        self._model_args, self._data_args, self._args = model_args, data_args, training_args
        self._tune_args, self._given = tune_args, given
        self._folder = output_dir(training_args)
        self._optuna = import_optuna("qa-flax tune")
        with usage_errors(ValueError, OSError):
            parts = self._parts()
            model, tokenizer = load_model_and_tokenizer(model_args, data_args, training_args)
            self._space, self._fixed = self._read_space(model)
            for name, value in self._fixed.items():
                setattr(training_args, name, value)
            self._trainers = [self._trainer(part, tokenizer) for part in parts]
            self._metric = str(training_args.metric_for_best_model).removeprefix("eval_")
            trainer = self._trainers[0]
            check_best_metric(training_args, trainer.eval_dataset, trainer.compute_metrics)
            self._study = self._open_study(parts)
        self._arguments = [TrialArguments(trainer.args) for trainer in self._trainers]
        self._began = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Run the trials, print and write the result, and return it."""
        done, wanted = len(finished_trials(self._study)), self._tune_args.n_trials
        self._print_head(done)
        if done < wanted:
            run_trials(
                self._study,
                self._objective,
                wanted - done,
                seed=int(self._args.seed),
                timeout=self._tune_args.timeout,
                callbacks=[self._report],
                n_startup_trials=RANDOM_TRIALS,
                gc_after_trial=True,
            )
        with usage_errors(ValueError):
            require_completed(self._study)
        result = self._write()
        for line in table(self._study, self._metric):
            print_on_main(line)
        print_on_main(best_line(self._study.best_trial, self._metric))
        print_on_main(
            f"All trials: {self._folder / RESULT_FILE}. This command trains with the arguments of "
            "the best trial"
            + (
                " on the same part of the data; without --validation_split it trains on all of it:"
                if self._data_args.folds is None
                else " and the same folds; without --folds it trains on all of the data:"
            )
        )
        print_on_main(result["command"])
        return result

    # ---- preparation -----------------------------------------------------------------------------

    def _parts(self) -> list[Part]:
        """Read the training data, and split it; nothing else is ever read."""
        data_args, args = self._data_args, self._args
        loaded = load_stage("train", self._model_args, data_args)
        report_rows([loaded], data_args, args)
        examples = loaded.examples
        answered = {"train": examples, "eval": examples}
        check_answers(answered, data_args, args, labelled=("eval",))
        if data_args.folds is None:
            stages = examples_by_stage(self._model_args, data_args, args, {"train": loaded})
            return [(stages["train"], stages["eval"])]
        folds = fold_examples(
            examples, data_args.folds, seed=data_seed_of(args), by=data_args.split_by
        )
        return [(limited("train", train, data_args), held_out) for train, held_out in folds]

    def _read_space(self, model: Any) -> tuple[Space, dict[str, Any]]:
        left_out = []
        try:
            dropout_settings(TrainingArguments(hidden_dropout_prob=0.1), model)
        except ValueError:  # the family has no such dropout
            left_out.append("hidden_dropout_prob")
        names = TrainingArguments.__dataclass_fields__.keys() - command.WITHOUT
        parser = command.parser()
        texts = self._tune_args.search or ()
        space, fixed = read_space(texts, parser, names, self._given, left_out)
        for name, values in values_to_check(space, fixed):
            for value in values:
                args = copy.copy(self._args)
                setattr(args, name, value)
                check_values(args)
                check_training_arguments(args)
                check_model_arguments(args, model)
        return space, fixed

    def _trainer(self, part: Part, tokenizer: Any) -> QuestionAnsweringTrainer:
        """A trainer for one part of the data, whose trials each load the model anew."""
        args = copy.copy(self._args)
        train, held_out = part
        windows = [
            make_windows(
                examples,
                tokenizer,
                max_seq_length=self._data_args.max_seq_length,
                doc_stride=self._data_args.doc_stride,
                labels=True,
                pad_to_max_length=self._data_args.pad_to_max_length,
                long_questions=self._data_args.long_questions,
                disable_tqdm=True,
                warn=warn,
                tokenizer_argument=TOKENIZER_ARGUMENT,
            )
            for examples in (learnable_examples(train), held_out)
        ]
        settings = self._data_args.gather == "topk"
        trainer = QuestionAnsweringTrainer(
            args=args,
            model_init=lambda: self._model(args),
            train_dataset=windows[0],
            eval_dataset=windows[1],
            eval_examples=held_out,
            train_examples=train,
            processing_class=tokenizer,
            post_process_function=make_post_processing(self._data_args, None),
            compute_metrics=make_compute_metrics(self._data_args),
            search_settings=search_settings(self._data_args) if settings else None,
        )
        trainer.warns_of_leakage = False  # the parts share no text
        trainer.compute_objective = lambda metrics: metrics[f"eval_{self._metric}"]
        return trainer

    def _model(self, args: TrainingArguments) -> Any:
        with _without_warnings("qa_flax.models"):  # they were logged when it was loaded first
            return load_model(self._model_args, args)

    def _open_study(self, parts: Sequence[Part]) -> Any:
        """Open or create the study, and refuse one of another search."""
        optuna, file = self._optuna, self._folder / TRIALS_FILE
        if getattr(self._args, "overwrite_output_dir", False):
            file.unlink(missing_ok=True)
        storage.make_folder(self._folder)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        backend = optuna.storages.journal.JournalFileBackend(str(file))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=STUDY,
            load_if_exists=True,
            direction="maximize" if self._args.greater_is_better else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
        )
        conditions = self._conditions(parts)
        before = study.user_attrs.get("conditions", conditions)
        differences = [
            f"{name} was {before[name]!r} and is {conditions[name]!r}"
            for name in sorted(before.keys() & conditions.keys())
            if before[name] != conditions[name]
        ]
        if differences:
            raise UsageError(
                f"{self._folder} has trials of another search: {'; '.join(differences)}. Restore "
                "the arguments, give another --output_dir, or begin anew with "
                "--overwrite_output_dir"
            )
        study.set_user_attr("conditions", conditions)
        end_interrupted(study)
        first, states = first_trial(self._space), optuna.trial.TrialState
        is_waiting = bool(study.get_trials(deepcopy=False, states=(states.WAITING,)))
        if first and not (finished_trials(study) or is_waiting):
            study.enqueue_trial(first)
        return study

    def _conditions(self, parts: Sequence[Part]) -> dict[str, Any]:
        train, held_out = parts[0]
        examples = datasets.concatenate_datasets([train, held_out])
        conditions = conditions_of(self._model_args, self._data_args, self._args, [examples])
        for name in (*self._space, "eval_strategy", "eval_steps"):
            conditions.pop(name, None)
        space = {name: str(part) for name, part in self._space.items()}
        return json.loads(json.dumps({**conditions, "search": space}))

    def _print_head(self, done: int) -> None:
        wanted = self._tune_args.n_trials
        judged = (
            f"the mean {self._metric} of {self._data_args.folds} folds"
            if self._data_args.folds is not None
            else f"{self._metric} on the part that is split off"
        )
        resumed = f", of which {done} are finished" if done else ""
        print_on_main(f"{wanted} trials{resumed}, judged by {judged}. The space:")
        width = max(map(len, self._space))
        for name, part in self._space.items():
            print_on_main(f"  {name:{width}}  {part}")

    # ---- trials ----------------------------------------------------------------------------------

    def _objective(self, trial: Any) -> float:
        values = draw(self._space, trial)
        number = len(finished_trials(self._study)) + 1
        place = f"Trial {number} of {self._tune_args.n_trials}, {name_of(trial)}"
        print_on_main(f"{place}: {values_line(values)}")
        self._began = time.monotonic()
        try:
            if len(self._trainers) == 1:
                return self._run_single(trial, values)
            return self._run_folds(trial, values)
        except Interrupted:
            raise Interrupted(
                f"interrupted in trial {number} of {self._tune_args.n_trials}; repeating the "
                "command goes on with this trial"
            ) from None
        finally:
            self._clean(trial)

    def _run_single(self, trial: Any, values: Mapping[str, Any]) -> float:
        (trainer,), (arguments,) = self._trainers, self._arguments
        objective = trainer.run_trial(trial, values, arguments)
        if trainer.is_pruned:
            raise self._optuna.TrialPruned
        return objective

    def _run_folds(self, trial: Any, values: Mapping[str, Any]) -> float:
        """Train on each fold; the mean so far says whether the trial is hopeless."""
        objectives: list[float] = []
        for trainer, arguments in zip(self._trainers, self._arguments, strict=True):
            objectives.append(trainer.run_trial(_Unpruned(trial), values, arguments))
            mean = float(np.mean(objectives))
            print_on_main(f"  fold {len(objectives)}: {self._metric} {objectives[-1]:.4g}")
            trial.report(mean, len(objectives))
            if len(objectives) < len(self._trainers) and trial.should_prune():
                raise self._optuna.TrialPruned
        return float(np.mean(objectives))

    def _clean(self, trial: Any) -> None:
        """Delete a checkpoint that SIGTERM has left, unless checkpoints are asked for."""
        folder = self._folder / name_of(trial)
        if str(self._args.save_strategy) in ("no", "SaveStrategy.NO") and folder.is_dir():
            storage.delete(folder)

    def _report(self, study: Any, trial: Any) -> None:
        """Print how a trial has ended, and write all results."""
        seconds = time.monotonic() - self._began
        print_on_main(trial_line(study, trial, self._metric, seconds))
        self._write()

    def _write(self) -> dict[str, Any]:
        states = self._optuna.trial.TrialState
        trials = [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "hyperparameters": trial.params,
                "seconds": None if trial.duration is None else trial.duration.total_seconds(),
                "error": trial.user_attrs.get("failed"),
            }
            for trial in finished_trials(self._study)
        ]
        result: dict[str, Any] = {"metric": self._metric, "trials": trials}
        if any(trial["state"] == states.COMPLETE.name.lower() for trial in trials):
            best = self._study.best_trial
            result["best"] = {
                "number": best.number,
                "value": best.value,
                "hyperparameters": best.params,
            }
            result["command"] = self._command(best.params)
        storage.write_text(self._folder / RESULT_FILE, storage.json_text(result, indent=2) + "\n")
        return result

    def _command(self, params: Mapping[str, Any]) -> str:
        own = command.TuneArguments.__dataclass_fields__.keys()
        dropped = {*own, *self._space, "output_dir", "overwrite_output_dir", "accept_changes"}
        kept = {name: v for name, v in self._given.items() if name not in dropped}
        if self._data_args.folds is None:
            kept["validation_split"] = self._data_args.validation_split
        return run_command(kept, self._fixed | dict(params), Path(self._folder) / "best")


class _Unpruned:
    """A trial that does not hear of the evaluations of one fold."""

    def __init__(self, trial: Any):
        self.number, self.params = trial.number, trial.params

    def report(self, _value: float, _step: int) -> None:
        """Do nothing."""

    def should_prune(self) -> bool:
        """Return False."""
        return False


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
