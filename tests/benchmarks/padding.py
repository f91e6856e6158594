"""How far a row's logits depend on the padding behind it, in PyTorch. Needs the `parity` extra.

    python tests/benchmarks/padding.py [FAMILY ...]

A row of 49 tokens is computed with 0, 1, 7, 15 and 31 tokens of padding by a model of 4 layers
(Funnel: 3 blocks of 2) of 64 units with large random weights, in float32. Printed is the largest
difference of a start logit from the logits with 15 tokens of padding, relative to their scale. It
is far above rounding for the families that `docs/families.md` lists as not supported.
"""

import argparse
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForQuestionAnswering

_BERT: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES: dict[str, dict[str, Any]] = {
    "bert": _BERT | {"intermediate_size": 128},
    "nystromformer": _BERT | {"intermediate_size": 128},
    "funnel": {
        **{"d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128},
        "block_sizes": [2, 2, 2],
    },
}
LENGTH, USUAL = 49, 15
PADDING = (0, 1, 7, 31)


def main() -> None:
    parser = argparse.ArgumentParser(description="A row's logits and the padding behind it.")
    parser.add_argument("families", nargs="*", default=list(SIZES))
    transformers.logging.set_verbosity_error()
    print("| family |", " | ".join(f"{n} of padding" for n in PADDING), "|")
    print("|---" * (1 + len(PADDING)) + "|")
    for family in parser.parse_args().families:
        errors = " | ".join(f"{error:.1e}" for error in differences(family))
        print("|", family, "|", errors, "|", flush=True)


def differences(family: str) -> list[float]:
    """Return the largest difference for each number of padding tokens."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=40, **SIZES[family])
    model = AutoModelForQuestionAnswering.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.dim() == 1:  # the scale of a norm
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    ids = torch.randint(2, 40, (1, LENGTH))

    def logits(padding: int) -> torch.Tensor:
        row = torch.nn.functional.pad(ids, (0, padding), value=config.pad_token_id or 0)
        mask = (torch.arange(LENGTH + padding) < LENGTH).long()[None]
        with torch.no_grad():
            return model(input_ids=row, attention_mask=mask).start_logits[0, :LENGTH]

    usual = logits(USUAL)
    scale = usual.abs().max()
    return [((logits(n) - usual).abs().max() / scale).item() for n in PADDING]


if __name__ == "__main__":
    main()
