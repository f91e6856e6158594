"""Whoever reads the model, at whatever event, sees the weights of the last finished update."""

import copy
import itertools
import logging

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import load_file
from tiny_trainers import arguments
from transformers import TrainerCallback

from qa_flax import LoraConfig, Trainer, get_peft_model, prepare_train_features
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
UPDATES = 2
SETTINGS = {
    "max_steps": UPDATES,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",  # of any number of updates the first are the same
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
}


def base_model():
    return tiny.model(initializer_range=0.05, hidden_dropout_prob=0.1)


def model_with_adapters():
    config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1)
    return get_peft_model(base_model(), config)


KINDS = {
    "replicated": (base_model, {}),
    "sharded": (base_model, {"shard_params": True}),
    "lora": (model_with_adapters, {}),
}


@pytest.fixture(scope="module")
def windows():
    lengths = {"max_seq_length": 64, "doc_stride": 16, "disable_tqdm": True}
    return prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **lengths)


def trainer_of(folder, model, windows, callbacks=None, **changes):
    return Trainer(
        model,
        arguments(folder, **(SETTINGS | changes)),
        train_dataset=windows,
        eval_dataset=windows.select(range(5)),
        callbacks=callbacks,
    )


def values(model):
    """Every number that a checkpoint holds, by its path."""
    state = nnx.to_flat_state(nnx.state(model))
    return {path: np.array(variable[...]) for path, variable in state}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[p], other[p]) for p in one)


@pytest.fixture(scope="module")
def truth(tmp_path_factory, windows):
    """`truth(kind)[n]`: the weights after n updates, of a run that ended there."""
    cache = {}

    def of(kind):
        if kind not in cache:
            make, changes = KINDS[kind]
            cache[kind] = [values(make())]
            for updates in range(1, UPDATES + 1):
                folder = tmp_path_factory.mktemp(kind)
                changes = changes | {"max_steps": updates, "save_strategy": "no"}
                trainer = trainer_of(folder, make(), windows, **changes, eval_strategy="no")
                trainer.train()
                cache[kind].append(values(trainer.model))
            for earlier, later in zip(cache[kind], cache[kind][1:], strict=False):
                assert not same(earlier, later)
        return cache[kind]

    return of


class Reader(TrainerCallback):
    """At every event calls `read(event, updates finished, kwargs)`, but not from within itself."""

    def __init__(self, read):
        self._read, self._is_reading = read, False

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def called(args, state, control, **kwargs):
            if name not in EVENTS or self._is_reading:
                return
            self._is_reading = True
            # transformers counts an update when the optimizer has taken it, one event later.
            self._read(name, state.global_step + (name == "on_optimizer_step"), kwargs)
            self._is_reading = False

        return called


@pytest.mark.parametrize("kind", KINDS)
def test_at_every_event_every_reader_sees_the_last_update(tmp_path, windows, truth, kind):
    make, changes = KINDS[kind]
    model, wanted = make(), truth(kind)
    held = model.head.outputs.kernel  # as a script may have kept it from before
    path = ("head", "outputs", "kernel")
    seen = dict.fromkeys(EVENTS, 0)
    few = windows.select(range(3))
    logits, alone = [], make()  # after each update, as a model of its own gives them
    apart = Trainer(alone, arguments(tmp_path))
    for weights in wanted:
        nnx.update(alone, nnx.from_flat_state({p: nnx.Param(a) for p, a in weights.items()}))
        logits.append(apart.predict(few).predictions)

    def read(event, updates, kwargs):
        seen[event] += 1
        right, where = wanted[updates], f"{event} after {updates} updates"
        assert np.array_equal(np.asarray(held[...]), right[path]), f"{where}: a kept variable"
        assert same(values(kwargs["model"]), right), f"{where}: the callback's model"
        assert same(values(model), right), f"{where}: the script's own variable"
        assert same(values(trainer.model), right), f"{where}: trainer.model"
        assert same(values(copy.deepcopy(model)), right), f"{where}: a copy"
        for save in (model.save_pretrained, trainer.save_model):
            save(tmp_path / "saved")
            for file in (tmp_path / "saved").glob("*.safetensors"):
                (name,) = [n for n in load_file(file) if n.endswith("qa_outputs.weight")]
                array = load_file(file)[name]
                assert np.array_equal(array, right[path].T), f"{where}: {save.__qualname__}"
        found = trainer.predict(few).predictions
        for one, other in zip(found, logits[updates], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5, err_msg=where)

    trainer = trainer_of(tmp_path, model, windows, [Reader(read)], **changes)
    trainer.train()
    assert all(seen.values()), seen
    assert same(values(model), wanted[UPDATES])


