"""A tracker that cannot be used is found before any work; one that fails is left out."""

import importlib.util
import logging

import pytest
import tiny
from tiny_trainers import arguments, watched_trainer, watched_windows
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from qa_flax import Trainer
from qa_flax.train.trackers import EXTRAS, TrackerError, tracker_callbacks

MODULE = "qa_flax.train.trackers"


@pytest.fixture(autouse=True)
def _without_keys(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))


def test_an_unknown_tracker_is_named_with_the_most_similar(tmp_path):
    args = arguments(tmp_path, report_to="tenserboard")
    message = "report_to='tenserboard': there is no such tracker; did you mean 'tensorboard'"
    with pytest.raises(TrackerError, match=message):
        Trainer(tiny.model(), args)


@pytest.mark.parametrize("name", ["comet_ml", "mlflow", "neptune", "clearml"])
def test_a_tracker_that_is_not_installed_is_named_with_the_command(tmp_path, name):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    args = arguments(tmp_path, report_to=["tensorboard", name])
    message = f"report_to='{name}': {name} is not installed; install it with pip install {name}, "
    with pytest.raises(TrackerError, match=message + "or use report_to='tensorboard'"):
        tracker_callbacks(args)


@pytest.mark.parametrize("name", EXTRAS)
def test_the_extras_install_the_trackers(tmp_path, monkeypatch, name):
    monkeypatch.setattr(f"{MODULE}.get_available_reporting_integrations", list)
    args = arguments(tmp_path, report_to=name)
    vars(args)["_is_command_line"] = True
    message = rf"pip install 'qa-flax\[{name}\]', or use --report_to none"
    with pytest.raises(TrackerError, match=message):
        tracker_callbacks(args)


def test_weights_and_biases_needs_a_key_or_to_be_offline(tmp_path, monkeypatch):
    args = arguments(tmp_path, report_to="wandb")
    with pytest.raises(TrackerError, match=r"no API key .* run `wandb login` or set WANDB_API_KEY"):
        tracker_callbacks(args)
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_API_KEY", "x" * 40)):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            assert [type(c).__name__ for c in tracker_callbacks(args)] == ["WandbCallback"]
    monkeypatch.setenv("WANDB_DISABLED", "true")
    with pytest.raises(TrackerError, match="environment variable WANDB_DISABLED is 'true'"):
        tracker_callbacks(args)


class Dying(TrainerCallback):
    """A tracker whose service is lost at the second update."""

    events: list[str]

    def on_init_end(self, args, state, control, **kwargs):
        Dying.events = []

    def on_log(self, args, state, control, **kwargs):
        Dying.events.append(f"log {state.global_step}")
        if state.global_step == 2:
            raise ConnectionError("the service\nis gone")

    def on_train_end(self, args, state, control, **kwargs):
        Dying.events.append("end")


def test_a_tracker_that_dies_does_not_stop_the_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "dying", Dying)
    monkeypatch.setattr(f"{MODULE}.get_available_reporting_integrations", lambda: ["dying"])
    model, windows = tiny.model(), watched_windows()
    settings = {"report_to": "dying", "max_steps": 3, "eval_strategy": "no"}
    trainer = watched_trainer(tmp_path, model, windows, **settings)
    with caplog.at_level(logging.WARNING):
        assert trainer.train().global_step == 3
    assert Dying.events == ["log 1", "log 2"]
    lines = [r.getMessage() for r in caplog.records if "dying" in r.getMessage()]
    assert lines == [
        "dying failed (ConnectionError: the service is gone) and receives no more values; the "
        "training continues without it."
    ]


def test_a_guarded_callback_keeps_its_type(tmp_path):
    trainer = Trainer(tiny.model(), arguments(tmp_path, report_to="tensorboard"))
    assert trainer.pop_callback(TensorBoardCallback).__class__ is TensorBoardCallback
