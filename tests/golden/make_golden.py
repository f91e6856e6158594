"""Make golden/bert_tiny with PyTorch transformers: a loud checkpoint, its logits, loss, gradients.

    python tests/golden/make_golden.py

Run by hand (needs the `parity` extra); the result is committed, so that the default tests compare
with PyTorch where PyTorch is not installed.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import BertConfig, BertForQuestionAnswering

FOLDER = Path(__file__).parent / "bert_tiny"


def main() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=40,
        layer_norm_eps=1e-5,
    )
    model = BertForQuestionAnswering(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(FOLDER)

    length, rows = 24, 4
    mask = (torch.arange(length) < torch.tensor([24, 17, 9, 2])[:, None]).long()
    inputs = {
        "input_ids": torch.randint(1, 40, (rows, length)) * mask,
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, (rows, length)) * mask,
        "start_positions": torch.tensor([3, 0, 8, 1]),
        "end_positions": torch.tensor([5, 16, 8, 0]),
    }
    output = model(**inputs)
    output.loss.backward()
    np.savez_compressed(
        FOLDER / "expected.npz",
        **{name: value.numpy().astype(np.int32) for name, value in inputs.items()},
        start_logits=output.start_logits.detach().numpy(),
        end_logits=output.end_logits.detach().numpy(),
        loss=output.loss.detach().numpy(),
        **{f"gradient {name}": p.grad.numpy() for name, p in model.named_parameters()},
    )
    print(f"{FOLDER}: torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
