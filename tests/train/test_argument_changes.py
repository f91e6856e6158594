"""Arguments that are changed after the trainer was built act, or are refused."""

import itertools
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_trainers import arguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from qa_flax import Trainer, prepare_train_features
from qa_flax.train.training_arguments import REFUSED, WITHOUT_EFFECT


@pytest.fixture(scope="module")
def windows():
    lengths = {"max_seq_length": 24, "doc_stride": 3}
    data = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **lengths)
    return data.select(range(16))


@pytest.fixture
def trainer(tmp_path, windows):
    args = arguments(tmp_path, num_train_epochs=1)
    return Trainer(tiny.model(), args, train_dataset=windows, eval_dataset=windows)


def callback_types(trainer):
    return [type(callback) for callback in trainer.callback_handler.callbacks]


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_that_is_not_supported_is_refused_at_the_next_call(trainer, name, windows):
    setattr(trainer.args, name, {"a": True})
    for call in (trainer.train, trainer.evaluate, lambda: trainer.predict(windows)):
        with pytest.raises(ValueError, match=f"does not support these .*\n  {name}="):
            call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"logging_steps": 0, "logging_strategy": "steps"},
            "logging_steps=0: it must be a number above 0",
        ),
        ({"warmup_steps": -1}, "warmup_steps=-1: it must be a number of at least 0"),
        ({"save_strategy": "best"}, "save_strategy='best' needs metric_for_best_model"),
        ({"load_best_model_at_end": True, "eval_strategy": "epoch"}, "save and eval strategy"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0: it must be a whole"),
        ({"lr_scheduler_type": "no schedule"}, "is not a valid SchedulerType"),
        ({"shard_params": True, "optim": "lamb"}, "optim='lamb' needs whole parameters"),
        ({"eval_strategy": "sometimes"}, "is not a valid IntervalStrategy"),
        ({"report_to": "nowhere"}, "report_to='nowhere': there is no such tracker"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_invalid_value_is_refused_when_training_starts(trainer, changes, message):
    for name, value in changes.items():
        setattr(trainer.args, name, value)
    for _ in range(2):  # also at the second try
        with pytest.raises(ValueError, match=message.replace("'", "['\"]")):
            trainer.train()


def test_an_argument_without_effect_is_reported_once(trainer, caplog):
    names = [name for name in WITHOUT_EFFECT if name.startswith("ddp_")]
    for name in names:
        setattr(trainer.args, name, "something else")
    for _ in range(3):
        trainer._apply_changed_arguments()
    assert [record.getMessage().split("=")[0] for record in caplog.records] == sorted(
        names, key=list(WITHOUT_EFFECT).index
    )


@pytest.mark.slow
def test_what_training_reads_is_read_when_it_starts(trainer):
    args = trainer.args
    args.num_train_epochs, args.learning_rate, args.per_device_train_batch_size = 3, 0.125, 2
    args.lr_scheduler_type, args.logging_steps, args.eval_strategy = "constant", 1, "epoch"
    args.weight_decay, args.gradient_accumulation_steps, args.max_grad_norm = 0.5, 1, 0.5
    trainer.train()
    logs = trainer.state.log_history
    assert trainer.state.global_step == 3  # 16 windows on 8 cores, two on each
    assert [entry["learning_rate"] for entry in logs if "loss" in entry] == [0.125] * 3
    assert [entry["epoch"] for entry in logs if "eval_loss" in entry] == [1, 2, 3]


@pytest.mark.slow
def test_the_dtype_of_evaluation_may_be_changed(trainer, windows):
    exact = trainer.predict(windows).predictions[0]
    trainer.args.bf16_full_eval = True
    rounded = trainer.predict(windows).predictions[0]
    assert 0 < np.max(np.abs(rounded - exact)) < 0.2
    trainer.args.bf16_full_eval = False
    np.testing.assert_array_equal(trainer.predict(windows).predictions[0], exact)


def test_the_old_name_of_activation_checkpointing_acts(trainer):
    trainer.args.gradient_checkpointing = True
    trainer._apply_changed_arguments()
    assert trainer.args.activation_checkpointing is True


def test_the_best_metric_and_its_direction_follow_from_the_changed_arguments(trainer):
    args = trainer.args
    args.load_best_model_at_end, args.eval_strategy, args.save_strategy = True, "epoch", "epoch"
    trainer._apply_changed_arguments()
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)
    args.metric_for_best_model = "f1"
    trainer._apply_changed_arguments()
    assert args.greater_is_better is True
    args.metric_for_best_model, args.greater_is_better = "errors", False
    trainer._apply_changed_arguments()
    assert args.greater_is_better is False


def test_callbacks_follow_the_arguments(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # transformers writes the log of an evaluation into ./runs
    assert PrinterCallback in callback_types(trainer)
    trainer.args.disable_tqdm, trainer.args.report_to = False, "tensorboard"
    trainer.evaluate()
    kinds = callback_types(trainer)
    assert PrinterCallback not in kinds
    assert issubclass(kinds[-1], ProgressCallback)
    assert kinds.count(TensorBoardCallback) == 1
    trainer.args.disable_tqdm, trainer.args.report_to = True, "none"
    trainer.evaluate()
    assert callback_types(trainer)[1:] == [PrinterCallback]


def test_a_removed_callback_stays_removed(trainer):
    trainer.remove_callback(PrinterCallback)
    trainer.args.disable_tqdm = False
    trainer.evaluate()
    assert len(callback_types(trainer)) == 1


def test_the_log_level_may_be_changed(trainer):
    level = logging.getLogger("qa_flax").level
    try:
        trainer.args.log_level = "error"
        trainer.evaluate()
        assert logging.getLogger("qa_flax").level == logging.ERROR
    finally:
        for name in ("qa_flax", "transformers"):
            logging.getLogger(name).setLevel(level)


def test_a_smoothed_loss_and_an_own_loss_contradict_each_other_at_any_time(tmp_path, windows):
    def loss(logits, batch):
        return logits.start_logits[:, 0]

    args = arguments(tmp_path)
    trainer = Trainer(tiny.model(), args, train_dataset=windows, compute_loss_func=loss)
    trainer.args.label_smoothing_factor = 0.1
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1 has no effect together with"):
        trainer.train()


@pytest.mark.slow
def test_parameters_may_be_sharded_later(trainer):
    before = trainer.evaluate()["eval_loss"]
    trainer.args.shard_params = True
    assert trainer.evaluate()["eval_loss"] == pytest.approx(before, rel=1e-5)
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_other_arguments_may_take_the_place_of_the_trainers(trainer, tmp_path):
    new = arguments(tmp_path, disable_tqdm=False)
    trainer.args = new
    assert trainer.args is new
    assert PrinterCallback not in callback_types(trainer)
    refused = arguments(tmp_path, deepspeed="ds.json")
    with pytest.raises(ValueError, match=r"deepspeed='ds\.json'"):
        trainer.args = refused
    assert trainer.args is new


@pytest.mark.filterwarnings("ignore:logging_dir is deprecated:FutureWarning")
def test_each_trainer_has_its_folder_for_tensorboard(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    folders = []
    for settings in ({"logging_dir": "a"}, {"logging_dir": "~/b"}, {}):
        args = arguments(tmp_path, report_to="tensorboard", **settings)
        callbacks = Trainer(tiny.model(), args).callback_handler.callbacks
        folders += [c.logging_dir for c in callbacks if isinstance(c, TensorBoardCallback)]
    assert folders == ["a", str(Path("~/b").expanduser()), None]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:logging_dir is deprecated:FutureWarning")
def test_two_trainers_write_for_tensorboard_each_into_its_folder(tmp_path, windows, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    logs = [{"logging_dir": str(tmp_path / "logs" / name)} for name in "ab"]
    trainers = [
        Trainer(
            tiny.model(),
            arguments(tmp_path / f"out-{n}", report_to="tensorboard", max_steps=1, **settings),
            train_dataset=windows,
        )
        for n, settings in enumerate([*logs, {}])
    ]
    for trainer in trainers:
        trainer.train()
    folders = [tmp_path / "logs" / "a", tmp_path / "logs" / "b", tmp_path / "out-2" / "runs"]
    assert [len(list(folder.rglob("events*"))) for folder in folders] == [1, 1, 1]
    trainers[0].args.logging_dir = str(tmp_path / "logs" / "c")
    trainers[0].train()
    assert len(list((tmp_path / "logs" / "c").glob("events*"))) == 1
    assert len(list(tmp_path.rglob("events*"))) == 4


@pytest.mark.filterwarnings("ignore:logging_dir is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("variable", "report_to", "message"),
    [
        (
            "elsewhere",
            "tensorboard",
            "the environment variable TENSORBOARD_LOGGING_DIR=elsewhere takes precedence",
        ),
        (None, "none", 'nothing is written for TensorBoard without report_to="tensorboard"'),
    ],
)
def test_a_folder_for_tensorboard_that_is_not_used_is_reported_once(
    tmp_path, windows, monkeypatch, caplog, variable, report_to, message
):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    if variable:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", variable)
    args = arguments(tmp_path, report_to=report_to, logging_dir="logs")
    for _ in range(2):
        Trainer(tiny.model(), args, train_dataset=windows)
    (record,) = caplog.records
    assert record.getMessage() == f"logging_dir='logs' has no effect: {message}."


def test_unchanged_arguments_are_not_checked_again(trainer, monkeypatch):
    checks = itertools.count()
    check = trainer._known_arguments.check
    monkeypatch.setattr(
        trainer._known_arguments, "check", lambda *args: (next(checks), check(*args))
    )
    for _ in range(3):
        trainer.evaluate()
    assert next(checks) == 0
    trainer.args.seed = 3
    for _ in range(3):
        trainer.evaluate()
    assert next(checks) == 2
