"""What fine-tuning a large encoder takes of each core: no array of its size is made.

    python tests/benchmarks/memory.py [--cores 8] [--rows 2] [--tokens 384]
    python tests/benchmarks/memory.py --tpu v5e:2x4    # needs `pip install libtpu`, but no TPU

On paper: parameters, gradients and AdamW's state are those of `memory.state_pattern`, to the byte.
Beside them a core holds what `--shard_params` puts together: all that is beside the layers and the
table of words, with its gradient, and one layer at a time; and the activations that `--bf16` and
checkpointing leave: each layer's input, and one layer's inside, as XLA compiles it for a CPU in
float32, which is more than a TPU needs in bfloat16.

With --tpu the whole step is compiled by the TPU's own compiler, which tells what it reserves. That
takes minutes to an hour; --layers makes the encoder smaller.
"""

import argparse
import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu: this machine is no TPU VM

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from transformers import DebertaV2Config, PreTrainedConfig, XLMRobertaXLConfig

from qa_flax import parallel
from qa_flax.memory import memory_plan, state_pattern
from qa_flax.models.hf import AutoModelForQuestionAnswering
from qa_flax.models.layers import Stack
from qa_flax.optim import make_optimizer
from qa_flax.sharding import CORES, bytes_of
from qa_flax.step import make_loss, make_train_step, weights_of

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


def shapes_of(config: PreTrainedConfig, dtype: str = "float32") -> AutoModelForQuestionAnswering:
    """The model without arrays."""
    return nnx.eval_shape(lambda: AutoModelForQuestionAnswering(config, dtype=dtype))


def with_layers(config: PreTrainedConfig, layers: int, **changes: int) -> PreTrainedConfig:
    """The same encoder with another number of layers."""
    return type(config)(**(config.to_dict() | {"num_hidden_layers": layers} | changes))


def inside_one_layer(config: PreTrainedConfig, rows: int, tokens: int) -> int:
    """Bytes beside its arguments that the gradient of a model of one layer needs."""
    small = shapes_of(with_layers(config, 1, vocab_size=16))
    graphdef, params, fixed = nnx.split(small.with_remat(), nnx.Param, ...)
    ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    one = jax.ShapeDtypeStruct((rows,), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "start_positions": one, "end_positions": one}
    batch["valid"] = jax.ShapeDtypeStruct((rows,), jnp.bool)
    gradient = jax.jit(jax.grad(make_loss(graphdef)))
    compiled = gradient.lower(params, fixed, batch, jax.ShapeDtypeStruct((), jnp.float32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def on_paper(config: PreTrainedConfig, cores: int, rows: int, tokens: int) -> dict[str, int]:
    """Bytes on each core by what they are of."""
    model = shapes_of(config)
    pattern = state_pattern(model, make_optimizer(), True, cores)
    stacks = [module for _, module in nnx.iter_modules(model) if isinstance(module, Stack)]
    layers = [bytes_of(nnx.state(layer)) for stack in stacks for layer in stack]
    beside = bytes_of(weights_of(model).params) - sum(layers)
    words = 4 * config.vocab_size * config.hidden_size  # looked up where their rows are
    shards, moments = bytes_of(pattern.params), bytes_of(pattern.opt_state)
    return {
        "parameters": shards,
        "gradients": shards,
        "optimizer": moments,
        "beside layers and words, with gradients": 2 * (beside - words),
        "layers' inputs, bfloat16": 2 * len(layers) * rows * tokens * config.hidden_size,
        "one layer, with its gradient": 2 * max(layers) + inside_one_layer(config, rows, tokens),
    }


def compiled_for(topology: str, config: PreTrainedConfig, rows: int, tokens: int) -> dict[str, int]:
    """The same, as the compiler of a TPU of this topology has it."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    model, optimizer = shapes_of(config, "bfloat16").with_remat(), make_optimizer()
    pattern = state_pattern(model, optimizer, True, len(devices))
    step = make_train_step(nnx.graphdef(model), optimizer)
    step = jax.pmap(
        step,
        axis_name=CORES,
        in_axes=(0, 0, None, None),
        out_axes=(0, None),
        donate_argnums=0,
        devices=devices,
    )
    each = len(devices), 1, rows
    ids = jax.ShapeDtypeStruct((*each, tokens), jnp.int32)
    one = jax.ShapeDtypeStruct(each, jnp.int32)
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids)
    batch |= {"start_positions": one, "end_positions": one}
    batch["valid"] = jax.ShapeDtypeStruct(each, jnp.bool)
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct((len(devices), *a.shape), a.dtype), pattern)
    key = jax.eval_shape(lambda: parallel.run_key(0))
    lowered = step.lower(state, batch, jax.ShapeDtypeStruct((), jnp.float32), key)
    return memory_plan(pattern, lowered.compile())._asdict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2, help="of a core's batch")
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--limit", type=float, default=16.0, help="GiB of a core")
    parser.add_argument("--tpu", help="the topology to compile for, such as v5e:2x4")
    parser.add_argument("--layers", type=int, help="of a smaller encoder")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    given = parser.parse_args()
    place = given.tpu or f"{given.cores} cores"
    print(f"{place}, {given.limit:g} GiB a core, {given.rows} x {given.tokens} tokens on each")
    for name in given.models:
        config = MODELS[name]
        config = with_layers(config, given.layers or config.num_hidden_layers)
        whole = bytes_of(weights_of(shapes_of(config)).params)
        print(f"\n{name}: {whole // 4:,} parameters, {4 * whole / GIB:.1f} GiB replicated")
        began = time.monotonic()
        if given.tpu:
            parts = compiled_for(given.tpu, config, given.rows, given.tokens)
        else:
            parts = on_paper(config, given.cores, given.rows, given.tokens)
        for part, size in parts.items():
            print(f"  {part:40}{size / GIB:8.2f} GiB")
        total = sum(parts.values())
        print(f"  {'in all':40}{total / GIB:8.2f} GiB, fits: {total <= given.limit * GIB}")
        if given.tpu:
            print(f"  compiled in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
