"""`ema_decay`: the averaged weights are evaluated and saved, and training uses the plain ones."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny_trainers import (
    base_model,
    model_with_adapters,
    values,
    watched_trainer,
    watched_windows,
)
from transformers import TrainerCallback

from qa_flax.device.memory import abstract_state, memory_plan
from qa_flax.device.optim import make_optimizer
from qa_flax.device.step import weights_of
from qa_flax.models.sharding import bytes_of
from qa_flax.train import checkpoints

# The compiled step is that of a test in contract/test_resume.py.
UPDATES, DECAY = 4, 0.3
# The warm-up (1 + t) / (10 + t) is below the decay in the first two of the four updates.
FACTORS = [2 / 11, 3 / 12, DECAY, DECAY]
SETTINGS = {"max_steps": UPDATES, "eval_steps": 1, "save_steps": 1}


KINDS = {
    "replicated": (base_model, {}),
    "sharded": (base_model, {"shard_params": True}),
    "lora": (model_with_adapters, {}),
    "partly frozen": (lambda: frozen(base_model()), {}),
}


def frozen(model):
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad = False
    return model


@pytest.fixture(scope="module")
def windows():
    return watched_windows()


def trainer_of(folder, model, windows, callbacks=None, **changes):
    return watched_trainer(folder, model, windows, callbacks, **(SETTINGS | changes))


class Record(TrainerCallback):
    """Records the model's variables at the start and after each update."""

    def __init__(self):
        self.values = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.values.append(values(model))

    def on_step_end(self, args, state, control, model, **kwargs):
        self.values.append(values(model))


def logged(trainer, *names):
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [[entry[name] for name in names] for entry in entries]


def averages_of(plain):
    """The averages after each update, computed in float64 from the plain weights."""
    averages = [{path: array.astype(np.float64) for path, array in plain[0].items()}]
    for factor, weights in zip(FACTORS, plain[1:], strict=True):
        last = averages[-1]
        averages.append({p: factor * last[p] + (1 - factor) * weights[p] for p in weights})
    return averages


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(actual[path], array, rtol=0, atol=1e-6, err_msg=str(path))


def saved_params(folder, kind, name="params"):
    """The plain weights, or the average, in the training state of each checkpoint, by path."""
    params = weights_of(KINDS[kind][0]()).params
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    saved = [saved_state(folder / f"checkpoint-{update}") for update in range(1, UPDATES + 1)]
    names = {f".{name}{jax.tree_util.keystr(p)}": tuple(k.key for k in p[:-1]) for p in paths}
    return [{path: state[name] for name, path in names.items()} for state in saved]


def saved_state(folder):
    """The arrays of a checkpoint's training state, by name."""
    with checkpoints._checkpointer() as checkpointer:
        return checkpointer.restore((folder / "train_state").absolute())


KIND_PARAMS = [pytest.param(k, marks=[pytest.mark.slow] * (k != "replicated")) for k in KINDS]


@pytest.mark.parametrize("kind", KIND_PARAMS)
def test_the_average_is_what_is_read_evaluated_and_saved(tmp_path, windows, kind):
    """The averages are computed from the plain weights in the checkpoints."""
    make, changes = KINDS[kind]
    model, record = make(), Record()
    trainer = trainer_of(tmp_path, model, windows, [record], **changes, ema_decay=DECAY)
    trainer.train()

    initial, plain = values(make()), saved_params(tmp_path, kind)
    expected = averages_of([initial] + [initial | weights for weights in plain])
    assert max(abs(array - expected[-1][path]).max() for path, array in plain[-1].items()) > 1e-3
    for actual, average in zip(record.values, expected, strict=True):
        assert_close(actual, average)
    assert_close(values(model), expected[-1])
    trainer.create_model_card()
    assert f"- ema_decay: {DECAY}\n" in (tmp_path / "README.md").read_text()
    for saved, average in zip(saved_params(tmp_path, kind, "average"), expected[1:], strict=True):
        assert_close(saved, {path: average[path] for path in saved})

    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    fresh_trainer = trainer_of(tmp_path / "fresh", make(), windows)
    for update, loss in enumerate(losses, 1):
        state = {p: nnx.Param(a.astype(np.float32)) for p, a in expected[update].items()}
        nnx.update(fresh_trainer.model, nnx.from_flat_state(state))
        np.testing.assert_allclose(fresh_trainer.evaluate()["eval_loss"], loss, atol=2e-6)
        fresh_trainer.save_model(tmp_path / "fresh")
        (file,) = (tmp_path / "fresh").glob("*.safetensors")
        assert_close(load_file(tmp_path / f"checkpoint-{update}" / file.name), load_file(file))
    assert len(losses) == UPDATES


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_the_same_with_and_without_an_average(tmp_path, windows, kind):
    make, changes = KINDS[kind]
    record, trainers = Record(), []
    for decay, callbacks in ((0.0, [record]), (DECAY, [])):
        folder = tmp_path / str(decay)
        trainers.append(trainer_of(folder, make(), windows, callbacks, **changes, ema_decay=decay))
        trainers[-1].train()
    one, other = (logged(trainer, "loss", "grad_norm") for trainer in trainers)
    assert one == other
    saved = saved_params(tmp_path / str(DECAY), kind)
    for weights, after in zip(saved, record.values[1:], strict=True):
        for path, array in weights.items():
            np.testing.assert_array_equal(array, after[path], err_msg=str(path))


