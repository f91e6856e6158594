"""Compare every model family with PyTorch: largest errors and speed. Needs the `parity` extra.

    python tests/benchmarks/families.py [FAMILY ...] [--length 384] [--batch 4] [--repeats 20]
        [--speed_only]

Errors are measured with large random weights (`support/loud.py`), over all settings of the family's
test case. The logits' error is relative to their scale, the gradients' error to each parameter's
largest gradient. Speed is measured with 4 layers of 256, 4 heads and otherwise the family's default
configuration: the evaluation step for rows without padding, in float32, alternating with PyTorch's
forward pass, on all CPU cores that each uses. Windows per second are the medians of `--repeats`
calls, and the ratio is the median of the calls' ratios. Prints a Markdown table.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.append(str(Path(__file__).parents[1] / "support"))

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from cases import CASES
from flax import nnx
from loud import batch_of, gradient_error, loud_model, relative_error, torch_gradients
from transformers import AutoConfig

from qa_flax.device import parallel
from qa_flax.device.step import Weights, make_eval_step
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.qa import span_losses

SIZES = {
    **dict.fromkeys(("hidden_size", "dim", "d_model"), 256),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "encoder_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_layers", "num_decoder_layers", "num_heads"), 4),
    **dict.fromkeys(("num_attention_heads", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "hidden_dim"), 1024),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 1024),
    "embedding_size": 256,
}
# Where the family's checkpoints differ from its default configuration.
EXTRA: dict[str, dict[str, Any]] = {
    "deberta": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
    },
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "max_relative_positions": -1,
    },
    "modernbert": {"intermediate_size": 384},
    "luke": {"entity_vocab_size": 100},  # rows have no entities
    "t5": {"decoder_start_token_id": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", default=list(CASES))
    parser.add_argument("--length", type=int, default=384)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--speed_only", action="store_true")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("| family | logits' error | gradients' error | windows/s | PyTorch, windows/s | ratio |")
    print("|---|---|---|---|---|---|")
    for family in arguments.families:
        errors = ["", ""]
        if not arguments.speed_only:
            errors = [f"{error:.1e}" for error in (logits_error(family), gradients_error(family))]
        seconds, torch_seconds = times(family, arguments)
        print(
            f"| {family} | {errors[0]} | {errors[1]} | {arguments.batch / np.median(seconds):.1f} "
            f"| {arguments.batch / np.median(torch_seconds):.1f} "
            f"| {np.median(torch_seconds / seconds):.2f}x |",
            flush=True,
        )


def in_torch(model: AutoModelForQuestionAnswering) -> Any:
    """Load the same model in PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in batch.items()}


def logits_error(family: str) -> float:
    """Return the largest error over all settings, lengths, and start and end logits."""
    case, errors = CASES[family], []
    fields = [{n: v} for n, v in case.changed.items() if "dropout" not in n and "init" not in n]
    for changes in ({}, *fields, *case.variations):
        model = loud_model(4, family=family, **changes)
        torch_model = in_torch(model)
        for length in case.lengths:
            batch = batch_of(family, length, **changes)
            with torch.no_grad():
                expected = torch_model(**tensors(batch))
            actual = model(**batch)
            for side in ("start_logits", "end_logits"):
                errors.append(relative_error(getattr(actual, side), getattr(expected, side)))
    return max(errors)


def gradients_error(family: str) -> float:
    """Return the largest error over all parameters whose gradient is not zero up to rounding."""
    model, batch = loud_model(5, family=family), batch_of(family, 12, 4)
    start, end = np.array([3, 0, 2, 1]), np.array([5, 9, 4, 0])
    torch_model = in_torch(model)
    labels = {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
    torch_model(**tensors(batch), **labels).loss.backward()
    graphdef, params, other = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def loss(params: Any) -> Any:
        logits = nnx.merge(graphdef, params, other).span_logits(**batch)
        return span_losses(logits, jnp.array(start), jnp.array(end)).mean()

    expected = {n: p.grad.numpy() for n, p in torch_model.named_parameters() if p.grad is not None}
    return gradient_error(torch_gradients(jax.grad(loss)(params), family), expected)


def times(family: str, arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return the seconds of each call of our evaluation step and of PyTorch's model.

    Raises:
        AssertionError: their logits differ.
    """
    fields = AutoConfig.for_model(family).to_dict()
    sizes = {name: value for name, value in SIZES.items() if name in fields}
    config = AutoConfig.for_model(family, **sizes | EXTRA.get(family, {}))
    model = AutoModelForQuestionAnswering.from_config(config)
    torch_model = in_torch(model)
    shape, most = (arguments.batch, arguments.length), min(30000, config.vocab_size)
    ids = np.random.default_rng(0).integers(5, most, shape)
    if CASES[family].needs_separators:
        ids[:, [12, 13, -1]] = config.sep_token_id
    batch = {"input_ids": ids.astype(np.int32), "attention_mask": np.ones_like(ids, np.int32)}
    torch_batch = tensors({name: values.astype(np.int64) for name, values in batch.items()})
    graphdef, params, fixed = nnx.split(model, nnx.Param, ...)
    step = parallel.over_cores(make_eval_step(graphdef), (0, 0), 0, devices=jax.devices()[:1])
    # The axis of the cores comes first.
    weights = jax.tree.map(lambda array: jnp.asarray(array)[None], Weights(params, fixed))
    inputs = {name: values[None] for name, values in batch.items()}

    def run_ours() -> np.ndarray:
        return np.asarray(step(weights, inputs).logits.start[0])

    def run_torch() -> np.ndarray:
        with torch.inference_mode():
            return torch_model(**torch_batch).start_logits.numpy()

    error = relative_error(run_ours(), run_torch())
    if error > 1e-3:
        raise AssertionError(f"{family}: the logits differ by {error:.1e}")
    seconds = np.zeros((2, arguments.repeats))
    for repeat in range(arguments.repeats):
        for side, function in enumerate((run_ours, run_torch)):
            # PyTorch's threads spin for a while after a call, and would disturb ours.
            time.sleep(0.2)
            started = time.perf_counter()
            function()
            seconds[side, repeat] = time.perf_counter() - started
    return seconds[0], seconds[1]


if __name__ == "__main__":
    main()
