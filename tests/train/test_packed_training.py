"""Training on packed rows: the loss and gradient of one window a row, resuming, and messages."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from loud import TESTED, assert_same_gradients, batch_of, loud_model, torch_gradients
from tiny_families import family_model, family_windows

from qa_flax import (
    Trainer,
    TrainingArguments,
    prepare_train_features,
)
from qa_flax.data.features import make_windows
from qa_flax.device.step import make_loss, weights_of
from qa_flax.train.train_data import WindowData, packing_obstacle

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


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name == "bert" else [pytest.mark.slow]) for name in PACKED],
)
def test_packed_rows_have_the_loss_and_gradient_of_separate_rows(family):
    model = loud_model(2, family=family)
    packed, apart = (
        {name: jnp.asarray(x) for name, x in batch.items()} for batch in packed_and_apart(family)
    )
    params, fixed = weights_of(model)
    if TESTED[family].sees_padding:  # a packed window ends as before padding: make it invisible
        flat = dict(nnx.to_flat_state(params))
        word = flat["encoder", "embeddings", "word", "embedding"]
        word = word.replace(word[...].at[0].set(0.0))
        params = nnx.from_flat_state(flat | {("encoder", "embeddings", "word", "embedding"): word})
    loss = make_loss(model.graphdef("float32"))
    counts = jnp.array([3.0, 3.0, 2.0])

    def packed_loss(params):
        return loss(params, fixed, packed, counts)

    def separate_loss(params):
        # Each window in a row without padding, which would be in the softmax.
        rows = [
            {
                name: x[window : window + 1, :length] if x.ndim == 2 else x[window : window + 1]
                for name, x in apart.items()
            }
            for window, length in enumerate((7, 4, 2))
        ]
        return sum(loss(params, fixed, row, counts) for row in rows)

    actual, gradient = jax.jit(jax.value_and_grad(packed_loss))(params)
    expected, expected_gradient = jax.jit(jax.value_and_grad(separate_loss))(params)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert_same_gradients(*(torch_gradients(g, family) for g in (gradient, expected_gradient)))


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
        pytest.param(
            {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"shard_params": True, "dataloader_drop_last": True, "data_seed": 5},
            marks=pytest.mark.slow,
        ),
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


def described(windows, obstacle=None, is_of_family=False, **changes):
    """The warning about packing, and what packing changes."""
    args = arguments("unused", **changes)
    data = WindowData(windows, obstacle, is_of_family)
    return data.describe_packing(args), data.packed_as(args)


def windows_of(length=96):
    return make_windows(
        tiny.repeated_examples(5),
        tiny.tokenizer(),
        labels=True,
        disable_tqdm=True,
        max_seq_length=length,
        doc_stride=length // 6,
    )


def test_what_is_not_packed_says_why():
    windows = windows_of()
    assert described(windows) == (None, "rows")
    assert described(windows, packing=False) == (None, None)
    text, how = described(windows, train_sampling_strategy="sequential")
    assert text.endswith("packing has no effect, because train_sampling_strategy is sequential")
    assert how is None
    text, how = described(windows, train_sampling_strategy="group_by_length")
    assert "train_sampling_strategy='group_by_length' has no effect with packing" in text
    assert how == "rows"
    text, how = described(windows.select(np.arange(8)), per_device_train_batch_size=1)
    assert "8 windows would fill" in text
    assert "fewer than one for each core in each of 1 updates" in text
    assert how is None
    whole = windows_of(40)
    text, how = described(whole.select(whole.lengths > 36))
    assert "it would save less than a tenth of the positions" in text
    assert how is None


def test_obstacles_of_the_model_and_the_script():
    args = arguments("unused")
    assert packing_obstacle(args, tiny.model(), False, "float32") is None
    text = packing_obstacle(args, tiny.model(), True, "float32")
    assert text == "compute_loss_func expects one window in each row"
    text = packing_obstacle(args, loud_model(0, family="longformer"), False, "float32")
    assert "longformer cannot have several windows in a row: all tokens of a row attend" in text
    args.packing = None
    assert packing_obstacle(args, loud_model(0, family="longformer"), True, "float32") is None


def test_a_family_that_is_not_packed_gets_windows_of_similar_lengths():
    windows = windows_of()
    text, how = described(windows, "of the family", is_of_family=True)
    assert text.endswith("of the family; batches have windows of similar lengths instead")
    assert how == "group_by_length"
    text, how = described(
        windows, "of the family", is_of_family=True, train_sampling_strategy="sequential"
    )
    assert text.endswith("because of the family")
    assert how is None
    text, how = described(windows, "compute_loss_func")
    assert text.endswith("because compute_loss_func")
    assert how is None


@pytest.mark.slow
def test_longformer_trains_on_windows_of_similar_lengths(tmp_path):
    windows = family_windows(20)
    losses = [
        train(tmp_path, windows, family_model("longformer"), save_strategy="no", **changes)[1]
        for changes in (
            {"packing": True},
            {"packing": None, "train_sampling_strategy": "group_by_length"},
        )
    ]
    assert losses[0].training_loss == losses[1].training_loss