def test_a_value_that_a_callback_writes_replaces_the_weights_and_their_average(tmp_path, windows):
    """With a learning rate of zero the written value stays, if it is in both."""

    class Write(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 2:
                model.head.outputs.kernel[...] = np.full((32, 2), 0.5, np.float32)

    changes = {"learning_rate": 0.0, "save_strategy": "no", "eval_strategy": "no"}
    model, record = base_model(), Record()
    trainer_of(tmp_path, model, windows, [Write, record], ema_decay=DECAY, **changes).train()
    path = "head", "outputs", "kernel"
    assert abs(record.values[1][path] - 0.5).min() > 0.1
    for after in (*record.values[2:], values(model)):
        np.testing.assert_allclose(after[path], 0.5, rtol=0, atol=1e-6)


def test_an_average_takes_as_much_memory_as_the_parameters():
    model, optimizer = base_model(), make_optimizer()
    plain = abstract_state(model, optimizer, is_sharded=False)
    averaged = abstract_state(model, optimizer, is_sharded=False, is_averaged=True)
    assert bytes_of(averaged) - bytes_of(plain) == bytes_of(weights_of(model).params)
    step = jax.jit(lambda state: state)
    plans = [memory_plan(s, step.lower(s).compile()) for s in (plain, averaged)]
    assert plans[1].parameters - plans[0].parameters == bytes_of(weights_of(model).params)
    assert plans[1].optimizer == plans[0].optimizer


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.slow
def test_after_an_error_the_model_has_the_average(tmp_path, windows, error):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise error

    plain, model = Record(), base_model()
    without = {"save_strategy": "no", "eval_strategy": "no"}
    trainer_of(tmp_path, base_model(), windows, [plain], **without).train()
    trainer = trainer_of(tmp_path, model, windows, [Stop], ema_decay=DECAY, **without)
    with pytest.raises(error):
        trainer.train()
    assert_close(values(model), averages_of(plain.values)[2])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, windows):
    """The folders of two runs, without and with an average."""
    folders = {decay: tmp_path_factory.mktemp("run") for decay in (0.0, DECAY)}
    for decay, folder in folders.items():
        trainer_of(folder, base_model(), windows, ema_decay=decay, max_steps=2).train()
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [(0.0, DECAY), (DECAY, 0.0), (DECAY, 0.9)])
def test_resuming_with_another_decay_needs_consent(tmp_path, windows, runs, caplog, before, now):
    checkpoint = Path(runs[before]) / "checkpoint-2"
    trainer = trainer_of(tmp_path, base_model(), windows, ema_decay=now)
    message = f"ema_decay: {before or None} in the checkpoint, {now or None} now\n.*accept_changes"
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint, accept_changes=True)
    assert trainer.state.global_step == UPDATES
    texts = [record.getMessage() for record in caplog.records if "ema_decay" in record.getMessage()]
    assert len(texts) == (not (before and now))

    plain = Record()
    trainer_of(tmp_path / "plain", base_model(), windows, [plain]).train()
    if not now:
        assert_close(values(trainer.model), plain.values[-1])
        return
    # An average that the checkpoint does not have starts with its weights.
    expected = (averages_of(plain.values) if before else plain.values)[2]
    for t in (3, 4):
        factor = min(now, (1 + t) / (10 + t))
        expected = {p: factor * expected[p] + (1 - factor) * plain.values[t][p] for p in expected}
    assert_close(values(trainer.model), expected)


@pytest.mark.slow
def test_a_second_training_starts_from_the_average(tmp_path, windows):
    without = {"save_strategy": "no", "eval_strategy": "no"}
    model, record = base_model(), Record()
    trainer = trainer_of(tmp_path, model, windows, [record], ema_decay=0.9, **without)
    trainer.train()
    end = values(model)
    trainer.args.ema_decay = 0.0  # acts at the next train()
    trainer.train()
    for path, array in record.values[UPDATES + 1].items():
        np.testing.assert_array_equal(array, end[path])
    fresh = base_model()
    nnx.update(fresh, nnx.from_flat_state({p: nnx.Param(a) for p, a in end.items()}))
    trainer_of(tmp_path, fresh, windows, **without).train()
    assert_close(values(model), values(fresh))


@pytest.mark.slow
def test_without_an_average_the_state_has_no_further_arrays(tmp_path, windows):
    changes = {"max_steps": 1, "eval_strategy": "no"}
    trainer_of(tmp_path, base_model(), windows, **changes).train()
    assert not [name for name in saved_state(tmp_path / "checkpoint-1") if "average" in name]
