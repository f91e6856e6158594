"""At every event, every way to read the model gives the weights of the latest update."""

import copy
import itertools
import logging

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from tiny_trainers import (
    UPDATES,
    arguments,
    base_model,
    model_with_adapters,
    values,
    watched_trainer,
    watched_windows,
)
from transformers import TrainerCallback

from qa_flax import LoraConfig, Trainer, get_peft_model
from qa_flax.device import parallel
from qa_flax.device.step import weights_of
from qa_flax.train import live_state

EVENTS = (
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_log",
    "on_prediction_step",
    "on_evaluate",
    "on_save",
    "on_epoch_end",
    "on_train_end",
)

KINDS = {
    "replicated": (base_model, {}),
    "sharded": (base_model, {"shard_params": True}),
    "lora": (model_with_adapters, {}),
}


@pytest.fixture(scope="module")
def windows():
    return watched_windows()


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[p], other[p]) for p in one)


@pytest.fixture(scope="module")
def weights_after(tmp_path_factory, windows):
    """`weights_after(kind)[n]`: the final weights of a run of n updates."""
    cache = {}

    def run(kind):
        if kind not in cache:
            make, changes = KINDS[kind]
            cache[kind] = [values(make())]
            for updates in range(1, UPDATES + 1):
                folder = tmp_path_factory.mktemp(kind)
                changes = changes | {"max_steps": updates, "save_strategy": "no"}
                trainer = watched_trainer(folder, make(), windows, **changes, eval_strategy="no")
                trainer.train()
                cache[kind].append(values(trainer.model))
            for earlier, later in zip(cache[kind], cache[kind][1:], strict=False):
                assert not same(earlier, later)
        return cache[kind]

    return run


class Reader(TrainerCallback):
    """Calls `read(event, finished updates, kwargs)` at every event that `read` does not cause."""

    def __init__(self, read):
        self._read, self._is_reading = read, False

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def on_event(args, state, control, **kwargs):
            if name not in EVENTS or self._is_reading:
                return
            self._is_reading = True
            # transformers counts an update one event later, after `on_optimizer_step`.
            self._read(name, state.global_step + (name == "on_optimizer_step"), kwargs)
            self._is_reading = False

        return on_event


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "replicated")) for k in KINDS]
)
def test_every_way_to_read_gives_the_latest_weights_at_every_event(
    tmp_path, windows, weights_after, kind
):
    make, changes = KINDS[kind]
    model, expected = make(), weights_after(kind)
    variable = model.head.outputs.kernel  # a script may have read it before the training
    path = ("head", "outputs", "kernel")
    counts = dict.fromkeys(EVENTS, 0)
    few = windows.select(range(3))
    logits, reference = [], make()  # the logits after each update, from a model not in training
    reference_trainer = Trainer(reference, arguments(tmp_path))
    for weights in expected:
        nnx.update(reference, nnx.from_flat_state({p: nnx.Param(a) for p, a in weights.items()}))
        logits.append(reference_trainer.predict(few).predictions)

    def read(event, updates, kwargs):
        counts[event] += 1
        weights, where = expected[updates], f"{event} after {updates} updates"
        array = np.asarray(variable[...])
        assert np.array_equal(array, weights[path]), f"{where}: a variable read before"
        assert same(values(kwargs["model"]), weights), f"{where}: the callback's model"
        assert same(values(model), weights), f"{where}: the script's model"
        assert same(values(trainer.model), weights), f"{where}: trainer.model"
        assert same(values(copy.deepcopy(model)), weights), f"{where}: a copy"
        for save in (model.save_pretrained, trainer.save_model):
            save(tmp_path / "saved")
            for file in (tmp_path / "saved").glob("*.safetensors"):
                (name,) = [n for n in load_file(file) if n.endswith("qa_outputs.weight")]
                array = load_file(file)[name]
                assert np.array_equal(array, weights[path].T), f"{where}: {save.__qualname__}"
        predictions = trainer.predict(few).predictions
        for actual, desired in zip(predictions, logits[updates], strict=True):
            np.testing.assert_allclose(actual, desired, rtol=0, atol=2e-5, err_msg=where)

    trainer = watched_trainer(tmp_path, model, windows, [Reader(read)], **changes)
    trainer.train()
    assert all(counts.values()), counts
    assert same(values(model), expected[UPDATES])