def test_reading_at_one_event_does_not_spoil_the_next(tmp_path, windows, truth):
    """Read after the first update only, by each way to read."""

    def read(event, updates, kwargs):
        if event == "on_step_end" and updates == 1:
            assert same(values(kwargs["model"]), truth("replicated")[updates])
            jax.tree.map(np.asarray, weights_of(model))
            nnx.split(model)
            model(np.ones((1, 4), np.int32))

    model = base_model()
    trainer_of(tmp_path, model, windows, [Reader(read)]).train()
    assert same(values(model), truth("replicated")[UPDATES])


def test_a_model_is_read_while_jax_traces_a_function_of_it(tmp_path, windows, truth):
    found = {}

    def read(event, updates, kwargs):
        if event == "on_step_end":
            bias = jax.jit(lambda: kwargs["model"].head.outputs.bias[...] * 1)
            found[updates] = np.asarray(bias())

    trainer_of(tmp_path, base_model(), windows, [Reader(read)]).train()
    for updates, bias in found.items():
        np.testing.assert_array_equal(bias, truth("replicated")[updates]["head", "outputs", "bias"])
    assert len(found) == UPDATES


def test_nothing_is_copied_unless_somebody_reads(tmp_path, windows, monkeypatch):
    copies = []
    for name in ("copy_first_replica", "gather_state"):
        real = getattr(parallel, name)
        monkeypatch.setattr(
            parallel, name, lambda *a, real=real, name=name: copies.append(name) or real(*a)
        )
    within = {}

    class Count(TrainerCallback):
        def on_train_begin(self, args, state, control, model, **kwargs):
            assert model.config.hidden_size == 32  # what is no weight

        def on_step_end(self, args, state, control, **kwargs):
            within[state.global_step] = list(copies)

    changes = {"save_strategy": "no", "eval_strategy": "no"}
    trainer_of(tmp_path, base_model(), windows, [Count], **changes).train()
    assert within == {1: [], 2: []}
    assert copies == ["gather_state"]  # at the end, into the model


def test_a_step_takes_nothing_from_the_host_unasked(tmp_path, windows, monkeypatch):
    """The guard is real: arrays that were not put on the cores first stop the second step."""
    monkeypatch.setattr(parallel, "put", lambda tree: tree)
    trainer = trainer_of(tmp_path, base_model(), windows, eval_strategy="no", save_strategy="no")
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        trainer.train()


# ---- writing -------------------------------------------------------------------------------------

WRITTEN = {
    "by index": lambda model, held: model.head.outputs.kernel.__setitem__(..., held[...] * 0 + 0.5),
    "a kept variable": lambda model, held: held.set_value(np.full((32, 2), 0.5, np.float32)),
    "a kept variable by index": lambda model, held: held.__setitem__(..., np.full((32, 2), 0.5)),
    "nnx.update": lambda model, held: nnx.update(
        model, jax.tree.map(lambda a: a * 0 + 0.5, nnx.state(model, nnx.Param))
    ),
}


# Each way and each kind once; the others, which pair them otherwise, are slow.
DEFAULT = {
    ("by index", "replicated"),
    ("a kept variable", "replicated"),
    ("a kept variable by index", "lora"),
    ("nnx.update", "sharded"),
}
WRITING = [
    pytest.param(*pair, marks=[] if pair in DEFAULT else [pytest.mark.slow])
    for pair in itertools.product(WRITTEN, KINDS)
]


