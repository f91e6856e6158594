"""What does cutting rows into blocks save a layer that looks only nearby?

    python tests/benchmarks/local_attention.py [--lengths 384 2048 8192] [--repeats 5] [--gib 8]

One ModernBERT-base local layer (hidden 768, 12 heads, window 64 to each side), one row, with all
pairs masked and in blocks: hidden states, and their gradient, must be equal before times, each the
best of `--repeats`, and the memory XLA needs beside inputs and results are printed. What needs more
than `--gib` is not run, so not compared either; its memory is known all the same.
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
    found = {}
    for name, block in (("masked", None), ("blocks", WINDOW)):
        local_attention.block_size = lambda length, window, block=block: block
        forward, gradient = functions(layer, mask)
        # Compiled here, while `block_size` says what it shall.
        found[name] = [jax.jit(f).lower(hidden).compile() for f in (forward, gradient)]
    for plain, cut in zip(*found.values(), strict=True):
        if mebibytes(plain) < limit:
            np.testing.assert_allclose(cut(hidden), plain(hidden), atol=2e-5)
    for name, compiled in found.items():
        shown = []
        for run in compiled:
            fits = mebibytes(run) < limit
            spent = f"{best(run, hidden, repeats):.0f} ms" if fits else "not run"
            shown.append(f"{spent} {mebibytes(run):5.0f} MiB")
        print(f"{length:6} {name:8} {shown[0]:>19} {shown[1]:>19}", flush=True)


def functions(layer, mask):
    def forward(hidden):
        turned = rotation(jnp.arange(hidden.shape[1])[None], HEAD_SIZE, 10_000.0)
        return layer(hidden, local_attention.make_local_mask(mask, None, WINDOW), turned)

    return forward, jax.grad(lambda hidden: (forward(hidden) ** 2).mean() * hidden.size)


def best(compiled, hidden, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(hidden))
        times.append(time.perf_counter() - began)
    return 1000 * min(times)


def mebibytes(compiled) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


if __name__ == "__main__":
    main()
