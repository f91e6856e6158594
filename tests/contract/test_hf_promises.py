"""What transformers' Trainer promises beside updates and events, tried with it as the oracle."""

import json
import logging
import shutil

import numpy as np
import pytest
import tiny
from tiny_trainers import arguments, trainer_in
from transformers import EarlyStoppingCallback, TrainerCallback

from qa_flax import Trainer, prepare_train_features, prepare_validation_features
from qa_flax.train import checkpoints

WINDOW = {"max_seq_length": 64, "doc_stride": 16}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def examples():
    return tiny.examples(answerable=True)


@pytest.fixture(scope="module")
def windows(examples, tokenizer):
    return prepare_train_features(examples, tokenizer, **WINDOW)


class StopAt(TrainerCallback):
    """Stops the training, or only the epoch, at one step."""

    def __init__(self, step, flag="should_training_stop"):
        self.step, self.flag = step, flag

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            setattr(control, self.flag, True)


# ---- stopping ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_a_callback_stopped_can_be_resumed(tmp_path, examples, tokenizer):
    """transformers clears the flag at the start of every training."""
    stopped = trainer_in(tmp_path, examples, tokenizer, [StopAt(1)], max_steps=3)
    assert stopped.train().global_step == 1
    for callbacks in ([StopAt(2)], None):
        resumed = trainer_in(tmp_path, examples, tokenizer, callbacks, max_steps=3)
        steps = resumed.train(resume_from_checkpoint=True).global_step
        assert steps == (3 if callbacks is None else 2)


@pytest.mark.slow
def test_early_stopping_that_is_left_out_no_longer_stops(tmp_path, examples, tokenizer, caplog):
    changes = {
        "max_steps": 4,
        "learning_rate": 0.0,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "f1",
        "load_best_model_at_end": True,
    }
    callbacks = [EarlyStoppingCallback(early_stopping_patience=1)]
    stopped = trainer_in(tmp_path, examples, tokenizer, callbacks, **changes)
    assert stopped.train().global_step == 2
    resumed = trainer_in(tmp_path, examples, tokenizer, **changes)
    assert resumed.train(resume_from_checkpoint=True).global_step == 4
    assert "callbacks that this trainer does not have: EarlyStoppingCallback" in caplog.text


@pytest.mark.slow
def test_callbacks_get_their_arguments_back_on_request(tmp_path, examples, tokenizer):
    changes = {
        "max_steps": 3,
        "learning_rate": 0.0,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "f1",
        "load_best_model_at_end": True,
    }
    callbacks = [EarlyStoppingCallback(early_stopping_patience=5)]
    trainer_in(tmp_path, examples, tokenizer, callbacks, **changes | {"max_steps": 2}).train()
    for restore, patience in ((False, 1), (True, 5)):
        folder = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{restore}"))
        resumed = trainer_in(
            folder,
            examples,
            tokenizer,
            [EarlyStoppingCallback(early_stopping_patience=1)],
            **changes | {"restore_callback_states_from_checkpoint": restore},
        )
        # Patience 1 is used up already; with the patience of the checkpoint there is one more step.
        assert resumed.train(resume_from_checkpoint=True).global_step == (3 if restore else 2)
        callback = next(
            c for c in resumed.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)
        )
        assert callback.early_stopping_patience == patience


