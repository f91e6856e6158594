"""Compare a Python loop over layers with `jax.lax.scan` over stacked parameters.

    python tests/benchmarks/stack.py [--layers 12 24] [--hidden 384] [--length 128] [--batch 8]

Prints the time to compile and the time of a step, which is the gradient of the loss with dropout on
one core. Both forms have the same parameters and must return the same gradients. Their steps are
timed in turn; the best of `--repeats` counts.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from transformers import BertConfig

from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.qa import span_losses


class Scanned(nnx.Module):
    """A `blocks.Stack` that stores each parameter of all layers in one array `[layers, ...]`."""

    def __init__(self, layers: Any):
        splits = [nnx.split(layer) for layer in layers]
        self.graphdef = splits[0][0]
        self.stacked = nnx.data(jax.tree.map(lambda *x: jnp.stack(x), *(s for _, s in splits)))

    def __call__(self, hidden: Any, *layer_args: Any, rngs: nnx.Rngs | None = None) -> Any:
        """Apply all layers, with a different dropout key for each."""
        count = jax.tree.leaves(self.stacked)[0].shape[0]
        keys = None if rngs is None else jax.random.split(rngs.dropout(), count)

        def apply_layer(hidden: Any, layer: Any) -> Any:
            state, key = layer
            rngs = None if key is None else nnx.Rngs(dropout=key)
            return nnx.merge(self.graphdef, state)(hidden, *layer_args, rngs=rngs), None

        return jax.lax.scan(apply_layer, hidden, (self.stacked, keys))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 24])
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for layers in arguments.layers:
        compare(layers, arguments)


def compare(layers: int, arguments: argparse.Namespace) -> None:
    """Print one line per form."""
    random = np.random.default_rng(0)
    ids = random.integers(1, 30000, (arguments.batch, arguments.length))
    labels = jnp.asarray(random.integers(0, arguments.length, (2, arguments.batch)))
    config = BertConfig(
        hidden_size=arguments.hidden,
        num_hidden_layers=layers,
        num_attention_heads=arguments.hidden // 32,
        intermediate_size=4 * arguments.hidden,
    )
    forms = {}
    for form in ("loop", "scan"):
        model = AutoModelForQuestionAnswering.from_config(config)
        if form == "scan":
            model.encoder.layers = Scanned(model.encoder.layers)
        graphdef, params = nnx.split(model)
        forms[form] = compiled(graphdef, params, ids, labels)
    values = {form: float(step(False)) for form, (_, step) in forms.items()}
    np.testing.assert_allclose(values["scan"], values["loop"], rtol=1e-4)
    best = dict.fromkeys(forms, np.inf)
    for _ in range(arguments.repeats):
        for form, (_, step) in forms.items():
            started = time.perf_counter()
            step(True).block_until_ready()
            best[form] = min(best[form], time.perf_counter() - started)
    for form, (seconds, _) in forms.items():
        print(f"{layers} layers, {form}: compiled in {seconds:.1f} s, step {best[form]:.3f} s")


def compiled(graphdef: Any, params: Any, ids: Any, labels: Any) -> tuple[float, Any]:
    """Return the seconds to trace and compile the training step, and the step as a function.

    `step(train)` returns the norm of the gradient. `train=False` disables dropout, so that the
    forms can be compared.
    """

    def norm(params: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            rngs = None if key is None else nnx.Rngs(dropout=key)
            logits = nnx.merge(graphdef, params).span_logits(ids, rngs=rngs)
            return span_losses(logits, labels[0], labels[1]).mean()

        leaves = jax.tree.leaves(jax.grad(loss)(params))
        return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in leaves))

    key = jax.random.key(0)
    started = time.perf_counter()
    run = jax.jit(norm).lower(params, key).compile()
    seconds = time.perf_counter() - started
    return seconds, lambda train: run(params, key) if train else jax.jit(norm)(params, None)


if __name__ == "__main__":
    main()
