"""Beside transformers' own Trainer on PyTorch: the same updates, events and log history."""

import numpy as np
import pytest
import tiny
from tiny_trainers import arguments
from transformers import TrainerCallback

from qa_flax import Trainer, prepare_train_features

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[parity]'")


MOVE_NO_SOFTMAX = ("key.bias", "layer.0.output.LayerNorm.bias", "qa_outputs.bias")


@pytest.fixture(scope="module")
def windows():
    lengths = {"max_seq_length": 24, "doc_stride": 3}
    made = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **lengths)
    assert not all(map(all, made["attention_mask"]))  # there is padding
    assert any(position > 0 for position in made["start_positions"])
    return made


def both(tmp_path, train, evaluated=None, callbacks=(None, None), **settings):
    """transformers' trainer and ours, from the same weights; eight rows a batch."""
    import transformers

    model = tiny.model()
    model.save_pretrained(tmp_path / "start")
    columns = ["offset_mapping", "example_id"]
    # Ours first: any TrainingArguments made later takes accelerate's state from their trainer.
    ours = Trainer(
        model,
        arguments(tmp_path / "ours", **settings),
        train_dataset=train,
        eval_dataset=evaluated,
        callbacks=callbacks[1],
    )
    theirs = transformers.Trainer(
        model=transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "start"),
        args=arguments(
            tmp_path / "theirs", **settings | {"per_device_train_batch_size": 8, "use_cpu": True}
        ),
        train_dataset=train.remove_columns(columns),
        eval_dataset=None if evaluated is None else evaluated.remove_columns(columns),
        callbacks=callbacks[0],
    )
    return theirs, ours


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (14, {}),  # every second batch is short
        (16, {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"}),
        pytest.param(
            14,
            {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 1e-2},
            marks=pytest.mark.slow,
        ),
        pytest.param(14, {"optim": "adafactor", "max_grad_norm": 0.1}, marks=pytest.mark.slow),
        pytest.param(
            14, {"dataloader_drop_last": True, "max_grad_norm": 0.0}, marks=pytest.mark.slow
        ),
    ],
    ids=["adamw", "accumulation", "sgd", "adafactor", "drop_last"],
)
def test_updates_are_those_of_transformers(tmp_path, windows, rows, changes):
    settings = {
        "num_train_epochs": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "warmup_steps": 3,
        "train_sampling_strategy": "sequential",
        # Some gradients are zero but for rounding (a key's bias moves no softmax); with a tiny
        # epsilon Adam would turn that noise into whole steps.
        "adam_epsilon": 1e-4,
    } | changes
    theirs, ours = both(tmp_path, windows.select(range(rows)), **settings)
    wanted, found = theirs.train(), ours.train()
    assert found.global_step == wanted.global_step >= 4
    np.testing.assert_allclose(found.training_loss, wanted.training_loss, rtol=1e-5)
    ours.save_model(tmp_path / "end")
    import transformers

    with torch.no_grad():
        end = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "end")
        start = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "start")
        wanted, first = theirs.model.state_dict(), start.state_dict()
        for name, value in end.state_dict().items():
            # They move no softmax: their gradients are rounding, and Adafactor scales them up.
            if changes.get("optim") == "adafactor" and name.endswith(MOVE_NO_SOFTMAX):
                continue
            moved = (wanted[name] - first[name]).abs().max().item()
            difference = (value - wanted[name]).abs().max().item()
            assert difference < 1e-5, (name, difference, moved)
        name = "bert.encoder.layer.0.attention.self.value.weight"
        assert (wanted[name] - first[name]).abs().max() > 1e-4


class Recorder(TrainerCallback):
    """Every event with what a callback can see of it."""

    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if not name.startswith("on_") or name == "on_prediction_step":
            return super().__getattribute__(name)

        def record(args, state, control, **kwargs):
            flags = [flag for flag, value in vars(control).items() if value is True]
            given = sorted(k for k, v in kwargs.items() if v is not None and k != "progress")
            epoch = None if state.epoch is None else round(state.epoch, 4)
            self.events.append((name, state.global_step, epoch, flags, given))

        return record


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"},
            marks=pytest.mark.slow,
        ),
        {
            "eval_strategy": "steps",
            "eval_steps": 3,
            "save_strategy": "steps",
            "save_steps": 3,
            "logging_steps": 2,
            "logging_first_step": True,
            "load_best_model_at_end": True,
            "metric_for_best_model": "loss",
        },
        {
            "eval_strategy": "steps",
            "eval_steps": 0.5,
            "eval_delay": 2,
            "eval_on_start": True,
            "max_steps": 5,
            "gradient_accumulation_steps": 2,
            "save_strategy": "best",
            "metric_for_best_model": "loss",
        },
    ],
    ids=["epochs", "steps", "best"],
)
def test_events_and_log_history_are_those_of_transformers(tmp_path, windows, settings):
    recorders = Recorder(), Recorder()
    settings = {"num_train_epochs": 2, "learning_rate": 1e-3} | settings
    settings |= {"train_sampling_strategy": "sequential", "adam_epsilon": 1e-4}
    theirs, ours = both(
        tmp_path,
        windows.select(range(20)),
        windows.select(range(7)),
        [[one] for one in recorders],
        **settings,
    )
    theirs.train()
    ours.train()
    events = [recorder.events for recorder in recorders]
    assert [e[:3] for e in events[1]] == [e[:3] for e in events[0]]
    assert [e[3] for e in events[1]] == [e[3] for e in events[0]]
    for theirs_given, ours_given in zip(*([e[4] for e in one] for one in events), strict=True):
        assert set(theirs_given) - {"logs", "metrics"} <= set(ours_given) | {"processing_class"}
    histories = [trainer.state.log_history for trainer in (theirs, ours)]
    assert [sorted(logs) for logs in histories[1]] == [sorted(logs) for logs in histories[0]]
    for one, other in zip(*histories, strict=True):
        names = ("loss", "learning_rate", "grad_norm", "step", "epoch", "eval_loss", "train_loss")
        for name in set(names) & set(one):
            assert other[name] == pytest.approx(one[name], rel=1e-4), name
    for name in ("global_step", "best_global_step", "max_steps", "num_train_epochs"):
        assert getattr(ours.state, name) == getattr(theirs.state, name), name
    saved = [{path.name for path in (tmp_path / name).iterdir()} for name in ("theirs", "ours")]
    assert saved[0] == saved[1]
