"""Compare two forms of local attention: all pairs of tokens with a mask, and blocks of tokens.

    python tests/benchmarks/local_attention.py [--lengths 384 2048 8192] [--repeats 5] [--gib 8]

Runs one local layer of ModernBERT-base (hidden 768, 12 heads, window of 64 tokens to each side) on
one row. Checks that the hidden states and their gradients are equal. Then prints the time of both
forms, the best of `--repeats`, and the memory that XLA needs in addition to inputs and outputs. A
form that needs more than `--gib` GiB is compiled but not run, so only its memory is printed.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoConfig

from qa_flax.models import local_attention
from qa_flax.models.families.modernbert import rotation
from qa_flax.models.model import AutoModelForQuestionAnswering

WINDOW, HEAD_SIZE = 64, 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[384, 2048, 8192])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gib", type=float, default=8)
    args = parser.parse_args()
    config = AutoConfig.for_model("modernbert", vocab_size=8, pad_token_id=0, num_hidden_layers=2)
    layer = AutoModelForQuestionAnswering.from_config(config).encoder.layers[1]
    print(f"{'tokens':>6} {'':8} {'forward':>19} {'with gradient':>19}")
    for length in args.lengths:
        compare(layer, length, args.repeats, args.gib * 1024)


def compare(layer, length: int, repeats: int, limit: float) -> None:
    random = np.random.default_rng(0)
    hidden = jnp.asarray(random.standard_normal((1, length, 768)), jnp.float32)
    mask = jnp.ones((1, length), jnp.int32)
    programs = {}
    for name, block in (("masked", None), ("blocks", WINDOW)):
        local_attention.block_size = lambda length, window, block=block: block
        forward, gradient = functions(layer, mask)
        # Compile now, because `block_size` is replaced for the next form.
        programs[name] = [jax.jit(f).lower(hidden).compile() for f in (forward, gradient)]
    for masked, blocks in zip(*programs.values(), strict=True):
        if mebibytes(masked) < limit:
            np.testing.assert_allclose(blocks(hidden), masked(hidden), atol=2e-5)
    for name, compiled in programs.items():
        cells = []
        for program in compiled:
            fits = mebibytes(program) < limit
            duration = f"{best_time(program, hidden, repeats):.0f} ms" if fits else "not run"
            cells.append(f"{duration} {mebibytes(program):5.0f} MiB")
        print(f"{length:6} {name:8} {cells[0]:>19} {cells[1]:>19}", flush=True)


def functions(layer, mask):
    """Return the layer's forward pass, and the gradient of a loss on its output."""

    def forward(hidden):
        rotary = rotation(jnp.arange(hidden.shape[1])[None], HEAD_SIZE, 10_000.0)
        return layer(hidden, local_attention.make_local_mask(mask, None, WINDOW), rotary)

    return forward, jax.grad(lambda hidden: (forward(hidden) ** 2).mean() * hidden.size)


def best_time(compiled, hidden, repeats: int) -> float:
    """Return the shortest run in ms."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(hidden))
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def mebibytes(compiled) -> float:
    """Return the temporary memory of a compiled program."""
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


if __name__ == "__main__":
    main()
