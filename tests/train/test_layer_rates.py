"""`layerwise_lr_decay`: the rates of the layers, compared with parameter groups in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from cases import CASES
from flax import nnx
from loud import loud_model
from tiny_trainers import arguments
from torch_levels import expected_level

from qa_flax import LoraConfig, Trainer, get_peft_model, prepare_train_features
from qa_flax.device.optim import NEED_WHOLE_PARAMETERS, OPTIMIZERS
from qa_flax.device.step import weights_of
from qa_flax.models.depth import depth_of
from qa_flax.models.families import FAMILIES
from qa_flax.models.weights import weight_name
from qa_flax.train.plan import optimizer_of

RATE, DECAY = 1e-2, 0.7
FAST = ("bert",)
families = pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.slow] * (f not in FAST)) for f in sorted(CASES)]
)


@pytest.fixture(scope="module")
def windows():
    lengths = {"max_seq_length": 64, "doc_stride": 16, "disable_tqdm": True}
    return prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **lengths)


@families
def test_updates_equal_those_of_parameter_groups_in_pytorch(tmp_path, family, rng):
    torch = pytest.importorskip("torch")
    model = loud_model(family=family)
    params = weights_of(model).params
    flat = {path: np.asarray(p[...]) for path, p in nnx.to_flat_state(params)}
    names = {path: weight_name(path, FAMILIES[family], FAMILIES[family].prefix) for path in flat}
    layers = depth_of(model).layers
    is_t5 = family in ("t5", "mt5")
    encoder_layers = getattr(model.config, "num_layers" if is_t5 else "encoder_layers", 0)
    theirs = {path: torch.nn.Parameter(torch.tensor(array)) for path, array in flat.items()}
    groups = [
        {
            "params": [parameter],
            "lr": RATE
            * DECAY ** (layers + 1 - expected_level(names[path], family, layers, encoder_layers)),
            "weight_decay": 0.1 if optimizer_decays(names[path]) else 0.0,
        }
        for path, parameter in theirs.items()
    ]
    reference = torch.optim.AdamW(groups)
    args = arguments(tmp_path, layerwise_lr_decay=DECAY, weight_decay=0.1, max_grad_norm=0.5)
    optimizer = optimizer_of(args, model)
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(4):
        grads = {p: rng.normal(size=a.shape).astype(np.float32) for p, a in flat.items()}
        for path, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[path])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        reference.step()
        tree = nnx.from_flat_state([(p, nnx.Param(jnp.asarray(g))) for p, g in grads.items()])
        direction, state = update(tree, state, params)
        params = jax.tree.map(lambda p, d: p - RATE * d, params, direction)
    for path, p in nnx.to_flat_state(params):
        expected = theirs[path].detach().numpy()
        np.testing.assert_allclose(p[...], expected, rtol=1e-6, atol=1e-6, err_msg=names[path])


def optimizer_decays(name):
    """Whether a parameter decays in transformers, by its name."""
    lower = name.lower()
    if "bias" in lower or "layernorm" in lower or "layer_norm" in lower:
        return False
    return not lower.removesuffix(".weight").endswith(("norm", ".ln"))


def values(model):
    return {path: np.array(p[...]) for path, p in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def changes_of(folder, model, windows, decay, **settings):
    """How much the first update changes each parameter."""
    before = values(model)
    settings = {"max_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0} | settings
    args = arguments(folder, layerwise_lr_decay=decay, **settings)
    Trainer(model, args, train_dataset=windows).train()
    return {path: array - before[path] for path, array in values(model).items()}


def assert_scaled(model, plain, scaled):
    depth = depth_of(model)
    for path, change in plain.items():
        factor = 0.5 ** (depth.head - depth.levels[path])
        largest = np.abs(change).max()
        np.testing.assert_allclose(scaled[path], factor * change, atol=2e-3 * largest + 3e-7)
    assert all(np.abs(plain["head", "outputs", "kernel"]).ravel() > 0)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"optim": "sgd"}, marks=pytest.mark.slow),
        pytest.param({"shard_params": True}, marks=pytest.mark.slow),
        *(
            pytest.param({"optim": name}, marks=pytest.mark.slow)
            for name in ("adafactor", "ademamix", "lion_32bit", "lamb", "adagrad", "rmsprop")
        ),
    ],
    ids=lambda settings: ",".join(settings.values()) if "optim" in settings else "sharded",
)
def test_each_layer_s_first_update_has_its_rate(tmp_path, windows, settings):
    """With weight decay, which scales with the rate."""
    make = lambda: tiny.model(num_hidden_layers=2)  # noqa: E731
    settings = {"weight_decay": 0.1, **settings}
    plain = changes_of(tmp_path, make(), windows, 1.0, **settings)
    assert_scaled(make(), plain, changes_of(tmp_path, make(), windows, 0.5, **settings))


@pytest.mark.slow
def test_frozen_parameters_and_adapters(tmp_path, windows):
    def make():
        base = tiny.model(num_hidden_layers=2)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "up", "dense"]))
        model.bert.encoder.layer[0].requires_grad_(False)
        return model

    plain = changes_of(tmp_path, make(), windows, 1.0, optim="sgd")
    scaled = changes_of(tmp_path, make(), windows, 0.5, optim="sgd")
    model = make()
    assert_scaled(model, plain, scaled)
    assert not any(plain[path].any() for path in model.frozen)
    adapter = ("encoder", "layers", 1, "attention", "query", "lora_b")
    assert plain[adapter].any()


def test_every_optimizer_takes_it_and_is_made_once(tmp_path):
    model, same = tiny.model(), tiny.model(seed=1)
    for name in OPTIMIZERS:
        args = arguments(tmp_path, optim=name, layerwise_lr_decay=0.9)
        optimizer = optimizer_of(args, model)
        assert optimizer is optimizer_of(args, same)
        args.layerwise_lr_decay = 0.8
        assert optimizer is not optimizer_of(args, model)
        args.layerwise_lr_decay = 1.0
        plain = optimizer_of(args, model)
        assert plain is optimizer_of(arguments(tmp_path, optim=name), model)
    assert set(NEED_WHOLE_PARAMETERS) <= OPTIMIZERS.keys()


def test_an_own_optimizer_refuses_it(tmp_path, windows):
    args = arguments(tmp_path, layerwise_lr_decay=0.5, optim="sgd", max_steps=1)
    message = r"layerwise_lr_decay=0\.5 has no effect together with an own optimizer"
    with pytest.raises(ValueError, match=message):
        Trainer(tiny.model(), args, train_dataset=windows, optimizers=(optax.sgd(1.0), None))
    trainer = Trainer(
        tiny.model(), arguments(tmp_path), train_dataset=windows, optimizers=(optax.sgd(1.0), None)
    )
    trainer.args.layerwise_lr_decay = 0.5
    with pytest.raises(ValueError, match=message):
        trainer.train()


@pytest.mark.slow
def test_it_acts_with_an_own_schedule(tmp_path, windows):
    trainers = []
    for decay in (1.0, 0.5):
        args = arguments(tmp_path, layerwise_lr_decay=decay, optim="sgd", max_steps=1)
        trainer = Trainer(
            tiny.model(), args, train_dataset=windows, optimizers=(None, lambda step: 0.02)
        )
        before = values(trainer.model)
        trainer.train()
        trainers.append({p: a - before[p] for p, a in values(trainer.model).items()})
    assert_scaled(tiny.model(), *trainers)
