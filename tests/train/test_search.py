"""`Trainer.hyperparameter_search`: transformers' contract, with optuna."""

import jax
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from tiny_trainers import arguments, compute_metrics, post_process
from transformers import TrainerCallback

from qa_flax import QuestionAnsweringTrainer, Trainer
from qa_flax.data.features import make_windows
from qa_flax.device import programs
from qa_flax.train.search import default_compute_objective

optuna = pytest.importorskip("optuna", reason="pip install '.[tune]'")
optuna.logging.set_verbosity(optuna.logging.WARNING)

WINDOW = {"max_seq_length": 64, "doc_stride": 16, "disable_tqdm": True}


@pytest.fixture(scope="module")
def windows():
    return make_windows(tiny.examples(answerable=True), tiny.tokenizer(), labels=True, **WINDOW)


def trainer_of(tmp_path, windows, *, cls=Trainer, model_init=lambda: tiny.model(), **changes):
    settings = {k: changes.pop(k) for k in list(changes) if k in ("optimizers", "compute_metrics")}
    args = arguments(tmp_path, **{"max_steps": 2, **changes})
    return cls(
        model_init=model_init, args=args, train_dataset=windows, eval_dataset=windows, **settings
    )


def rates(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)}


@pytest.fixture
def compilations():
    """How many programs XLA compiles or loads from its cache on disk."""
    counted = []

    def count(event, _seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    yield counted
    jax.monitoring.unregister_event_duration_listener(count)


def test_the_best_run_is_that_of_the_smallest_loss_and_trials_compile_nothing(
    tmp_path, windows, compilations
):
    programs.clear()  # of earlier tests
    trainer = trainer_of(tmp_path, windows)
    seen = []

    def space(trial):
        seen.append((trial.number, len(compilations)))
        regularization = {
            "weight_decay": trial.suggest_float("weight_decay", 0.0, 0.1),
            "layerwise_lr_decay": trial.suggest_float("layerwise_lr_decay", 0.8, 1.0),
        }
        return rates(trial) | regularization

    losses = {}

    class Losses(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            losses[round(args.learning_rate, 12)] = metrics["eval_loss"]
            assert state.is_hyper_param_search
            assert state.trial_params["learning_rate"] == args.learning_rate
            assert state.trial_name is None

    trainer.add_callback(Losses)
    before = dict(vars(trainer.args))
    best = trainer.hyperparameter_search(space, n_trials=3)
    assert best._fields == ("run_id", "objective", "hyperparameters", "run_summary")
    assert best.objective == min(losses.values())
    assert losses[round(best.hyperparameters["learning_rate"], 12)] == best.objective
    assert [number for number, _ in seen] == [0, 1, 2]
    assert best.run_id in ("0", "1", "2")
    assert seen[2][1] == seen[1][1] > 0, "the second trial has compiled something"
    assert len(compilations) == seen[1][1]
    assert vars(trainer.args) == before
    assert trainer.hp_space is space
    assert list(tmp_path.iterdir()) == [], "files of trials"
    again = trainer.hyperparameter_search(space, n_trials=3)
    assert again == best, "the same seed draws the same"


@pytest.mark.slow
def test_answers_are_maximized_and_hopeless_trials_are_stopped(tmp_path, windows):
    examples = tiny.examples(answerable=True)
    trainer = trainer_of(
        tmp_path,
        windows,
        cls=QuestionAnsweringTrainer,
        compute_metrics=compute_metrics,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="epoch",
    )
    trainer.eval_examples, trainer.post_process_function = examples, post_process
    steps = []

    class Steps(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    trainer.add_callback(Steps)
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": [1e-2, 1e-12][trial.number]},
        compute_objective=lambda metrics: metrics["eval_f1"],
        direction="maximize",
        n_trials=2,
        pruner=optuna.pruners.ThresholdPruner(lower=10.0),
        hp_name=lambda trial: f"try-{trial.number}",
    )
    assert best.run_id == "0"
    assert steps == [6, 2], "the second trial was not stopped"
    assert (tmp_path / "try-0" / "checkpoint-6").is_dir()


@pytest.mark.slow
def test_a_trial_whose_loss_is_not_finite_does_not_end_the_search(tmp_path, windows, caplog):
    def model_init(trial):
        model = tiny.model()
        if trial is not None and trial.number == 0:
            model.head.outputs.kernel[...] = np.nan
        return model

    trainer = trainer_of(tmp_path, windows, model_init=model_init)
    best = trainer.hyperparameter_search(rates, n_trials=2)
    assert best.run_id == "1"
    assert np.isfinite(best.objective)
    trainer.model_init = lambda trial: model_init(optuna.trial.FixedTrial({}, 0))
    with pytest.raises(ValueError, match="none of the 1 trials was completed"):
        trainer.hyperparameter_search(rates, n_trials=1)


@pytest.mark.slow
def test_a_stored_search_goes_on(tmp_path, windows):
    def search(count, name):
        file = optuna.storages.journal.JournalFileBackend(str(tmp_path / f"{name}.log"))
        return trainer_of(tmp_path, windows).hyperparameter_search(
            rates,
            n_trials=count,
            storage=optuna.storages.JournalStorage(file),
            study_name="mine",
            load_if_exists=True,
        )

    whole = search(3, "whole")
    search(2, "parts")
    assert search(1, "parts") == whole


def test_arguments_that_make_no_sense_are_refused(tmp_path, windows, caplog):
    trainer = trainer_of(tmp_path, windows)
    for settings, message in (
        ({"n_trials": 0}, "n_trials is 0"),
        ({"direction": "up"}, "direction='up'"),
        ({"backend": "ray"}, "backend='ray' is not supported"),
        ({"n_jobs": 2}, "n_jobs=2"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.hyperparameter_search(rates, **settings)
    trainer.hyperparameter_search(lambda trial: {"layers": 1, "warmup_steps": 0.5}, n_trials=1)
    assert "layers, which is no training argument" in caplog.text
    with pytest.raises(ValueError, match="learning_rate"):
        trainer.hyperparameter_search(lambda trial: {"learning_rate": -1.0}, n_trials=1)
    own = trainer_of(tmp_path, windows, optimizers=(optax.sgd(1e-3), None))
    with pytest.raises(ValueError, match="hp_space sets learning_rate, which has no effect"):
        own.hyperparameter_search(rates, n_trials=1)
    trainer.model_init = None
    with pytest.raises(RuntimeError, match="model_init="):
        trainer.hyperparameter_search(rates)


def test_the_sum_of_metrics_is_the_objective_as_in_transformers():
    trainer_utils = pytest.importorskip("transformers.trainer_utils")
    metrics = {"eval_loss": 1.5, "eval_runtime": 3.0, "eval_samples_per_second": 2.0, "epoch": 1.0}
    for extra in ({}, {"eval_exact_match": 20.0, "eval_f1": 30.0}):
        expected = trainer_utils.default_compute_objective(metrics | extra)
        assert default_compute_objective(metrics | extra) == expected
    added = {"eval_fill": 0.5, "eval_post_processing_time": 1.0, "train_f1": 90.0}
    assert default_compute_objective(metrics | added) == 1.5


def test_without_optuna_the_extra_is_named(tmp_path, windows, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    for kind in (ImportError, RuntimeError):
        with pytest.raises(kind, match=r"pip install 'qa-flax\[tune\]'"):
            trainer_of(tmp_path, windows).hyperparameter_search(rates)


def trained(tmp_path, windows, values):
    """The parameters after a training with these arguments: plain, and as a trial."""
    results = []
    for is_trial in (False, True):
        trainer = trainer_of(tmp_path, windows, learning_rate=1e-2)
        if is_trial:
            trainer.hyperparameter_search(lambda trial: values, n_trials=1)
        else:
            for name, value in values.items():
                setattr(trainer.args, name, value)
            trainer.train()
        results.append(jax.tree.leaves(nnx.state(trainer.model)))
    return results


@pytest.mark.slow
def test_a_trial_has_the_weights_of_the_training_with_its_arguments(tmp_path, windows):
    values = {"weight_decay": 0.3, "layerwise_lr_decay": 0.5}
    plain, trial = trained(tmp_path, windows, values)
    for one, other in zip(plain, trial, strict=True):
        np.testing.assert_array_equal(one, other)
    other = trained(tmp_path, windows, {"weight_decay": 0.0})[1]
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(trial, other, strict=True))
