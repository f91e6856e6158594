"""`requires_grad = False` and `freeze_layers`: no gradient, no optimizer state, no change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from cases import CASES
from flax import nnx
from tiny_families import family_model, family_windows
from tiny_trainers import arguments
from transformers import TrainerCallback

from qa_flax import LoraConfig, Trainer, TrainingArguments, get_peft_model, prepare_train_features
from qa_flax.device import parallel
from qa_flax.device.memory import abstract_state
from qa_flax.device.step import TrainState, make_train_step, weights_of
from qa_flax.models.depth import depth_of
from qa_flax.train.checkpoints import ResumeError
from qa_flax.train.model_arguments import apply_model_arguments
from qa_flax.train.plan import optimizer_of

SETTINGS = {"max_steps": 3, "learning_rate": 1e-2, "weight_decay": 0.1, "logging_steps": 1}


@pytest.fixture(scope="module")
def windows():
    lengths = {"max_seq_length": 64, "doc_stride": 16, "disable_tqdm": True}
    return prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **lengths)


def frozen_model(**changes):
    """A model whose embeddings, first layer and one bias of the head are frozen."""
    model = tiny.model(**{"num_hidden_layers": 2, "initializer_range": 0.05, **changes})
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad = False
    model.bert.encoder.layer[0].requires_grad_(False)
    model.qa_outputs.bias.requires_grad_(False)
    return model


def values(model):
    return {name: np.array(p) for name, p in model.named_parameters()}


def assert_only_trained_changed(model, before):
    for name, parameter in model.named_parameters():
        changed = not np.array_equal(np.asarray(parameter), before[name])
        # The softmax does not change if all keys get the same addend.
        assert changed == parameter.requires_grad or name.endswith("key.bias"), name
        assert parameter.requires_grad or not changed, name


def trainer_of(folder, model, windows, callbacks=None, **changes):
    settings = SETTINGS | changes
    return Trainer(model, arguments(folder, **settings), train_dataset=windows, callbacks=callbacks)


def test_a_frozen_parameter_has_no_optimizer_state():
    model = frozen_model()
    trained = {p.path for p in model.parameters() if p.requires_grad}
    params, fixed = weights_of(model)
    assert {path for path, _ in nnx.to_flat_state(params)} == trained
    assert len(jax.tree.leaves(fixed)) == len(list(model.parameters())) - len(trained)
    state = optimizer_of(TrainingArguments(), model).init(params)
    count = model.num_parameters(only_trainable=True)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 2 * count + 1
    model.requires_grad_(True)
    assert not jax.tree.leaves(weights_of(model).fixed)


def test_frozen_parameters_are_unchanged_by_training(tmp_path, windows):
    model = tiny.model(initializer_range=0.05)
    model.bert.requires_grad_(False)
    before = values(model)
    trainer_of(tmp_path, model, windows, max_steps=2).train()
    assert_only_trained_changed(model, before)


KINDS = {
    "replicated": {},
    "sharded": {"shard_params": True},
    "bfloat16, remat, accumulation": {
        "bf16": True,
        "activation_checkpointing": True,
        "gradient_accumulation_steps": 2,
    },
    "sharded, remat": {"shard_params": True, "activation_checkpointing": True},
    "sgd": {"optim": "sgd"},
    "lion, clipped": {"optim": "lion_32bit", "max_grad_norm": 0.01},
}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_frozen_parameters_do_not_change_bit_by_bit(tmp_path, windows, kind):
    model = frozen_model()
    before = values(model)
    trainer = trainer_of(tmp_path, model, windows, **KINDS[kind])
    trainer.train()
    assert_only_trained_changed(model, before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 16 + 1
    state = abstract_state(model, optimizer_of(trainer.args, model), is_sharded=False)
    assert len(jax.tree.leaves(state.params)) == len(trained)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
    assert sum(sizes) <= 2 * model.num_parameters(only_trainable=True) + 1
    # Unfrozen, they are trained.
    model.requires_grad_(True)
    before = values(model)
    trainer.train()
    assert_only_trained_changed(model, before)


def operations(model, is_sharded):
    """The floating-point operations of a training step."""
    optimizer = optax.identity()
    state = parallel.put_state(
        TrainState(jnp.int32(0), *weights_of(model), ()),
        abstract_state(model, optimizer, is_sharded),
    )
    batch = tiny.random_batch(np.random.default_rng(0), rows=8, length=32)
    batch = {name: array.reshape(8, 1, 1, *array.shape[1:]) for name, array in batch.items()}
    remat = model.is_gradient_checkpointing
    step = make_train_step(model.graphdef("float32", remat=remat), optimizer)
    step = parallel.over_cores(step, (0, 0, None, None), (0, None))
    lowered = step.lower(state, parallel.put(batch), np.float32(1.0), parallel.run_key(0))
    return lowered.compile().cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("remat", [False, True])
def test_the_backward_pass_of_frozen_layers_is_not_computed(remat, is_sharded):
    costs = {}
    for layers in (0, 2, 4):
        model = tiny.model(num_hidden_layers=4, hidden_size=64, intermediate_size=256)
        model.bert.embeddings.requires_grad_(layers == 0)
        model.bert.encoder.layer[:layers].requires_grad_(False)
        if remat:
            model.gradient_checkpointing_enable()
        costs[layers] = operations(model, is_sharded)
    # The forward pass is a third of all operations (with remat a quarter), and the layers are
    # nearly all of it.
    assert costs[4] < 0.4 * costs[0]
    assert costs[2] < 0.75 * costs[0]


@pytest.mark.slow
def test_the_gradient_norm_is_that_of_the_trained_parameters(tmp_path, windows):
    rows = windows.select(range(8))
    norms = {}
    for name in ("all", "bert", "qa_outputs"):
        model = tiny.model()
        if name != "all":
            model.requires_grad_(False)
            getattr(model, name).requires_grad_(True)
        trainer = trainer_of(tmp_path / name, model, rows, max_steps=1)
        trainer.train()
        norms[name] = trainer.state.log_history[0]["grad_norm"]
    assert norms["all"] == pytest.approx(np.hypot(norms["bert"], norms["qa_outputs"]), rel=1e-4)
    assert min(norms["bert"], norms["qa_outputs"]) < 0.95 * norms["all"]


def test_everything_frozen_is_an_error(tmp_path, windows):
    model = tiny.model().requires_grad_(False)
    with pytest.raises(ValueError, match="all parameters of the model are frozen"):
        trainer_of(tmp_path, model, windows).train()


class During(TrainerCallback):
    """Calls a function with the model after the second update."""

    def __init__(self, act):
        self._act = act

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            self._act(model)


@pytest.mark.slow
def test_requires_grad_cannot_be_changed_during_training(tmp_path, windows):
    def act(model):
        with pytest.raises(ValueError, match="train in stages: set requires_grad, then call train"):
            model.bert.embeddings.requires_grad_(True)
        model.bert.embeddings.requires_grad_(False)  # no change
        for embedding in model.bert.embeddings.parameters():
            seen.append(embedding.requires_grad)

    seen = []
    trainer_of(tmp_path, frozen_model(), windows, [During(act)]).train()
    assert seen == [False] * 5


@pytest.mark.slow
def test_values_written_during_training_are_trained_or_stay(tmp_path, windows):
    def act(model):
        model.load_state_dict({"qa_outputs.bias": [3.0, 4.0]}, strict=False)
        model.qa_outputs.weight.data *= 0
        model.bert.embeddings.word_embeddings.weight[7] = 0.5
        state = model.state_dict()
        assert not np.asarray(state["qa_outputs.weight"]).any()

    model = frozen_model()
    before = np.array(model.qa_outputs.weight)
    trainer_of(tmp_path, model, windows, [During(act)], optim="sgd", learning_rate=1e-4).train()
    assert np.asarray(model.qa_outputs.bias).tolist() == [3.0, 4.0]
    assert (np.asarray(model.get_input_embeddings().weight)[7] == 0.5).all()
    weight = np.abs(np.asarray(model.qa_outputs.weight)).max()
    assert 0 < weight < 0.1 * np.abs(before).max()


# ---- adapters ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_parts_of_the_adapters_can_be_frozen(tmp_path, windows):
    model = get_peft_model(
        tiny.model(num_hidden_layers=2), LoraConfig(r=2, target_modules=["query"])
    )
    model.bert.encoder.layer[0].requires_grad_(False)
    model.qa_outputs.requires_grad_(False)
    before = values(model)
    trainer_of(tmp_path, model, windows).train()
    assert_only_trained_changed(model, before)
    with pytest.raises(ValueError, match="encoder of a model with LoRA adapters stays frozen"):
        model.bert.encoder.requires_grad_(True)


# ---- resuming ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, windows, kind):
    settings = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", **KINDS[kind]}
    runs = []
    for name in ("whole", "stopped"):
        trainer = trainer_of(
            tmp_path / name, frozen_model(hidden_dropout_prob=0.2), windows, **settings
        )
        trainer.train()
        runs.append(trainer)
    stopped = trainer_of(
        tmp_path / "stopped", frozen_model(hidden_dropout_prob=0.2), windows, **settings
    )
    stopped.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))
    assert_same_run_of_few_arrays(runs[0], stopped)


def assert_same_run_of_few_arrays(expected, actual):
    for (name, one), (_, other) in zip(
        expected.model.named_parameters(), actual.model.named_parameters(), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=name)


@pytest.mark.slow
def test_a_run_is_resumed_only_with_the_same_frozen_parameters(tmp_path, windows):
    settings = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps"}
    trainer_of(tmp_path, frozen_model(), windows, **settings).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    model = frozen_model()
    model.qa_outputs.bias.requires_grad_(True)
    for now in ("bert.embeddings, bert.encoder.layer.0", "none"):
        trainer = trainer_of(tmp_path, model, windows, **settings)
        before = "bert.embeddings, bert.encoder.layer.0, qa_outputs.bias"
        for accept_changes in (False, True):
            with pytest.raises(ResumeError, match=f"were {before}, and now are {now}; freeze the"):
                trainer.train(resume_from_checkpoint=checkpoint, accept_changes=accept_changes)
        model.requires_grad_(True)


@pytest.mark.slow
def test_a_run_that_wrote_into_frozen_parameters_is_resumed_only_with_those(tmp_path, windows):
    """A checkpoint's training state does not contain them."""

    def act(model):
        model.get_input_embeddings().weight[7] = 0.5

    settings = {"max_steps": 3, "save_steps": 1, "save_strategy": "steps"}
    trainer_of(tmp_path, frozen_model(), windows, [During(act)], **settings).train()
    for step in (3, 2):
        trainer = trainer_of(tmp_path, frozen_model(), windows, **settings)
        checkpoint = str(tmp_path / f"checkpoint-{step}")
        with pytest.raises(ResumeError, match="fixed_digest"):
            trainer.train(resume_from_checkpoint=checkpoint)
        act(trainer.model)
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer = trainer_of(tmp_path, frozen_model(), windows, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# ---- freeze_layers and freeze_embeddings ---------------------------------------------------------


def frozen_by(model, **settings):
    """The names of the parameters that these arguments freeze."""
    apply_model_arguments(TrainingArguments(**settings), model)
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    ("value", "layers"),
    [
        ("0-1", (0, 1)),
        ("2", (2,)),
        ("0, 2 - 3", (0, 2, 3)),
        (1, (1,)),
        ([0, 2], (0, 2)),
        (range(3), (0, 1, 2)),
        (["0-1", 3], (0, 1, 3)),
        ([], ()),
        (None, ()),
    ],
)
def test_freeze_layers_names_layers_by_numbers_and_ranges(value, layers):
    model = tiny.model(num_hidden_layers=4)
    names = [name for name, _ in model.named_parameters()]
    expected = {n for n in names for k in layers if n.startswith(f"bert.encoder.layer.{k}.")}
    assert frozen_by(model, freeze_layers=value) == expected
    assert len(expected) == 16 * len(layers)


