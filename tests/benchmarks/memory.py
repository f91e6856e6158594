"""What fine-tuning an encoder takes of each core: no array of its size is made.

    python tests/benchmarks/memory.py                  # --shard_params, on paper
    python tests/benchmarks/memory.py --tpu v5e:2x4    # needs `pip install libtpu`, but no TPU

On paper: parameters, gradients and AdamW's state are those of `memory.abstract_state`, to the byte.
Beside them a core holds what `--shard_params` puts together: all that is beside the layers and the
table of words, with its gradient, and one layer at a time; and the activations that `--bf16` and
checkpointing leave: each layer's input, and one layer's inside, as XLA compiles it for a CPU in
float32, which is more than a TPU needs in bfloat16.

With --tpu the whole step is compiled by the TPU's own compiler, which tells what it reserves; also
those of the models of `tpu_scripts/recipes`, as they are run: on every core whole, without
checkpointing. That takes minutes each; --layers makes the encoders smaller.
"""

import argparse
import os
import time
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu: this machine is no TPU VM

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
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
    """An encoder, and how it is trained."""

    config: PreTrainedConfig
    rows: int = 2
    """Of a core's batch."""
    is_divided: bool = True


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
    "google-bert/bert-base-uncased": Case(BertConfig(), 6, False),
    "google-bert/bert-large-uncased": Case(BertConfig(**LARGE), 4, False),
    "FacebookAI/roberta-base": Case(RobertaConfig(**ROBERTA), 6, False),
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
    "answerdotai/ModernBERT-base": Case(ModernBertConfig(), 6, False),
    "FacebookAI/xlm-roberta-large": Case(XLMRobertaConfig(**XLM_R | LARGE), 2, False),
}


def shapes_of(config: PreTrainedConfig, dtype: str = "float32") -> AutoModelForQuestionAnswering:
    """The model without arrays."""
    graphdef, state = nnx.split(AutoModelForQuestionAnswering(config, dtype=dtype))
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), state)
    return nnx.merge(graphdef, shapes)


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
    abstract = abstract_state(model, make_optimizer(), True, cores)
    stacks = [module for _, module in nnx.iter_modules(model) if isinstance(module, Stack)]
    layers = [bytes_of(nnx.state(layer)) for stack in stacks for layer in stack]
    beside = bytes_of(weights_of(model).params) - sum(layers)
    words = 4 * config.vocab_size * config.hidden_size  # looked up where their rows are
    shards, moments = bytes_of(abstract.params), bytes_of(abstract.opt_state)
    return {
        "parameters": shards,
        "gradients": shards,
        "optimizer": moments,
        "beside layers and words, with gradients": 2 * (beside - words),
        "layers' inputs, bfloat16": 2 * len(layers) * rows * tokens * config.hidden_size,
        "one layer, with its gradient": 2 * max(layers) + inside_one_layer(config, rows, tokens),
    }


def compiled_for(topology: str, case: Case, tokens: int) -> MemoryPlan:
    """The same, as the compiler of a TPU of this topology has it."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    model, optimizer = shapes_of(case.config, "bfloat16"), make_optimizer()
    model = model.with_remat() if case.is_divided else model
    abstract = abstract_state(model, optimizer, case.is_divided, len(devices))
    step = make_train_step(nnx.graphdef(model), optimizer)
    step = parallel.over_cores(step, (0, 0, None, None), (0, None), donate=True, devices=devices)
    each = len(devices), 1, case.rows
    ids = jax.ShapeDtypeStruct((*each, tokens), jnp.int32)
    one = jax.ShapeDtypeStruct(each, jnp.int32)
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ids)
    batch |= {"start_positions": one, "end_positions": one}
    batch["valid"] = jax.ShapeDtypeStruct(each, jnp.bool)
    state = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((len(devices), *a.shape), a.dtype), abstract
    )
    key = jax.eval_shape(lambda: parallel.run_key(0))
    lowered = step.lower(state, batch, jax.ShapeDtypeStruct((), jnp.float32), key)
    return memory_plan(abstract, lowered.compile())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=8)
    parser.add_argument("--rows", type=int, help="of a core's batch, if not each model's own")
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--limit", type=float, default=16.0, help="GiB of a core")
    parser.add_argument("--tpu", help="the topology to compile for, such as v5e:2x4")
    parser.add_argument("--layers", type=int, help="of smaller encoders")
    parser.add_argument("--models", nargs="+", choices=CASES, help="by default all")
    given = parser.parse_args()
    print(f"{given.tpu or f'{given.cores} cores'}, {given.limit:g} GiB a core")
    for name in given.models or [n for n in CASES if given.tpu or CASES[n].is_divided]:
        case, began = CASES[name], time.monotonic()
        case = case._replace(
            config=with_layers(case.config, given.layers or case.config.num_hidden_layers),
            rows=given.rows or case.rows,
        )
        whole = bytes_of(weights_of(shapes_of(case.config)).params)
        kind = "divided, checkpointed" if case.is_divided else "whole"
        print(f"\n{name}: {whole // 4:,} parameters, {kind}, {case.rows} x {given.tokens} tokens")
        if given.tpu:
            parts = compiled_for(given.tpu, case, given.tokens)._asdict()
        else:
            parts = on_paper(case.config, given.cores, case.rows, given.tokens)
        for part, size in parts.items():
            print(f"  {part:40}{size / GIB:8.2f} GiB")
        total = sum(parts.values())
        print(f"  {'in all':40}{total / GIB:8.2f} GiB, fits: {total <= given.limit * GIB}")
        if case.is_divided:
            print(f"  {'each core holding all, no activations':40}{4 * whole / GIB:8.2f} GiB")
        print(f"  in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