@pytest.mark.parametrize(("way", "kind"), WRITING)
def test_what_a_callback_writes_is_trained_on(tmp_path, windows, kind, way):
    """As a run that begins with what was written: SGD keeps nothing of the update before."""
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
            WRITTEN[way](kwargs["model"], held)
            start.update(values(model))
            losses["written"] = trainer.evaluate(rows)["eval_loss"]

    model = without_dropout(make)
    held = model.head.outputs.kernel
    trainer = trainer_of(tmp_path, model, rows, [Reader(read)], max_steps=2, **changes)
    trainer.train()
    assert (start["head", "outputs", "kernel"] == 0.5).all()

    fresh = without_dropout(make)
    nnx.update(fresh, nnx.from_flat_state({p: nnx.Param(a) for p, a in start.items()}))
    again = trainer_of(tmp_path, fresh, rows, max_steps=1, **changes)
    assert again.evaluate(rows)["eval_loss"] == losses["written"]
    again.train()
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
def test_what_does_not_fit_is_refused_and_the_model_stays(tmp_path, windows, truth, kind):
    make, changes = KINDS[kind]

    def read(event, updates, kwargs):
        if event == "on_step_end" and updates == 2:
            kwargs["model"].head.outputs.bias.set_value(np.zeros(3, np.float32))

    model = make()
    trainer = trainer_of(tmp_path, model, windows, [Reader(read)], **changes)
    message = r"a callback wrote an array of shape \(3,\) .* head.outputs.bias; it must be \(2,\)"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert same(values(model), truth(kind)[2])

    def replace(event, updates, kwargs):
        if event == "on_step_end" and updates == 1:
            kwargs["model"].head = base_model().head

    trainer = trainer_of(tmp_path, make(), windows, [Reader(replace)], **changes)
    with pytest.raises(ValueError, match="put other modules or variables into the model"):
        trainer.train()


# ---- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("replicated", KeyboardInterrupt),
        ("sharded", RuntimeError),
        pytest.param("replicated", RuntimeError, marks=pytest.mark.slow),
        pytest.param("sharded", KeyboardInterrupt, marks=pytest.mark.slow),
        pytest.param("lora", RuntimeError, marks=pytest.mark.slow),
    ],
)
def test_after_an_error_the_model_has_what_was_learnt(tmp_path, windows, truth, kind, error):
    make, changes = KINDS[kind]

    def read(event, updates, kwargs):
        if event == "on_step_end" and updates == 2:
            raise error

    model = make()
    trainer = trainer_of(tmp_path, model, windows, [Reader(read)], **changes)
    with pytest.raises(error):
        trainer.train()
    assert same(values(model), truth(kind)[2])
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.train()  # and can be trained again


def test_a_model_whose_weights_are_lost_says_so(tmp_path, windows, monkeypatch):
    """A step that fails after it has taken the state: nothing is left to read."""
    model = base_model()
    held = model.head.outputs.kernel
    trainer = trainer_of(tmp_path, model, windows, eval_strategy="no", save_strategy="no")

    def fail(live, state):
        jax.tree.map(lambda array: array.delete(), live._state)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(live_state.LiveState, "replace", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    readers = [lambda: model.save_pretrained(tmp_path), trainer.evaluate, lambda: values(model)]
    for read in (*readers, lambda: np.asarray(held[...])):
        with pytest.raises(RuntimeError, match="took them with it; load the last checkpoint"):
            read()


def test_one_training_at_a_time(tmp_path, windows):
    def read(event, updates, kwargs):
        if event == "on_step_end" and updates == 1:
            with pytest.raises(ValueError, match="is being trained already"):
                trainer_of(tmp_path / "inner", model, windows).train()
            with pytest.raises(ValueError, match="cannot be replaced while the model is trained"):
                trainer.model = base_model()

    model = base_model()
    trainer = trainer_of(tmp_path, model, windows, [Reader(read)])
    trainer.train()
    trainer.model = other = base_model()
    assert trainer.callback_handler.model is trainer.model is other


def test_reading_costs_no_log_line(tmp_path, windows, caplog):
    def read(event, updates, kwargs):
        values(kwargs["model"])

    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, base_model(), windows, [Reader(read)]).train()
    assert not caplog.records
