"""Comparison with transformers' Trainer on PyTorch: same updates, events and log history."""

import numpy as np
import pytest
import tiny
from tiny_trainers import arguments
from transformers import TrainerCallback

from qa_flax import Trainer, prepare_train_features

torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[parity]'")


# Parameters that add a constant to all logits of a softmax, so that their gradient is exactly zero.
HAVE_NO_GRADIENT = ("key.bias", "layer.0.output.LayerNorm.bias", "qa_outputs.bias")


@pytest.fixture(scope="module")
def windows():
    lengths = {"max_seq_length": 24, "doc_stride": 3}
    dataset = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **lengths)
    assert not all(map(all, dataset["attention_mask"])), "no window has padding"
    assert any(position > 0 for position in dataset["start_positions"])
    return dataset


def trainers(tmp_path, train_windows, eval_windows=None, callbacks=(None, None), **settings):
    """transformers' trainer and ours, with the same weights and batches of eight rows."""
    import transformers

    model = tiny.model()
    model.save_pretrained(tmp_path / "start")
    columns = ["offset_mapping", "example_id"]
    # Ours comes first: transformers' trainer sets a global state of accelerate, which all
    # TrainingArguments created later use.
    ours = Trainer(
        model,
        arguments(tmp_path / "ours", **settings),
        train_dataset=train_windows,
        eval_dataset=eval_windows,
        callbacks=callbacks[1],
    )
    hf = transformers.Trainer(
        model=transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "start"),
        args=arguments(
            tmp_path / "hf", **settings | {"per_device_train_batch_size": 8, "use_cpu": True}
        ),
        train_dataset=train_windows.remove_columns(columns),
        eval_dataset=None if eval_windows is None else eval_windows.remove_columns(columns),
        callbacks=callbacks[0],
    )
    return hf, ours


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        (14, {}),  # every second batch has fewer rows
        pytest.param(
            16,
            {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"},
            marks=pytest.mark.slow,
        ),
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
def test_updates_equal_those_of_transformers(tmp_path, windows, rows, changes):
    settings = {
        "num_train_epochs": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "warmup_steps": 3,
        "train_sampling_strategy": "sequential",
        # Gradients that should be zero (see above) are rounding errors. Adam scales them up to the
        # size of the learning rate, unless epsilon is large.
        "adam_epsilon": 1e-4,
    } | changes
    hf, ours = trainers(tmp_path, windows.select(range(rows)), **settings)
    expected, actual = hf.train(), ours.train()
    assert actual.global_step == expected.global_step >= 4
    np.testing.assert_allclose(actual.training_loss, expected.training_loss, rtol=1e-5)
    ours.save_model(tmp_path / "end")
    import transformers

    with torch.no_grad():
        end = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "end")
        start = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "start")
        expected, initial = hf.model.state_dict(), start.state_dict()
        for name, value in end.state_dict().items():
            # Adafactor scales the rounding errors of their gradients up.
            if changes.get("optim") == "adafactor" and name.endswith(HAVE_NO_GRADIENT):
                continue
            change = (expected[name] - initial[name]).abs().max().item()
            difference = (value - expected[name]).abs().max().item()
            assert difference < 1e-5, (name, difference, change)
        name = "bert.encoder.layer.0.attention.self.value.weight"
        assert (expected[name] - initial[name]).abs().max() > 1e-4


