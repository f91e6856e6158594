"""Print what the TPU's compiler says about the training and the evaluation step; no TPU is needed.

    pip install libtpu
    python tests/benchmarks/tpu_compiler.py --topology v5e:2x4 --model base --rows 8

[C] is an estimate of the compiler, [A] is arithmetic from the compiled program and the figures of
the chip; nothing is measured. Cycles leave out collectives, copies that run beside the computation,
kernels and the random generator. A model of BERT-base's size takes about 3 minutes for each step on
two cores; `--layers 1` shortens that.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import jax
import jax.numpy as jnp
from flax import nnx
from memory import shapes_of, with_layers
from tpu_program import TpuProgram
from tpu_topology import cores_of, obstacle
from transformers import BertConfig

from qa_flax.device import parallel
from qa_flax.device import step as step_module
from qa_flax.device.memory import GIB, abstract_state
from qa_flax.device.optim import make_optimizer
from qa_flax.device.step import Reduction, make_eval_step, make_train_step
from qa_flax.models.tracing import DROPOUT_BITS

LARGE: dict[str, Any] = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
MODELS = {"base": BertConfig(), "large": BertConfig(num_hidden_layers=24, **LARGE)}
PLACES = 4  # windows in a packed row, at most


class Chip(NamedTuple):
    """Figures of a TPU's core, from its data sheet."""

    flops: float  # bfloat16, in a second
    hbm: float  # bytes in a second
    clock: float
    link: float  # bytes in a second that a ring without wrap-around sends


CHIPS = {"v5e": Chip(197e12, 819e9, 1.5e9, 100e9)}


class Compiled(NamedTuple):
    """A compiled step and how long the compiler took."""

    step: str
    program: TpuProgram
    compiled: Any
    seconds: float


def main() -> None:
    args = arguments()
    if (reason := obstacle()) is not None:
        sys.exit(reason)
    devices, chip = cores_of(args.topology), CHIPS[args.topology.split(":")[0]]
    config = MODELS[args.model]
    layers = args.layers or config.num_hidden_layers
    config = with_layers(config, layers)
    if args.rows_at_once is not None:
        step_module.TOKENS_AT_ONCE["tpu"] = args.rows_at_once * args.tokens
    shape = f"{args.rows} {'packed ' if args.packed else ''}rows of {args.tokens} tokens a core"
    print(f"BERT-{args.model}, {layers} layers, bfloat16, {shape}, {args.topology}, ", end="")
    print(f"jax {jax.__version__}", flush=True)
    for step, lower in STEPS.items():
        if args.step not in (step, "both"):
            continue
        began = time.monotonic()
        compiled = lower(args, config, devices).compile()
        seconds = time.monotonic() - began
        text = compiled.as_text()
        if args.save is not None:
            Path(f"{args.save}.{step}.txt").write_text(text)
        report(args, config, chip, Compiled(step, TpuProgram(text), compiled, seconds))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--topology", default="v5e:2x4", help="chips and how they are connected")
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--layers", type=int, help="shorten the model to so many layers")
    parser.add_argument("--rows", type=int, default=8, help="rows on each core")
    parser.add_argument("--tokens", type=int, default=384, help="tokens of a row")
    parser.add_argument("--packed", action="store_true", help="several windows in a row")
    parser.add_argument("--step", choices=[*STEPS, "both"], default="both")
    parser.add_argument("--unpadded", action="store_true", help="without padding of the tables")
    parser.add_argument("--rows_at_once", type=int, help="of a block; default: the package's")
    parser.add_argument("--bf16_gradients", action="store_true")
    parser.add_argument("--dropout_bits", choices=DROPOUT_BITS, default="hash")
    parser.add_argument("--save", help="write the programs to SAVE.train.txt and SAVE.eval.txt")
    args = parser.parse_args()
    if args.topology.split(":")[0] not in CHIPS:
        parser.error(f"--topology {args.topology}: choose one of {', '.join(CHIPS)}, as in v5e:2x4")
    for name in ("layers", "rows", "tokens", "rows_at_once"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return args


# ---- the steps -----------------------------------------------------------------------------------


def lowered_train(args: argparse.Namespace, config: BertConfig, devices: list[Any]) -> Any:
    model, optimizer = shapes_of(config, "bfloat16"), make_optimizer(weight_decay=0.01)
    state = abstract_state(model, optimizer, False, len(devices), is_padded=not args.unpadded)
    settings = {"bf16_gradients": args.bf16_gradients, "dropout_bits": args.dropout_bits}
    step = make_train_step(nnx.graphdef(model), optimizer, **settings)

    def with_key(state: Any, batch: Any, rate: Any, data: Any) -> Any:
        return step(state, batch, rate, parallel.wrap_key(data))

    mapped = parallel.over_cores(with_key, (0, 0, 0, 0), (0, None), donate=True, devices=devices)
    data = jax.eval_shape(lambda: jax.random.key_data(parallel.run_key(0)))
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    on = partial(on_cores, len(devices))
    return mapped.lower(on(state), on(batch_of(args), 1), on(rate), on(data))


def lowered_eval(args: argparse.Namespace, config: BertConfig, devices: list[Any]) -> Any:
    model = shapes_of(config, "bfloat16")
    state = abstract_state(model, make_optimizer(), False, is_padded=not args.unpadded)
    step = make_eval_step(nnx.graphdef(model), Reduction(20, -1e4, finite=True))
    mapped = parallel.over_cores(step, (0, 0), 0, devices=devices)
    batch = batch_of(args)
    batch["null_positions"] = batch["start_positions"]
    on = partial(on_cores, len(devices))
    return mapped.lower(on(state.weights), on(batch))


STEPS: dict[str, Callable[..., Any]] = {"train": lowered_train, "eval": lowered_eval}


def batch_of(args: argparse.Namespace) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of one core's rows."""
    names = ["input_ids", "attention_mask", "token_type_ids", *["segment_ids"] * args.packed]
    tokens = jax.ShapeDtypeStruct((args.rows, args.tokens), jnp.int32)
    places = (args.rows, PLACES) if args.packed else (args.rows,)
    label = jax.ShapeDtypeStruct(places, jnp.int32)
    batch = dict.fromkeys(names, tokens) | {"start_positions": label, "end_positions": label}
    return batch | {"valid": jax.ShapeDtypeStruct(places, jnp.bool)}


def on_cores(cores: int, tree: Any, *axes: int) -> Any:
    """Shapes and dtypes of arrays with an axis of the cores and then `axes` before their own."""
    axes = cores, *axes
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*axes, *a.shape), a.dtype), tree)


