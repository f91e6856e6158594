"""Training on packed rows: the loss and gradient of one window a row, resuming, and messages."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from loud import TESTED, batch_of, derived_families_slow, loud_model
from tiny_families import family_model, family_windows

from qa_flax import (
    Trainer,
    TrainingArguments,
    prepare_train_features,
)
from qa_flax.device.step import make_loss, weights_of

WINDOW = {"max_seq_length": 96, "doc_stride": 16}
PACKED = [name for name, case in TESTED.items() if case.can_pack]


@pytest.fixture(scope="module")
def examples():
    return tiny.repeated_examples(5)


@pytest.fixture(scope="module")
def windows(examples):
    return prepare_train_features(examples, tiny.tokenizer(), **WINDOW)


def arguments(folder, **changes):
    defaults = {
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 3,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": [],
        "packing": True,
    }
    return TrainingArguments(str(folder), **defaults | changes)


# ---- the step ------------------------------------------------------------------------------------


def packed_and_apart(family):
    """Three windows in two packed rows, and the same windows in rows of their own."""
    apart = {name: np.asarray(array) for name, array in batch_of(family).items()}
    lengths = np.array([7, 4, 2])
    real = np.arange(12) < lengths[:, None]
    apart = {name: values * real for name, values in apart.items()}
    starts, ends = np.array([3, 0, 1]), np.array([6, 2, 12])  # the last one is outside
    apart |= {"start_positions": starts, "end_positions": ends, "valid": np.ones(3, bool)}
    packed = {
        name: np.zeros((2, 12), np.int32)
        for name in [*apart, "segment_ids"]
        if name not in ("start_positions", "end_positions", "valid")
    }
    labels = {name: np.full((2, 3), 12, np.int32) for name in ("start_positions", "end_positions")}
    valid = np.zeros((2, 3), bool)
    for window, (row, place, begin) in enumerate(((0, 0, 0), (0, 1, 7), (1, 0, 0))):
        own = slice(begin, begin + lengths[window])
        packed["segment_ids"][row, own] = place + 1
        for name in packed:
            if name != "segment_ids":
                packed[name][row, own] = apart[name][window, : lengths[window]]
        for name, positions in labels.items():
            inside = apart[name][window] < 12
            positions[row, place] = apart[name][window] + begin if inside else 12
        valid[row, place] = True
    return packed | labels | {"valid": valid}, apart


@pytest.mark.parametrize("family", derived_families_slow(PACKED))
def test_packed_rows_have_the_loss_and_gradient_of_separate_rows(family):
    model = loud_model(2, family=family)
    packed, apart = (
        {name: jnp.asarray(x) for name, x in batch.items()} for batch in packed_and_apart(family)
    )
    graphdef = model.graphdef("float32")
    params, fixed = weights_of(model)
    counts = jnp.array([3.0, 3.0, 2.0])
    loss = make_loss(graphdef)
    actual, gradient = jax.value_and_grad(loss)(params, fixed, packed, counts)

    def expected_loss(params):
        total = 0.0
        # Each window in a row without padding, which would be in the softmax.
        for window, length in enumerate((7, 4, 2)):
            row = {
                name: x[window : window + 1, :length] if x.ndim == 2 else x[window : window + 1]
                for name, x in apart.items()
            }
            total += loss(params, fixed, row, counts)
        return total

    expected, expected_gradient = jax.value_and_grad(expected_loss)(params)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    leaves = zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected_gradient))
    for ours, theirs in leaves:
        scale = max(float(jnp.abs(theirs).max()), 1e-3 * largest)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * scale)


# ---- training ------------------------------------------------------------------------------------


def train(folder, windows, model=None, **changes):
    trainer = Trainer(model or tiny.model(), arguments(folder, **changes), train_dataset=windows)
    return trainer, trainer.train()


def test_training_has_as_many_updates_and_less_padding(tmp_path, windows):
    (_, apart), (trainer, packed) = (
        train(tmp_path / str(packing), windows, packing=packing, save_strategy="no")
        for packing in (False, True)
    )
    assert packed.global_step == apart.global_step == 2 * -(-len(windows) // 24)
    assert packed.metrics["train_fill"] > 0.7 > apart.metrics["train_fill"]
    assert packed.metrics["train_loss"] < trainer.state.log_history[0]["loss"]
    assert packed.training_loss == pytest.approx(apart.training_loss, rel=0.2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"shard_params": True, "dataloader_drop_last": True, "data_seed": 5},
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path, windows, changes):
    changes = {"save_steps": 1, "save_strategy": "steps", **changes}
    whole, result = train(tmp_path / "whole", windows, **changes)
    stop = result.global_step // 2 + 1
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for path in (tmp_path / "resumed").glob("checkpoint-*"):
        if int(path.name.partition("-")[2]) > stop:
            shutil.rmtree(path)
    resumed = Trainer(
        tiny.model(), arguments(tmp_path / "resumed", **changes), train_dataset=windows
    )
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.log_history[:-1] == whole.state.log_history[:-1]
    states = (jax.tree.leaves(nnx.state(trainer.model)) for trainer in (resumed, whole))
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    unpacked = Trainer(
        tiny.model(),
        arguments(tmp_path / "resumed", **changes | {"packing": False}),
        train_dataset=windows,
    )
    with pytest.raises(ValueError, match="packing: 'rows' in the checkpoint, None now"):
        unpacked.train(resume_from_checkpoint=True)


def warnings_of(caplog, folder, windows, model=None, **changes):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        _, result = train(folder, windows, model, save_strategy="no", max_steps=1, **changes)
    texts = [record.getMessage() for record in caplog.records]
    return [text for text in texts if "packing" in text], result


def test_what_is_not_packed_says_why(tmp_path, windows, caplog, monkeypatch):
    def warnings(windows=windows, **changes):
        return warnings_of(caplog, tmp_path, windows, **changes)[0]

    assert warnings() == []
    assert warnings(packing=False) == []
    (text,) = warnings(train_sampling_strategy="sequential")
    assert text.endswith("packing has no effect, because train_sampling_strategy is sequential")
    (text,) = warnings(train_sampling_strategy="group_by_length")
    assert "train_sampling_strategy='group_by_length' has no effect with packing" in text
    (text,) = warnings(windows.select(range(8)), per_device_train_batch_size=1)
    assert "8 windows would fill" in text
    assert "fewer than one for each core in each of 1 updates" in text


def test_a_family_that_is_not_packed_gets_windows_of_similar_lengths(tmp_path, caplog):
    model, windows = family_model("longformer"), family_windows(20)
    texts, grouped = warnings_of(caplog, tmp_path, windows, model)
    (text,) = set(texts)
    assert "longformer cannot have several windows in a row: all tokens of a row attend" in text
    assert text.endswith("batches have windows of similar lengths instead")
    _, same = warnings_of(
        caplog,
        tmp_path,
        windows,
        family_model("longformer"),
        packing=None,
        train_sampling_strategy="group_by_length",
    )
    assert grouped.training_loss == same.training_loss
