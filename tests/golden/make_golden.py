"""Write golden/<family> with PyTorch transformers: a checkpoint, its logits, loss and gradients.

Also write `variations.safetensors`: the logits of `loud_model(4)` for each variation of its config.

    python tests/golden/make_golden.py [FAMILY ...]

Run it by hand; it needs the `parity` extra. The results are committed, so that the default tests
can compare with PyTorch where PyTorch is not installed.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForQuestionAnswering

sys.path.append(str(Path(__file__).parents[1] / "support"))
from cases import CASES
from loud import TESTED, batch_of, compared_lengths, golden_name, loud_model, variations

HERE = Path(__file__).parent
MADE_BY = {"made by": f"torch {torch.__version__}, transformers {transformers.__version__}"}


def make(family: str) -> None:
    """Write a random checkpoint and the outputs and gradients of one batch."""
    case = CASES[family]
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(
        AutoConfig.for_model(family, **case.sizes), attn_implementation=case.golden_attention
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.endswith("weight") and parameter.dim() == 1:  # the scale of a norm
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(HERE / family)

    length = max(case.lengths)
    lengths = torch.linspace(length, 6 if case.needs_separators else 2, 4).long()[:, None]
    mask = (torch.arange(length) < lengths).long()
    inputs = {
        "input_ids": torch.randint(1, 40, (4, length)) * mask,
        "attention_mask": mask,
        "start_positions": torch.tensor([3, 0, 4, 1]),
        "end_positions": torch.tensor([5, 7, 4, 0]),  # inside each row: Splinter bans padding
    }
    if case.needs_separators:
        ids, question = inputs["input_ids"], torch.tensor([[2], [1], [3], [2]])
        ids[ids == model.config.sep_token_id] = 1
        for index in (question, question + 1, lengths - 1):
            ids.scatter_(1, index, model.config.sep_token_id)
    if case.types:
        inputs["token_type_ids"] = torch.randint(0, case.types, (4, length)) * mask
    output = model(**inputs)
    output.loss.backward()
    gradients = {
        f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None
    }
    save_file(
        {
            **{name: value.int() for name, value in inputs.items()},
            "start_logits": output.start_logits.detach().contiguous(),
            "end_logits": output.end_logits.detach().contiguous(),
            "loss": output.loss.detach(),
            **gradients,
        },
        HERE / family / "expected.safetensors",
        MADE_BY,
    )


def make_variations(family: str) -> None:
    """Write the logits of every variation and row length that the tests compare."""
    logits = {}
    for changes in variations(family):
        with tempfile.TemporaryDirectory() as folder:
            loud_model(4, family=family, **changes).save_pretrained(folder)
            model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
        for length in compared_lengths(family, changes):
            batch = batch_of(family, length, **changes)
            with torch.no_grad():
                output = model(**{name: torch.tensor(values) for name, values in batch.items()})
            for side in ("start", "end"):
                name = golden_name(changes, length, side)
                logits[name] = output[f"{side}_logits"].contiguous()
    save_file(logits, HERE / family / "variations.safetensors", MADE_BY)


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        make(name)
        if name in TESTED:
            make_variations(name)