@pytest.mark.slow
def test_reading_after_one_update_does_not_change_the_next(tmp_path, windows, weights_after):
    """The model is read in several ways, after the first update only."""

    def read(event, updates, kwargs):
        if event == "on_step_end" and updates == 1:
            assert same(values(kwargs["model"]), weights_after("replicated")[updates])
            jax.tree.map(np.asarray, weights_of(model))
            nnx.split(model)
            model(np.ones((1, 4), np.int32))

    model = base_model()
    watched_trainer(tmp_path, model, windows, [Reader(read)]).train()
    assert same(values(model), weights_after("replicated")[UPDATES])


def test_a_function_that_jax_traces_can_read_the_model(tmp_path, windows, weights_after):
    biases = {}

    def read(event, updates, kwargs):
        if event == "on_step_end":
            bias = jax.jit(lambda: kwargs["model"].head.outputs.bias[...] * 1)
            biases[updates] = np.asarray(bias())

    watched_trainer(tmp_path, base_model(), windows, [Reader(read)]).train()
    for updates, bias in biases.items():
        expected = weights_after("replicated")[updates]["head", "outputs", "bias"]
        np.testing.assert_array_equal(bias, expected)
    assert len(biases) == UPDATES


def test_no_weights_are_copied_unless_the_model_is_read(tmp_path, windows, monkeypatch):
    copies = []
    for name in ("copy_first_replica", "gather_state"):
        copy_weights = getattr(parallel, name)
        monkeypatch.setattr(
            parallel,
            name,
            lambda *a, copy_weights=copy_weights, name=name: (
                copies.append(name) or copy_weights(*a)
            ),
        )
    copies_after = {}

    class Count(TrainerCallback):
        def on_train_begin(self, args, state, control, model, **kwargs):
            assert model.config.hidden_size == 32  # reads no weights

        def on_step_end(self, args, state, control, **kwargs):
            copies_after[state.global_step] = list(copies)

    changes = {"save_strategy": "no", "eval_strategy": "no"}
    watched_trainer(tmp_path, base_model(), windows, [Count], **changes).train()
    assert copies_after == {1: [], 2: []}
    assert copies == ["gather_state"]  # into the model, at the end of the training


def test_an_implicit_transfer_to_the_cores_is_an_error(tmp_path, windows, monkeypatch):
    """The transfer guard stops the second step if its arrays are still on the host."""
    monkeypatch.setattr(parallel, "put", lambda tree: tree)
    trainer = watched_trainer(
        tmp_path, base_model(), windows, eval_strategy="no", save_strategy="no"
    )
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        trainer.train()


# ---- writing the model in a callback -------------------------------------------------------------

# Each writes 0.5 into the model; `kernel` is a variable that was read before the training.
WRITERS = {
    "by index": lambda model, kernel: model.head.outputs.kernel.__setitem__(
        ..., kernel[...] * 0 + 0.5
    ),
    "an old variable": lambda model, kernel: kernel.set_value(np.full((32, 2), 0.5, np.float32)),
    "an old variable by index": lambda model, kernel: kernel.__setitem__(
        ..., np.full((32, 2), 0.5)
    ),
    "nnx.update": lambda model, kernel: nnx.update(
        model, jax.tree.map(lambda a: a * 0 + 0.5, nnx.state(model, nnx.Param))
    ),
}


# The other pairs are slow tests.
DEFAULT = {
    ("by index", "replicated"),
    ("an old variable", "replicated"),
    ("an old variable by index", "lora"),
}
WRITING = [
    pytest.param(*pair, marks=[] if pair in DEFAULT else [pytest.mark.slow])
    for pair in itertools.product(WRITERS, KINDS)
]


@pytest.mark.parametrize(("writer", "kind"), WRITING)
def test_training_continues_from_the_weights_a_callback_writes(tmp_path, windows, kind, writer):
    """The result equals that of a run that starts with the written weights (SGD has no state)."""
    make, changes = KINDS[kind]
    changes = changes | {
        "optim": "sgd",
        "gradient_accumulation_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
    }
    rows = windows.select(range(8))  # one batch, always the same
    losses, start = {}, {}

    def read(event, updates, kwargs):
        if event == "on_step_end" and updates == 1:
            WRITERS[writer](kwargs["model"], kernel)
            start.update(values(model))
            losses["written"] = trainer.evaluate(rows)["eval_loss"]

    model = without_dropout(make)
    kernel = model.head.outputs.kernel
    trainer = watched_trainer(tmp_path, model, rows, [Reader(read)], max_steps=2, **changes)
    trainer.train()
    assert (start["head", "outputs", "kernel"] == 0.5).all()

    fresh = without_dropout(make)
    nnx.update(fresh, nnx.from_flat_state({p: nnx.Param(a) for p, a in start.items()}))
    fresh_trainer = watched_trainer(tmp_path, fresh, rows, max_steps=1, **changes)
    assert fresh_trainer.evaluate(rows)["eval_loss"] == losses["written"]
    fresh_trainer.train()
    for path, array in values(fresh).items():
        np.testing.assert_allclose(values(model)[path], array, rtol=0, atol=1e-6, err_msg=str(path))
    assert not same(values(model), start)


