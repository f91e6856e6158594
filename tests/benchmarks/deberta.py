"""Compare two ways to compute DeBERTa's relative position scores: reshapes (ours) and a gather.

    python tests/benchmarks/deberta.py [--lengths 128 384 512] [--batch 2] [--repeats 5]

Computes the scores of one attention layer of DeBERTa-v3-base (12 heads of 64, 256 buckets, c2p and
p2c) in float32. Checks that both forms agree, then times the forward pass and the gradient of both
in turn. Prints the best of `--repeats`, and the temporary memory that XLA reports.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qa_flax.models.attention import along_diagonals
from qa_flax.models.families.deberta_v2 import relative_position_rows

HEADS, SIZE, SPAN, POSITIONS = 12, 64, 256, 512


def realigned(query: Any, key: Any, table: Any, rows: np.ndarray) -> Any:
    """Score all relative positions, then align them with the pairs of tokens by reshaping.

    `rows` `[2 l - 1]` are the table's rows for the relative positions 1 - l to l - 1.
    """
    vectors = table[rows]
    to_position = along_diagonals(jnp.einsum("blad,wad->balw", query, vectors[::-1]))
    to_content = along_diagonals(jnp.einsum("blad,wad->balw", key, vectors))
    return to_position + to_content.swapaxes(2, 3)


def gathered(query: Any, key: Any, table: Any, rows: np.ndarray) -> Any:
    """Score all rows of the table, then gather one score per pair of tokens, as PyTorch does."""
    length = query.shape[1]
    relative = np.arange(length)[:, None] - np.arange(length)
    index = jnp.asarray(rows[relative + length - 1])
    shape = (query.shape[0], HEADS, length, length)
    to_position = jnp.take_along_axis(
        jnp.einsum("blad,wad->balw", query, table), jnp.broadcast_to(index, shape), axis=-1
    )
    to_content = jnp.take_along_axis(
        jnp.einsum("blad,wad->balw", key, table), jnp.broadcast_to(index.T, shape), axis=-1
    )
    return to_position + to_content.swapaxes(2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 384, 512])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for length in arguments.lengths:
        compare(length, arguments.batch, arguments.repeats)


def compare(length: int, batch: int, repeats: int) -> None:
    """Print one line for the forward pass and one for the gradient."""
    rows = relative_position_rows(length, POSITIONS, SPAN)
    random = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(0, 1, shape), jnp.float32)

    inputs = normal(batch, length, HEADS, SIZE), normal(batch, length, HEADS, SIZE)
    inputs += (normal(2 * SPAN, HEADS, SIZE),)
    weights = normal(batch, HEADS, length, length)
    runs: dict[tuple[str, str], Any] = {}
    for form in (realigned, gathered):

        def forward(*inputs: Any, form: Any = form) -> Any:
            return form(*inputs, rows)

        def total(*inputs: Any, form: Any = form) -> Any:
            return jnp.sum(form(*inputs, rows) * weights)

        runs["forward", form.__name__] = jax.jit(forward).lower(*inputs).compile()
        gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
        runs["gradient", form.__name__] = gradient.lower(*inputs).compile()
    for kind in ("forward", "gradient"):
        outputs = [jax.tree.leaves(runs[kind, form](*inputs)) for form in ("realigned", "gathered")]
        for actual, expected in zip(*outputs, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-2)
        best = dict.fromkeys(("realigned", "gathered"), np.inf)
        for _ in range(repeats):
            for form in best:
                started = time.perf_counter()
                jax.block_until_ready(runs[kind, form](*inputs))
                best[form] = min(best[form], time.perf_counter() - started)
        figures = ", ".join(
            f"{form} {1000 * seconds:.0f} ms "
            f"({runs[kind, form].memory_analysis().temp_size_in_bytes / 2**20:.0f} MiB)"
            for form, seconds in best.items()
        )
        ratio = best["gathered"] / best["realigned"]
        print(f"{length} tokens, {kind}: {figures}; {ratio:.2f}x", flush=True)


if __name__ == "__main__":
    main()