# ---- the figures ---------------------------------------------------------------------------------


def report(args: argparse.Namespace, config: BertConfig, chip: Chip, result: Compiled) -> None:
    """Print the figures of a step."""
    program, memory = result.program, result.compiled.memory_analysis()
    flops = result.compiled.cost_analysis()["flops"]
    total = sum(program.cycles.values())
    compute = total / chip.clock
    print(f"\n{result.step} step, compiled in {result.seconds:.0f} s")
    once = ", a loop's body counted once" if program.loops else ""
    line("flops", f"{flops / 1e12:.3f} T, {1e3 * flops / chip.flops:.1f} ms at peak{once}", "C")
    hbm = program.hbm_bytes
    line("HBM, read and written", f"{hbm / 1e9:.2f} GB, {1e3 * hbm / chip.hbm:.1f} ms", "A")
    line("cycles", f"{total / 1e6:.2f} M, {1e3 * compute:.1f} ms", "C")
    for kind, cycles in program.cycles.items():
        if not cycles:
            continue
        line(f"  {kind}", f"{cycles / 1e6:.2f} M, {cycles / total:.0%}", "C")
    products = attention_flops(config, args) * (3 if result.step == "train" else 1)
    least = products / chip.flops * chip.clock
    line(
        "  attention without its products",
        f"{(program.cycles['attention'] - least) / 1e6:.2f} M",
        "A",
    )
    seconds = collectives(program, chip, chips(args.topology))
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
    peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes / GIB
    line("peak memory", f"{peak / GIB:.2f} GiB, of it temporary {temporary:.2f}", "C")
    useful = model_flops(config, args) * (3 if result.step == "train" else 1) / chip.flops
    line("flops of the model", f"{1e3 * useful:.1f} ms at peak", "A")
    bound = f"{useful / compute:.0%} by cycles, {useful / (compute + seconds):.0%} with collectives"
    line("bound on MFU", f"{bound}, {useful / (hbm / chip.hbm):.0%} by HBM alone", "A")


def collectives(program: TpuProgram, chip: Chip, count: int) -> float:
    """Print a line for each kind of collective; return how long all of them take, in seconds."""
    total = 0.0
    for opcode in sorted({c.opcode for c in program.collectives}):
        own = [c for c in program.collectives if c.opcode == opcode]
        size = sum(c.bytes for c in own)
        by_dtype = {d for c in own for d in c.bytes_by_dtype}
        # A ring sends each byte (n - 1) / n times, and an all-reduce does so twice.
        sent = size * (count - 1) / count * (2 if opcode.startswith("all-reduce") else 1)
        total += sent / chip.link
        form = "asynchronous" if any(c.is_asynchronous for c in own) else "synchronous"
        name = f"{sum(c.runs for c in own)} x {opcode}"
        line(name, f"{size / 1e6:.1f} MB in {', '.join(sorted(by_dtype))}, {form}", "C")
        line("  sent over links", f"{sent / 1e6:.1f} MB, {1e3 * sent / chip.link:.1f} ms", "A")
    return total


def line(name: str, value: str, label: str) -> None:
    print(f"  {name:<34} {value} [{label}]", flush=True)


def chips(topology: str) -> int:
    x, y = map(int, re.findall(r"\d+", topology.split(":")[1]))
    return x * y


def model_flops(config: BertConfig, args: argparse.Namespace) -> float:
    """Of a forward pass of one core's rows, as used for MFU: matrix products of all tokens."""
    h, f = config.hidden_size, config.intermediate_size
    dense = 2 * config.num_hidden_layers * (4 * h * h + 2 * h * f) * args.rows * args.tokens
    return dense + attention_flops(config, args)


def attention_flops(config: BertConfig, args: argparse.Namespace) -> float:
    """Of the scores and the mixing of a forward pass."""
    each = 4 * config.hidden_size * args.tokens * args.tokens
    return config.num_hidden_layers * args.rows * each


if __name__ == "__main__":
    main()