@pytest.mark.parametrize("value", ["3-1", "a", "", "1,", "-1", "0-", "1.5", True, 2.0, [None]])
def test_malformed_layers_are_refused_when_the_arguments_are_built(value):
    with pytest.raises(ValueError, match=r"freeze_layers=.*: it must have numbers of layers"):
        TrainingArguments(freeze_layers=value)


def test_layers_beyond_the_model_are_refused_by_the_trainer(tmp_path, windows):
    settings = {"freeze_layers": "0,2-4"}
    message = "freeze_layers='0,2-4': this bert model has 4 layers, with numbers from 0 to 3"
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, tiny.model(num_hidden_layers=4), windows, **settings)
    message = (
        r"freeze_layers='1': albert shares the weights of its layers, .* has 1 group of layers"
    )
    model = family_model("albert", num_hidden_layers=6, num_hidden_groups=1)
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, model, windows, freeze_layers="1")
    trainer = trainer_of(tmp_path, tiny.model(), windows)
    trainer.args.freeze_layers = "1"
    with pytest.raises(ValueError, match="freeze_layers='1': this bert model has 1 layers"):
        trainer.train()


def test_changed_arguments_unfreeze_only_what_arguments_froze():
    model = tiny.model(num_hidden_layers=3)
    model.bert.encoder.layer[0].requires_grad_(False)
    own = {name for name, p in model.named_parameters() if not p.requires_grad}
    both = frozen_by(model, freeze_layers="0-1", freeze_embeddings=True)
    assert len(both) == 2 * 16 + 5
    assert frozen_by(model, freeze_layers="2") == own | {
        name for name, _ in model.named_parameters() if ".layer.2." in name
    }
    # What the script freezes meanwhile is its own, even if an argument has frozen it already.
    model.bert.encoder.layer[2].output.requires_grad_(False)
    kept = frozen_by(model)
    assert kept > own
    assert len(kept) == len(own) + 4
    copy = model.with_dtype("bfloat16")
    assert frozen_by(copy) == kept


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(CASES))
def test_frozen_layers_of_every_family_do_not_change(tmp_path, family):
    model, windows = family_model(family), family_windows()
    depth, before = depth_of(model), {p.path: np.array(p) for p in model.parameters()}
    frozen = {depth.head - 1, 0}
    trainer = trainer_of(
        tmp_path, model, windows, freeze_layers=depth.layers - 1, freeze_embeddings=True
    )
    trainer.train()
    for parameter in model.parameters():
        path = parameter.path
        is_frozen = depth.levels[path] in frozen
        assert parameter.requires_grad == (not is_frozen and not parameter.is_fixed)
        if is_frozen:
            np.testing.assert_array_equal(np.asarray(parameter), before[path])
        elif path[-1] == "kernel" and not parameter.is_fixed:
            assert not np.array_equal(np.asarray(parameter), before[path]), path
    state = abstract_state(model, optimizer_of(trainer.args, model), is_sharded=False)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
    assert sum(sizes) == 2 * model.num_parameters(only_trainable=True) + 1
    # Without the arguments, everything is trained again.
    trainer.args.freeze_layers, trainer.args.freeze_embeddings = None, False
    trainer.train()
    assert not model.frozen
    for parameter in model.parameters():
        if parameter.path[-1] == "kernel" and not parameter.is_fixed:
            changed = not np.array_equal(np.asarray(parameter), before[parameter.path])
            assert changed, parameter


@pytest.mark.slow
def test_freeze_layers_freezes_adapters(tmp_path, windows):
    base = tiny.model(num_hidden_layers=2, initializer_range=0.05)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["query"]))
    before = values(model)
    settings = {"freeze_layers": "0", "freeze_embeddings": True}
    trainer_of(tmp_path, model, windows, **settings).train()
    assert_only_trained_changed(model, before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 + 2
    assert all(".layer.1." in name or "qa_outputs" in name for name in trained)


@pytest.mark.slow
def test_a_run_with_frozen_layers_is_resumed_with_the_same(tmp_path, windows):
    settings = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "freeze_layers": "0"}
    make = lambda: tiny.model(num_hidden_layers=2, hidden_dropout_prob=0.2)  # noqa: E731
    whole = trainer_of(tmp_path, make(), windows, **settings)
    whole.train()
    resumed = trainer_of(tmp_path, make(), windows, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_run_of_few_arrays(whole, resumed)
    other = trainer_of(tmp_path, make(), windows, **(settings | {"freeze_layers": None}))
    message = r"freeze_layers, freeze_embeddings\) were bert.encoder.layer.0, and now are none"
    with pytest.raises(ResumeError, match=message):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
