"""Learning-rate schedule, decay mask, clipping and AdamW as one optax chain (device, JAX)."""

import math

import jax
import optax
from jaxtyping import PyTree

from qa_flax.arguments import CHOICES

SCHEDULES = CHOICES["lr_scheduler_type"]


def make_schedule(
    kind: str, learning_rate: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """Learning rate of update number `step`, counted from 0, as transformers' schedule of that
    name.

    The rate grows from 0 over `warmup_steps` updates, then falls to 0 at `total_steps` (linear or
    half a cosine) or stays. Raises `ValueError` for a `kind` not in `SCHEDULES`.
    """
    decay_steps = max(1, total_steps - warmup_steps)
    if kind == "linear":
        after = optax.linear_schedule(learning_rate, 0.0, decay_steps)
    elif kind == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, decay_steps)
    elif kind in ("constant", "constant_with_warmup"):
        after = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(
            f"lr_scheduler_type={kind!r} is not supported; choose one of {', '.join(SCHEDULES)}"
        )
    if kind == "constant" or warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def count_updates(
    rows: int, global_batch: int, num_train_epochs: float, max_steps: int
) -> tuple[int, int]:
    """Updates per epoch and in all; the last, partial batch is one, too, as in transformers."""
    per_epoch = math.ceil(rows / global_batch)
    return per_epoch, max_steps if max_steps > 0 else math.ceil(num_train_epochs * per_epoch)


def decay_mask(params: PyTree) -> PyTree:
    """True where weight decay applies: everything but biases and normalisation layers, as in HF."""

    def decays(path, _leaf) -> bool:
        names = [str(getattr(part, "key", getattr(part, "name", part))).lower() for part in path]
        return "bias" not in names and not any(name.endswith("norm") for name in names)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_epsilon: float = 1e-8,
    max_grad_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Clip by the global norm (0: never), then AdamW (Loshchilov & Hutter 2019) as in PyTorch."""
    adamw = optax.adamw(
        schedule,
        b1=adam_beta1,
        b2=adam_beta2,
        eps=adam_epsilon,
        weight_decay=weight_decay,
        mask=decay_mask,
    )
    if max_grad_norm <= 0:
        return adamw
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), adamw)
