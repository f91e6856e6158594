"""Every family beside PyTorch: the largest errors, and the windows a second. Needs `parity`.

    python tests/benchmarks/families.py [FAMILY ...] [--length 384] [--batch 4] [--repeats 5]
        [--speed_only]

Errors: loud random weights, over every setting of the family's test case: logits by their scale,
gradients by each parameter's largest value. Speed: 4 layers of 256, 4 heads, the family's own
defaults else; the forward pass of full rows in float32, in turn with PyTorch, the best of
`--repeats`, on all cores that each finds. Prints a Markdown table.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
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

from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.qa import span_losses

SIZES = {
    **dict.fromkeys(("hidden_size", "dim", "d_model"), 256),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "encoder_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "hidden_dim"), 1024),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 1024),
    "embedding_size": 256,
}
# Where the default is not what the family's checkpoints are.
EXTRA: dict[str, dict[str, Any]] = {
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
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", default=list(CASES))
    parser.add_argument("--length", type=int, default=384)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--speed_only", action="store_true")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print("| family | logits' error | gradients' error | windows/s | PyTorch's | ratio |")
    print("|---|---|---|---|---|---|")
    for family in arguments.families:
        errors = ["", ""]
        if not arguments.speed_only:
            errors = [f"{error:.1e}" for error in (logits_error(family), gradients_error(family))]
        ours, theirs = speeds(family, arguments)
        print(
            f"| {family} | {errors[0]} | {errors[1]} | {ours:.1f} | {theirs:.1f} "
            f"| {ours / theirs:.2f}x |",
            flush=True,
        )


def in_torch(model: AutoModelForQuestionAnswering) -> Any:
    """The same model in PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in batch.items()}


def logits_error(family: str) -> float:
    """The largest over all settings, lengths and both sides."""
    case, errors = CASES[family], []
    fields = [{n: v} for n, v in case.changed.items() if "dropout" not in n and "init" not in n]
    for changes in ({}, *fields, *case.variations):
        model = loud_model(4, family=family, **changes)
        theirs = in_torch(model)
        for length in case.lengths:
            batch = batch_of(family, length, **changes)
            with torch.no_grad():
                expected = theirs(**tensors(batch))
            ours = model(**batch)
            for side in ("start_logits", "end_logits"):
                errors.append(relative_error(getattr(ours, side), getattr(expected, side)))
    return max(errors)


def gradients_error(family: str) -> float:
    """The largest over all parameters but those that are zero but for rounding."""
    model, batch = loud_model(5, family=family), batch_of(family, 12, 4)
    start, end = np.array([3, 0, 2, 1]), np.array([5, 9, 4, 0])
    theirs = in_torch(model)
    labels = {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
    theirs(**tensors(batch), **labels).loss.backward()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def loss(params: Any) -> Any:
        logits = nnx.merge(graph, params, rest)(**batch)
        return span_losses(logits, jnp.array(start), jnp.array(end)).mean()

    expected = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.grad is not None}
    return gradient_error(torch_gradients(jax.grad(loss)(params), family), expected)


def speeds(family: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Windows a second, here and in PyTorch, once their logits were found to be equal."""
    known = AutoConfig.for_model(family).to_dict()
    sizes = {name: value for name, value in SIZES.items() if name in known}
    config = AutoConfig.for_model(family, **sizes | EXTRA.get(family, {}))
    model = AutoModelForQuestionAnswering.from_config(config)
    theirs, run = in_torch(model), nnx.jit(model)
    ids = np.random.default_rng(0).integers(5, 30000, (arguments.batch, arguments.length))
    if CASES[family].needs_separators:
        ids[:, [12, 13, -1]] = config.sep_token_id
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    given = tensors(batch)

    def here() -> np.ndarray:
        return np.asarray(run(**batch).start)

    def there() -> np.ndarray:
        with torch.inference_mode():
            return theirs(**given).start_logits.numpy()

    error = relative_error(here(), there())
    if error > 1e-3:
        raise AssertionError(f"{family}: the logits differ by {error:.1e}")
    forms: dict[str, Callable] = {"here": here, "there": there}
    best = dict.fromkeys(forms, np.inf)
    for _ in range(arguments.repeats):
        for name, form in forms.items():
            began = time.perf_counter()
            form()
            best[name] = min(best[name], time.perf_counter() - began)
    return arguments.batch / best["here"], arguments.batch / best["there"]


if __name__ == "__main__":
    main()