def without_dropout(make):
    model = make()
    model.config.hidden_dropout_prob = 0.0
    if model.lora is None:
        return model.with_dtype("float32")
    return get_peft_model(without_dropout(base_model), LoraConfig(r=2, target_modules="all-linear"))


@pytest.mark.parametrize("kind", ["replicated", pytest.param("sharded", marks=pytest.mark.slow)])
def test_invalid_writes_are_refused_and_the_model_is_unchanged(
    tmp_path, windows, weights_after, kind
):
    make, changes = KINDS[kind]

    def read(event, updates, kwargs):
        if event == "on_step_end" and updates == 2:
            kwargs["model"].head.outputs.bias.set_value(np.zeros(3, np.float32))

    model = make()
    trainer = watched_trainer(tmp_path, model, windows, [Reader(read)], **changes)
    message = (
        r"a callback wrote an array of shape \(3,\) .* head.outputs.bias; the shape must be \(2,\)"
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert same(values(model), weights_after(kind)[2])

    def replace(event, updates, kwargs):
        if event == "on_step_end" and updates == 1:
            kwargs["model"].head = base_model().head

    trainer = watched_trainer(tmp_path, make(), windows, [Reader(replace)], **changes)
    with pytest.raises(ValueError, match="replaced modules or variables of the model"):
        trainer.train()


# ---- the end of a training -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("replicated", KeyboardInterrupt),
        pytest.param("sharded", RuntimeError, marks=pytest.mark.slow),
        pytest.param("replicated", RuntimeError, marks=pytest.mark.slow),
        pytest.param("sharded", KeyboardInterrupt, marks=pytest.mark.slow),
        pytest.param("lora", RuntimeError, marks=pytest.mark.slow),
    ],
)
def test_after_an_error_the_model_has_the_latest_weights(
    tmp_path, windows, weights_after, kind, error
):
    make, changes = KINDS[kind]

    def read(event, updates, kwargs):
        if event == "on_step_end" and updates == 2:
            raise error

    model = make()
    trainer = watched_trainer(tmp_path, model, windows, [Reader(read)], **changes)
    with pytest.raises(error):
        trainer.train()
    assert same(values(model), weights_after(kind)[2])
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.train()  # the model can be trained again


def test_reading_lost_weights_is_an_error(tmp_path, windows, monkeypatch):
    """The step fails after the state was donated to it, so no weights are left."""
    model = base_model()
    kernel = model.head.outputs.kernel
    trainer = watched_trainer(tmp_path, model, windows, eval_strategy="no", save_strategy="no")

    def fail(live, state):
        jax.tree.map(lambda array: array.delete(), live._state)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(live_state.LiveState, "replace", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    readers = [lambda: model.save_pretrained(tmp_path), trainer.evaluate, lambda: values(model)]
    for read in (*readers, lambda: np.asarray(kernel[...])):
        with pytest.raises(RuntimeError, match="already released them; load the latest checkpoint"):
            read()


def test_a_model_cannot_be_trained_twice_at_the_same_time(tmp_path, windows):
    def read(event, updates, kwargs):
        if event == "on_step_end" and updates == 1:
            with pytest.raises(ValueError, match="is being trained already"):
                watched_trainer(tmp_path / "inner", model, windows).train()
            with pytest.raises(ValueError, match="cannot be replaced while the model is trained"):
                trainer.model = base_model()

    model = base_model()
    trainer = watched_trainer(tmp_path, model, windows, [Reader(read)])
    trainer.train()
    trainer.model = other = base_model()
    assert trainer.callback_handler.model is trainer.model is other


def test_reading_logs_nothing(tmp_path, windows, caplog):
    def read(event, updates, kwargs):
        values(kwargs["model"])

    with caplog.at_level(logging.WARNING):
        trainer = watched_trainer(tmp_path, base_model(), windows, [Reader(read)])
        trainer.warns_of_leakage = False  # it is evaluated on its training set
        trainer.train()
    assert not caplog.records
