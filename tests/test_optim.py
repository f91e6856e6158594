"""Schedules, decay mask and AdamW against PyTorch and transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

from qa_flax.optim import SCHEDULES, count_updates, decay_mask, make_optimizer, make_schedule


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_are_those_of_transformers(kind, warmup):
    torch = pytest.importorskip("torch")
    from transformers import get_scheduler

    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=3e-4)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    ours = make_schedule(kind, 3e-4, warmup, 20)
    for step in range(20):
        np.testing.assert_allclose(
            float(ours(step)), theirs.get_last_lr()[0], rtol=1e-5, atol=1e-11
        )
        optimizer.step()
        theirs.step()


def test_an_unknown_schedule_is_refused_by_name():
    with pytest.raises(ValueError, match=r"lr_scheduler_type='polynomial'.*linear, cosine"):
        make_schedule("polynomial", 1e-3, 0, 10)


def test_updates_are_counted_as_transformers_does():
    assert count_updates(2091, 16, 2.0, -1) == (131, 262)
    assert count_updates(10, 4, 1.5, -1) == (3, 5)
    assert count_updates(10, 4, 3.0, 7) == (3, 7)


def test_everything_decays_but_biases_and_norms():
    mask = decay_mask(nnx.split(tiny.model())[1])
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


@pytest.mark.parametrize("max_grad_norm", [0.5, 0.0])
def test_adamw_takes_the_steps_of_pytorch(rng, max_grad_norm):
    torch = pytest.importorskip("torch")
    start = {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)}
    start = {k: v.astype(np.float32) for k, v in start.items()}
    theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": 0.1},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    torch_adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.99), eps=1e-6)
    ours = make_optimizer(
        lambda step: 1e-2,
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_beta2=0.99,
        adam_epsilon=1e-6,
        max_grad_norm=max_grad_norm,
    )
    params = jax.tree.map(jnp.asarray, start)
    state = ours.init(params)
    for _ in range(6):
        grads = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in start.items()}
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name])
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(theirs.values(), max_grad_norm)
        torch_adamw.step()
        updates, state = ours.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for name, parameter in theirs.items():
        np.testing.assert_allclose(params[name], parameter.detach().numpy(), rtol=2e-5, atol=1e-6)