class Epochs(TrainerCallback):
    """Records the epoch at every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append((state.global_step, round(state.epoch, 6)))


@pytest.mark.slow
def test_an_epoch_that_a_callback_stopped_counts_as_in_transformers(tmp_path, windows):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[parity]'")
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 1}
    recorded = []
    ours, theirs = Epochs(), Epochs()
    model = tiny.model()
    model.save_pretrained(tmp_path / "start")
    assert 16 < len(windows) <= 24  # three updates of eight rows in an epoch
    trainer = Trainer(
        model,
        arguments(tmp_path / "ours", **settings),
        train_dataset=windows,
        callbacks=[StopAt(2, "should_epoch_stop"), ours],
    )
    recorded.append(trainer.train().global_step)
    hf = transformers.Trainer(
        model=transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "start"),
        args=arguments(
            tmp_path / "hf", **settings | {"per_device_train_batch_size": 8, "use_cpu": True}
        ),
        train_dataset=windows.remove_columns(["offset_mapping", "example_id"]),
        callbacks=[StopAt(2, "should_epoch_stop"), theirs],
    )
    recorded.append(hf.train().global_step)
    assert recorded[0] == recorded[1] == 8
    assert ours.seen == theirs.seen


@pytest.mark.slow
def test_a_run_resumed_after_a_stopped_epoch_equals_an_uninterrupted_one(
    tmp_path, examples, tokenizer
):
    changes = {"num_train_epochs": 3}
    whole = trainer_in(
        tmp_path / "whole", examples, tokenizer, [StopAt(1, "should_epoch_stop")], **changes
    )
    steps = whole.train().global_step
    folder = shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for path in folder.glob("checkpoint-*"):
        if path.name != "checkpoint-2":
            shutil.rmtree(path)
    resumed = trainer_in(folder, examples, tokenizer, **changes)
    assert resumed.train(resume_from_checkpoint=True).global_step == steps
    expected, actual = (trainer.model.head.outputs.kernel[...] for trainer in (whole, resumed))
    np.testing.assert_array_equal(expected, actual)


# ---- callbacks -----------------------------------------------------------------------------------


class WithoutKwargs(TrainerCallback):
    """Names all arguments of transformers 5, and takes no others."""

    def __init__(self):
        self.rates = []

    def on_step_end(
        self,
        args,
        state,
        control,
        model=None,
        processing_class=None,
        optimizer=None,
        lr_scheduler=None,
        train_dataloader=None,
        eval_dataloader=None,
    ):
        self.rates.append((optimizer.param_groups[0]["lr"], lr_scheduler.get_last_lr()[0]))
        with pytest.raises(ValueError, match=r"optimizers=\(None, schedule\)"):
            optimizer.param_groups[0]["lr"] = 1.0


def test_a_callback_needs_no_further_arguments_and_reads_the_learning_rate(tmp_path, windows):
    callback = WithoutKwargs()
    settings = {"max_steps": 2, "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
    trainer = Trainer(
        tiny.model(), arguments(tmp_path, **settings), train_dataset=windows, callbacks=[callback]
    )
    trainer.train()
    assert callback.rates == [(1e-3, 1e-3), (5e-4, 5e-4)]


def test_progress_can_be_removed_by_the_class_of_transformers(tmp_path, windows, capfd):
    from transformers.trainer_callback import ProgressCallback

    trainer = Trainer(
        tiny.model(),
        arguments(tmp_path, max_steps=1, disable_tqdm=False),
        train_dataset=windows,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.train()
    assert "Training:" not in capfd.readouterr().err


# ---- metrics -------------------------------------------------------------------------------------


def scalars(prediction):
    return {
        "f1": np.float32(0.5),
        "count": np.int64(3),
        "is_good": np.bool_(True),
        "parts": [np.float64(1.0), {"x": np.array([2])}],
    }


def test_metrics_of_numpy_scalars_become_python_numbers(tmp_path, windows):
    settings = {
        "max_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "metric_for_best_model": "f1",
    }
    trainer = Trainer(
        tiny.model(),
        arguments(tmp_path, **settings),
        train_dataset=windows,
        eval_dataset=windows,
        compute_metrics=scalars,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert type(metrics["eval_f1"]) is float
    assert type(metrics["eval_count"]) is int
    assert metrics["eval_is_good"] is True
    assert metrics["eval_parts"] == [1.0, {"x": 2}]
    trainer.log({"mine": np.float32(1.5)})
    trainer.save_state()
    trainer.save_metrics("eval", metrics)
    saved = json.loads((tmp_path / checkpoints.TRAINER_STATE).read_text())
    assert saved["log_history"][-1]["mine"] == 1.5


def test_metrics_are_printed_as_transformers_prints_them(tmp_path, capsys):
    pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[parity]'")
    from transformers import trainer_pt_utils

    metrics = {
        "train_runtime": 3723.4567,
        "eval_f1": 12.34567,
        "total_flos": 5 * 2.0**31,
        "train_mem_cpu_peaked_delta": 7 << 20,
        "epoch": 2.0,
        "eval_samples": 10,
        "name": "x",
    }
    trainer = Trainer(tiny.model(), arguments(tmp_path))
    assert trainer.metrics_format(metrics) == trainer_pt_utils.metrics_format(metrics)
    trainer.log_metrics("train", metrics)
    ours = capsys.readouterr().out
    trainer_pt_utils.log_metrics(trainer, "train", metrics)
    assert ours == capsys.readouterr().out
    assert trainer.is_local_process_zero()


def test_compute_metrics_is_not_called_without_labels(tmp_path, examples, tokenizer):
    def fail(prediction):
        raise AssertionError("called without labels")

    unlabelled = prepare_validation_features(examples, tokenizer, labels=False, **WINDOW)
    trainer = Trainer(tiny.model(), arguments(tmp_path), compute_metrics=fail)
    assert trainer.predict(unlabelled).label_ids is None
    assert "eval_runtime" in trainer.evaluate(unlabelled)


def test_one_data_set_of_a_dict_is_evaluated_by_its_name(tmp_path, examples, tokenizer):
    windows = prepare_validation_features(examples, tokenizer, **WINDOW)
    trainer = trainer_in(tmp_path, examples, tokenizer)
    trainer.eval_dataset = {"a": windows, "b": windows.select(range(4))}
    trainer.eval_examples = {"a": examples, "b": examples}
    assert trainer.evaluate("a")["eval_f1"] == trainer.evaluate()["eval_a_f1"]
    with pytest.raises(
        ValueError, match=r"evaluate\('c'\): the trainer's eval_dataset has 'a', 'b'"
    ):
        trainer.evaluate("c")


# ---- refused when the trainer is built -----------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_strategy": "epoch"}, r"eval_strategy='epoch' needs an eval_dataset.*--do_eval"),
        ({"save_strategy": "best"}, r'save_strategy="best" needs metric_for_best_model'),
    ],
)
def test_an_evaluation_that_cannot_be_done_is_refused_at_construction(
    tmp_path, windows, settings, message
):
    with pytest.raises(ValueError, match=message):
        Trainer(tiny.model(), arguments(tmp_path, **settings), train_dataset=windows)


# ---- the ends of a run ---------------------------------------------------------------------------


def test_a_deleted_best_checkpoint_is_a_warning(tmp_path, examples, tokenizer, caplog):
    changes = {
        "max_steps": 2,
        "learning_rate": 0.0,  # so that the first checkpoint stays the best
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "f1",
        "load_best_model_at_end": True,
        "save_total_limit": None,
    }
    trainer_in(tmp_path, examples, tokenizer, **changes).train()
    shutil.rmtree(tmp_path / "checkpoint-1")
    resumed = trainer_in(tmp_path, examples, tokenizer, **changes | {"max_steps": 3})
    caplog.set_level(logging.WARNING)
    assert resumed.train(resume_from_checkpoint=True).global_step == 3
    assert "checkpoint-1 does not exist any more" in caplog.text


def test_zero_epochs_train_nothing(tmp_path, windows):
    trainer = Trainer(
        model := tiny.model(), arguments(tmp_path, num_train_epochs=0), train_dataset=windows
    )
    before = np.array(model.head.outputs.kernel[...])
    output = trainer.train()
    assert output.global_step == 0
    np.testing.assert_array_equal(before, model.head.outputs.kernel[...])


def test_a_plateau_schedule_does_not_count_the_evaluation_before_training(
    tmp_path, examples, tokenizer
):
    """With patience 0 and no improvement the first evaluation after it would lower the rate."""
    changes = {
        "max_steps": 2,
        "learning_rate": 1e-30,
        "warmup_steps": 0,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_on_start": True,
        "metric_for_best_model": "f1",
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5},
        "logging_steps": 1,
    }
    trainer = trainer_in(tmp_path, examples, tokenizer, **changes)
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert rates == [1e-30, 1e-30]
