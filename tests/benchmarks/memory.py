"""Estimate the memory per core for fine-tuning large encoders, without allocating their arrays.

    python tests/benchmarks/memory.py                  # estimate for --shard_params
    python tests/benchmarks/memory.py --tpu v5e:2x4    # needs `pip install libtpu`, but no TPU

The estimate has exact sizes of parameters, gradients and AdamW's state (`memory.abstract_state`).
It adds what `--shard_params` all-gathers: all parameters except the layers and the word embeddings,
with their gradients, and one layer at a time. It also adds the activations that remain with
`--bf16` and gradient checkpointing: the input of each layer, and the temporary memory of one layer.
XLA reports the latter for a CPU in float32, which is more than a TPU needs in bfloat16.

With --tpu the TPU's compiler compiles the whole training step and reports the memory it reserves.
This includes the models of `tpu_scripts/recipes` as the recipes train them: with a full replica on
every core, without gradient checkpointing. Each model takes minutes; --layers makes it smaller.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import jax
import jax.numpy as jnp
from flax import nnx
from tpu_topology import cores_of, obstacle
from transformers import (
    BertConfig,
    DebertaV2Config,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
    XLMRobertaXLConfig,
)

from qa_flax.device import parallel
from qa_flax.device.memory import MemoryPlan, abstract_state, memory_plan
from qa_flax.device.optim import make_optimizer
from qa_flax.device.step import make_loss, make_train_step, weights_of
from qa_flax.models.blocks import Stack
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.sharding import bytes_of

GIB = 1 << 30


class Case(NamedTuple):
    """An encoder and how it is trained."""

    config: PreTrainedConfig
    rows: int = 2
    """Batch size per core."""
    is_sharded: bool = True
    """Train with sharded parameters and gradient checkpointing, else with a replica per core."""


DEBERTA = {
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
XLM_R = ROBERTA | {"vocab_size": 250002}
CASES = {
    "facebook/xlm-roberta-xl": Case(XLMRobertaXLConfig()),
    "microsoft/deberta-v2-xxlarge": Case(
        DebertaV2Config(
            vocab_size=128100,
            hidden_size=1536,
            num_hidden_layers=48,
            num_attention_heads=24,
            intermediate_size=6144,
            conv_kernel_size=3,
            conv_act="gelu",
            **DEBERTA,
        )
    ),
    "google-bert/bert-base-uncased": Case(BertConfig(), 8, False),
    "google-bert/bert-large-uncased": Case(BertConfig(**LARGE), 6, False),
    "FacebookAI/roberta-base": Case(RobertaConfig(**ROBERTA), 8, False),
    "microsoft/deberta-v3-base": Case(
        DebertaV2Config(
            vocab_size=128100,
            hidden_size=768,
            num_attention_heads=12,
            intermediate_size=3072,
            num_hidden_layers=12,
            **DEBERTA,
        ),
        4,
        False,
    ),
    "answerdotai/ModernBERT-base": Case(ModernBertConfig(), 8, False),
    "FacebookAI/xlm-roberta-large": Case(XLMRobertaConfig(**XLM_R | LARGE), 2, False),
}


def shapes_of(config: PreTrainedConfig, dtype: str = "float32") -> AutoModelForQuestionAnswering:
    """Build a model that has shapes and dtypes instead of arrays."""
    graphdef, state = nnx.split(AutoModelForQuestionAnswering(config, dtype=dtype))
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), state)
    return nnx.merge(graphdef, shapes)


def with_layers(config: PreTrainedConfig, layers: int, **changes: int) -> PreTrainedConfig:
    """Return the same config with another number of layers."""
    return type(config)(**(config.to_dict() | {"num_hidden_layers": layers} | changes))


def temporary_memory_of_one_layer(config: PreTrainedConfig, rows: int, tokens: int) -> int:
    """Return the temporary memory, in bytes, of the gradient of a model with one layer."""
    small = shapes_of(with_layers(config, 1, vocab_size=16))
    graphdef, params, other = nnx.split(small.with_remat(), nnx.Param, ...)
    ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    label = jax.ShapeDtypeStruct((rows,), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids}
    batch |= {"start_positions": label, "end_positions": label}
    batch["valid"] = jax.ShapeDtypeStruct((rows,), jnp.bool)
    gradient = jax.jit(jax.grad(make_loss(graphdef)))
    compiled = gradient.lower(params, other, batch, jax.ShapeDtypeStruct((), jnp.float32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def estimate(config: PreTrainedConfig, cores: int, rows: int, tokens: int) -> dict[str, int]:
    """Return the bytes on each core by purpose."""
    model = shapes_of(config)
    abstract = abstract_state(model, make_optimizer(), True, cores)
    stacks = [module for _, module in nnx.iter_modules(model) if isinstance(module, Stack)]
    layers = [bytes_of(nnx.state(layer)) for stack in stacks for layer in stack]
    other = bytes_of(weights_of(model).params) - sum(layers)
    # Word embeddings are not all-gathered: each core looks up the rows of its own shard.
    embeddings = 4 * config.vocab_size * config.hidden_size
    one_layer = 2 * max(layers) + temporary_memory_of_one_layer(config, rows, tokens)
    shards, moments = bytes_of(abstract.params), bytes_of(abstract.opt_state)
    return {
        "parameters": shards,
        "gradients": shards,
        "optimizer": moments,
        "all-gathered parameters, gradients": 2 * (other - embeddings),
        "layers' inputs, bfloat16": 2 * len(layers) * rows * tokens * config.hidden_size,
        "one layer, with its gradient": one_layer,
    }


def compiled_for(topology: str, case: Case, tokens: int) -> MemoryPlan:
    """Compile the training step for a TPU topology; return the memory that the compiler reports."""
    devices = cores_of(topology)
    model, optimizer = shapes_of(case.config, "bfloat16"), make_optimizer()
    model = model.with_remat() if case.is_sharded else model
    abstract = abstract_state(model, optimizer, case.is_sharded, len(devices), is_padded=True)
    step = make_train_step(nnx.graphdef(model), optimizer)
    step = parallel.over_cores(step, (0, 0, None, None), (0, None), donate=True, devices=devices)
    shape = len(devices), 1, case.rows
    ids = jax.ShapeDtypeStruct((*shape, tokens), jnp.int32)
    label = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids)
    batch |= {"start_positions": label, "end_positions": label}
    batch["valid"] = jax.ShapeDtypeStruct(shape, jnp.bool)
    state = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((len(devices), *a.shape), a.dtype), abstract
    )
    key = jax.eval_shape(lambda: parallel.run_key(0))
    lowered = step.lower(state, batch, jax.ShapeDtypeStruct((), jnp.float32), key)
    return memory_plan(abstract, lowered.compile())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=8)
    parser.add_argument("--rows", type=int, help="batch size per core (default: the model's)")
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--limit", type=float, default=16.0, help="memory of a core in GiB")
    parser.add_argument("--tpu", help="the topology to compile for, such as v5e:2x4")
    parser.add_argument("--layers", type=int, help="reduce the encoders to this many layers")
    parser.add_argument("--models", nargs="+", choices=CASES, help="default: all")
    arguments = parser.parse_args()
    if arguments.tpu and (reason := obstacle()) is not None:
        sys.exit(reason)
    print(f"{arguments.tpu or f'{arguments.cores} cores'}, {arguments.limit:g} GiB a core")
    for name in arguments.models or [n for n in CASES if arguments.tpu or CASES[n].is_sharded]:
        case, started = CASES[name], time.monotonic()
        case = case._replace(
            config=with_layers(case.config, arguments.layers or case.config.num_hidden_layers),
            rows=arguments.rows or case.rows,
        )
        weights = bytes_of(weights_of(shapes_of(case.config)).params)
        kind = "sharded, checkpointed" if case.is_sharded else "replicated"
        size = f"{case.rows} x {arguments.tokens} tokens"
        print(f"\n{name}: {weights // 4:,} parameters, {kind}, {size}")
        if arguments.tpu:
            parts = compiled_for(arguments.tpu, case, arguments.tokens)._asdict()
        else:
            parts = estimate(case.config, arguments.cores, case.rows, arguments.tokens)
        for part, size in parts.items():
            print(f"  {part:40}{size / GIB:8.2f} GiB")
        total = sum(parts.values())
        print(f"  {'total':40}{total / GIB:8.2f} GiB, fits: {total <= arguments.limit * GIB}")
        if case.is_sharded:
            print(f"  {'replicated, without activations':40}{4 * weights / GIB:8.2f} GiB")
        print(f"  in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