@pytest.mark.slow
def test_labels_outside_and_on_padding_train_as_in_transformers(tmp_path, windows):
    """Every batch has others, so starts and ends have different divisors in every step."""
    rng, rows = np.random.default_rng(0), windows.select(range(22))
    labels = rng.choice([0, 3, 9, 23, 24, 512, -1], (2, 22))
    padded = np.flatnonzero(np.array(rows["attention_mask"]).sum(axis=1) < 24)
    assert len(padded)
    labels[:, padded] = 23
    for name, values in zip(("start_positions", "end_positions"), labels, strict=True):
        rows = rows.remove_columns(name).add_column(name, values)
    settings = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    settings |= {"num_train_epochs": 2, "train_sampling_strategy": "sequential", "logging_steps": 1}
    hf, ours = trainers(tmp_path, rows, **settings)
    hf.train()
    ours.train()
    for expected, actual in zip(hf.state.log_history[:6], ours.state.log_history[:6], strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert actual["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    ours.save_model(tmp_path / "end")
    import transformers

    end = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "end").state_dict()
    for name, value in hf.model.state_dict().items():
        assert (value - end[name]).abs().max() < 2e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_updates_with_frozen_parameters_equal_those_of_transformers(tmp_path, windows, optim):
    settings = {
        "max_steps": 5,
        "learning_rate": 1e-3 if optim == "adamw_torch" else 1e-2,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "optim": optim,
        "train_sampling_strategy": "sequential",
        "adam_epsilon": 1e-4,
    }
    hf, ours = trainers(tmp_path, windows.select(range(14)), **settings)
    for trainer in (hf, ours):  # the same lines for both models
        model = trainer.model
        for parameter in model.base_model.embeddings.parameters():
            parameter.requires_grad = False
        for name, parameter in model.named_parameters():
            if "layer.0.attention" in name or name == "qa_outputs.bias":
                parameter.requires_grad = False
    start = {name: p.detach().clone() for name, p in hf.model.named_parameters()}
    hf.train()
    ours.train()
    assert sum(p.requires_grad for p in ours.model.parameters()) == 7
    for (name, actual), (other, expected) in zip(
        ours.model.named_parameters(), hf.model.named_parameters(), strict=True
    ):
        assert (name, actual.requires_grad) == (other, expected.requires_grad)
        assert torch.equal(actual.data, start[name]) != actual.requires_grad, name
        difference = (actual.data - expected).abs().max().item()
        assert difference < (1e-5 if actual.requires_grad else 1e-30), name
    for key in ("loss", "grad_norm"):
        logs = [[log[key] for log in t.state.log_history if key in log] for t in (hf, ours)]
        np.testing.assert_allclose(logs[1], logs[0], rtol=1e-4)


class Recorder(TrainerCallback):
    """Records every event with the step, epoch, control and arguments that a callback gets."""

    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if not name.startswith("on_") or name == "on_prediction_step":
            return super().__getattribute__(name)

        def record(args, state, control, **kwargs):
            flags = [flag for flag, value in vars(control).items() if value is True]
            names = sorted(k for k, v in kwargs.items() if v is not None and k != "progress")
            epoch = None if state.epoch is None else round(state.epoch, 4)
            self.events.append((name, state.global_step, epoch, flags, names))

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
        pytest.param(
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
            marks=pytest.mark.slow,
        ),
    ],
    ids=["epochs", "steps", "best"],
)
def test_events_and_log_history_equal_those_of_transformers(tmp_path, windows, settings):
    recorders = Recorder(), Recorder()
    settings = {"num_train_epochs": 2, "learning_rate": 1e-3} | settings
    settings |= {"train_sampling_strategy": "sequential", "adam_epsilon": 1e-4}
    hf, ours = trainers(
        tmp_path,
        windows.select(range(20)),
        windows.select(range(7)),
        [[recorder] for recorder in recorders],
        **settings,
    )
    hf.train()
    ours.train()
    events = [recorder.events for recorder in recorders]
    assert [e[:3] for e in events[1]] == [e[:3] for e in events[0]]
    assert [e[3] for e in events[1]] == [e[3] for e in events[0]]
    for hf_names, our_names in zip(*([e[4] for e in run] for run in events), strict=True):
        assert set(hf_names) - {"logs", "metrics"} <= set(our_names) | {"processing_class"}
    histories = [trainer.state.log_history for trainer in (hf, ours)]
    assert [sorted(logs) for logs in histories[1]] == [sorted(logs) for logs in histories[0]]
    for expected, actual in zip(*histories, strict=True):
        names = {"loss", "learning_rate", "grad_norm", "step", "epoch", "eval_loss", "train_loss"}
        for name in (names | {"total_flos"}) & set(expected):
            assert actual[name] == pytest.approx(expected[name], rel=1e-4), name
    for name in ("global_step", "best_global_step", "max_steps", "num_train_epochs", "total_flos"):
        assert getattr(ours.state, name) == getattr(hf.state, name), name
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("hf", "ours")]
    assert files[1] - {"qa_flax_manifest.json"} == files[0]
