"""What fine-tuning a large encoder takes of each core, on paper: no array of its size is made.

    python tests/benchmarks/memory.py [--cores 8] [--rows 2] [--tokens 384]

Parameters, gradients and AdamW's state are those of `memory.state_pattern`, to the byte. Beside
them a core holds what `--shard_params` puts together: all that is beside the layers, with its
gradient, and one layer at a time; and the activations that `--bf16` and checkpointing leave: each
layer's input, and one layer's inside, as XLA compiles it for a CPU in float32, which is more than a
TPU needs in bfloat16. What a TPU's own compiler reserves is not in it.
"""

import argparse
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from flax import nnx
from transformers import DebertaV2Config, PreTrainedConfig, XLMRobertaXLConfig

from qa_flax.memory import state_pattern
from qa_flax.models.hf import AutoModelForQuestionAnswering
from qa_flax.models.layers import Stack
from qa_flax.optim import make_optimizer
from qa_flax.sharding import bytes_of
from qa_flax.step import make_loss, weights_of

GIB = 1 << 30
MODELS = {
    "facebook/xlm-roberta-xl": XLMRobertaXLConfig(),
    "microsoft/deberta-v2-xxlarge": DebertaV2Config(
        vocab_size=128100,
        hidden_size=1536,
        num_hidden_layers=48,
        num_attention_heads=24,
        intermediate_size=6144,
        type_vocab_size=0,
        relative_attention=True,
        max_relative_positions=-1,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        conv_kernel_size=3,
        conv_act="gelu",
    ),
}


def shapes_of(config: PreTrainedConfig) -> AutoModelForQuestionAnswering:
    """The model without arrays."""
    return nnx.eval_shape(lambda: AutoModelForQuestionAnswering(config))


def inside_one_layer(config: PreTrainedConfig, rows: int, tokens: int) -> int:
    """Bytes beside its arguments that the gradient of a model of one layer needs."""
    small = type(config)(**(config.to_dict() | {"num_hidden_layers": 1, "vocab_size": 16}))
    graphdef, params, fixed = nnx.split(shapes_of(small).with_remat(), nnx.Param, ...)
    ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    one = jax.ShapeDtypeStruct((rows,), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "start_positions": one, "end_positions": one}
    batch["valid"] = jax.ShapeDtypeStruct((rows,), jnp.bool)
    gradient = jax.jit(jax.grad(make_loss(graphdef)))
    compiled = gradient.lower(params, fixed, batch, jax.ShapeDtypeStruct((), jnp.float32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2, help="of a core's batch")
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--limit", type=float, default=16.0, help="GiB of a core")
    given = parser.parse_args()
    print(
        f"{given.cores} cores of {given.limit:g} GiB, {given.rows} x {given.tokens} tokens on each"
    )
    for name, config in MODELS.items():
        model, optimizer = shapes_of(config), make_optimizer()
        whole = bytes_of(weights_of(model).params)
        pattern = state_pattern(model, optimizer, True, given.cores)
        stacks = [module for _, module in nnx.iter_modules(model) if isinstance(module, Stack)]
        layers = [bytes_of(nnx.state(layer)) for stack in stacks for layer in stack]
        shards, moments = bytes_of(pattern.params), bytes_of(pattern.opt_state)
        kept = 2 * len(layers) * given.rows * given.tokens * config.hidden_size
        parts = {
            "parameters": shards,
            "gradients": shards,
            "optimizer": moments,
            "beside the layers, with gradients": 2 * (whole - sum(layers)),
            "layers' inputs, bfloat16": kept,
            "one layer, with its gradient": 2 * max(layers)
            + inside_one_layer(config, given.rows, given.tokens),
        }
        total = sum(parts.values())
        print(f"\n{name}: {whole // 4:,} parameters, {4 * whole / GIB:.1f} GiB replicated")
        for part, size in parts.items():
            print(f"  {part:36}{size / GIB:8.2f} GiB")
        print(f"  {'in all':36}{total / GIB:8.2f} GiB, fits: {total <= given.limit * GIB}")


if __name__ == "__main__":
    main()
