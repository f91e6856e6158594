"""Compare the decay mask and every optimizer with PyTorch, transformers or its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from qa_flax.device.optim import OPTIMIZERS, decay_mask, make_optimizer


def test_weight_decay_spares_only_biases_and_norms():
    mask = decay_mask(nnx.split(tiny.model(num_hidden_layers=2))[1])
    by_name = {
        "/".join(str(getattr(part, "key", part)) for part in path): decays
        for path, decays in jax.tree_util.tree_leaves_with_path(mask)
    }
    spared = {name for name, decays in by_name.items() if not decays}
    assert spared == {n for n in by_name if n.rsplit("/")[-1].startswith(("bias", "scale"))} | {
        n for n in by_name if "bias" in n or "scale" in n
    }
    assert any("embedding" in name for name in by_name.keys() - spared)
    assert len(by_name) == 16 * 2 + 5 + 2


RATE, DECAY = 1e-2, 0.1
TORCH = {
    "adamw": ("adamw_torch", "", lambda t, p: t.optim.AdamW(p, betas=(0.8, 0.99), eps=1e-6)),
    "sgd": ("sgd", "", lambda t, p: t.optim.SGD(p)),
    "momentum": ("sgd", "momentum=0.9", lambda t, p: t.optim.SGD(p, momentum=0.9)),
    "nesterov": (
        "sgd",
        "momentum=0.9, nesterov=true",
        lambda t, p: t.optim.SGD(p, momentum=0.9, nesterov=True),
    ),
    "adagrad": ("adagrad", "", lambda t, p: t.optim.Adagrad(p)),
    "rmsprop": ("rmsprop", "", lambda t, p: t.optim.RMSprop(p)),
    "rmsprop, centered": (
        "rmsprop",
        "momentum=0.5,alpha=0.9,centered=true,eps=1e-3",
        lambda t, p: t.optim.RMSprop(p, momentum=0.5, alpha=0.9, centered=True, eps=1e-3),
    ),
    "adafactor": ("adafactor", "", lambda t, p: transformers_adafactor(p)),
}


def transformers_adafactor(params):
    from transformers.optimization import Adafactor

    return Adafactor(params, lr=RATE, scale_parameter=False, relative_step=False)


def start_and_gradients(rng):
    shapes = {"kernel": (5, 3), "bias": (3,), "wide": (2, 200)}
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return start, [
        {k: rng.normal(size=v.shape).astype(np.float32) for k, v in start.items()} for _ in range(6)
    ]


def optimised(optimizer, start, gradients):
    """The parameters after one update for each gradient."""
    params = jax.tree.map(jnp.asarray, start)
    state = optimizer.init(params)
    for grads in gradients:
        direction, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, d: p - RATE * d, params, direction)
    return params


@pytest.mark.parametrize("max_grad_norm", [0.5, 0.0])
@pytest.mark.parametrize("case", TORCH)
def test_updates_equal_those_of_pytorch(rng, case, max_grad_norm):
    torch = pytest.importorskip("torch")
    name, optim_args, make = TORCH[case]
    start, gradients = start_and_gradients(rng)
    torch_params = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
    groups = [
        {
            "params": [torch_params["kernel"], torch_params["wide"]],
            "weight_decay": DECAY,
            "lr": RATE,
        },
        {"params": [torch_params["bias"]], "weight_decay": 0.0, "lr": RATE},
    ]
    optimizer = make(torch, groups)
    for grads in gradients:
        for key, parameter in torch_params.items():
            parameter.grad = torch.tensor(grads[key])
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(torch_params.values(), max_grad_norm)
        optimizer.step()
    ours = make_optimizer(
        name,
        weight_decay=DECAY,
        adam_beta1=0.8,
        adam_beta2=0.99,
        adam_epsilon=1e-6,
        max_grad_norm=max_grad_norm,
        optim_args=optim_args,
    )
    params = optimised(ours, start, gradients)
    for key, parameter in torch_params.items():
        np.testing.assert_allclose(params[key], parameter.detach().numpy(), rtol=2e-5, atol=1e-6)


def lion(p, g, m, t, decay):
    """Chen et al. 2023, algorithm 2."""
    c = 0.8 * m + (1 - 0.8) * g
    return p - RATE * (np.sign(c) + decay * p), 0.99 * m + (1 - 0.99) * g


def lamb(p, g, m, t, decay):
    """You et al. 2020, algorithm 2."""
    first, second = m if isinstance(m, tuple) else (m, m)
    first, second = 0.8 * first + 0.2 * g, 0.99 * second + 0.01 * g**2
    r = first / (1 - 0.8**t) / (np.sqrt(second / (1 - 0.99**t)) + 1e-6) + decay * p
    return p - RATE * np.linalg.norm(p) / np.linalg.norm(r) * r, (first, second)


def ademamix(p, g, m, t, decay):
    """Pagliardini et al. 2024, algorithm 1, without the warm-ups of alpha and beta3."""
    fast, slow, second = m if isinstance(m, tuple) else (m, m, m)
    fast, slow = 0.8 * fast + 0.2 * g, 0.9 * slow + 0.1 * g
    second = 0.99 * second + 0.01 * g**2
    step = (fast / (1 - 0.8**t) + 3.0 * slow) / (np.sqrt(second / (1 - 0.99**t)) + 1e-6)
    return p - RATE * (step + decay * p), (fast, slow, second)


@pytest.mark.parametrize(
    ("name", "optim_args", "formula"),
    [
        ("lion_32bit", None, lion),
        ("lamb", None, lamb),
        ("ademamix", "beta3=0.9,alpha=3", ademamix),
    ],
)
def test_updates_equal_those_of_the_paper(rng, name, optim_args, formula):
    start, gradients = start_and_gradients(rng)
    settings = {"adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-6, "max_grad_norm": 0.0}
    ours = make_optimizer(name, weight_decay=DECAY, optim_args=optim_args, **settings)
    params = optimised(ours, start, gradients)
    for key, p in start.items():
        p, memory = p.astype(np.float64), 0.0 * p
        for t, grads in enumerate(gradients, start=1):
            p, memory = formula(p, grads[key], memory, t, 0.0 if key == "bias" else DECAY)
        np.testing.assert_allclose(params[key], p, rtol=2e-5, atol=1e-6)


def test_different_names_of_an_optimizer_give_the_same_updates(rng):
    start, gradients = start_and_gradients(rng)
    for first, other in (("adamw_torch", "adamw_torch_fused"), ("lion_32bit", "paged_lion_32bit")):
        results = [optimised(make_optimizer(n), start, gradients) for n in (first, other)]
        jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize(
    ("name", "optim_args", "message"),
    [
        (
            "adamw_bnb_8bit",
            None,
            r"optim='adamw_bnb_8bit' is not supported.*adamw_torch, .*8-bit and 4",
        ),
        (
            "sgd",
            "momentun=0.9",
            "optim='sgd' has no argument momentun; its arguments: momentum, nesterov",
        ),
        ("adamw_torch", "beta=1", "'adamw_torch' has no argument beta; its arguments: none"),
        ("sgd", "momentum", "momentum has no value; write name=value"),
    ],
)
def test_unsupported_optimizers_and_arguments_are_rejected(name, optim_args, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(name, optim_args=optim_args)


def test_every_optimizer_updates_the_parameters(rng):
    start, gradients = start_and_gradients(rng)
    for name in OPTIMIZERS:
        params = optimised(make_optimizer(name, weight_decay=DECAY), start, gradients)
        assert all(np.isfinite(p).all() for p in params.values()), name
        assert np.abs(params["kernel"] - start["kernel"]).max() > 1e-3, name
