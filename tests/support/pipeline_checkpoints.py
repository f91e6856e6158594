"""Checkpoint folders for the comparison with the question-answering pipeline of transformers 4.57.

They are made with NumPy and safetensors only, so that transformers 4.57 and qa_flax, each in a
virtual environment of its own, get the same files. Nothing of qa_flax is imported.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZERS = GOLDEN / "pipeline" / "tokenizers"
# The tokenizer of each family is of the kind that the family's models have.
FAMILY_TOKENIZERS = {
    "bert": "word_piece",
    "roberta": "byte_level",
    "xlm-roberta": "metaspace_words",
    "deberta-v2": "metaspace",
    "electra": "word_piece_cased",
    "longformer": "byte_level",
    "albert": "metaspace",
    "bart": "byte_level_prefix",
    "big_bird": "metaspace",
    "distilbert": "word_piece",
    "mpnet": "word_piece_two_separators",
    "roformer": "word_piece",
}
# Longest window of these checkpoints, in tokens: the tokenizers' `model_max_length`.
LONGEST = 64
# Room for position ids that begin after the padding id, as in RoBERTa.
POSITIONS = LONGEST + 4
# The random span head is loud enough that a few spans of a window have most of its probability.
HEAD_SCALE = 1.0


def write_family(family: str, folder: Path) -> Path:
    """Write the tiny checkpoint of `golden/<family>` with a tokenizer, and return the folder.

    The tables of tokens and positions get as many rows as the tokenizer and windows of `LONGEST`
    tokens need. The weights of the span head are larger, so that few spans have most of the
    probability.
    """
    tokenizer = TOKENIZERS / FAMILY_TOKENIZERS[family]
    config = json.loads((GOLDEN / family / "config.json").read_text("utf-8"))
    config |= {"max_position_embeddings": POSITIONS} | _token_ids(tokenizer, config)
    if family == "big_bird":
        # With such blocks no window is long enough for sparse attention, whose random blocks would
        # depend on how much a window is padded.
        config["block_size"] = 16
    if family == "albert":
        # transformers 4.57 fails if a group has more inner layers than a group's share of layers.
        config["num_hidden_layers"] = 4
    tensors = load_file(GOLDEN / family / "model.safetensors")
    random = np.random.default_rng(0)
    for name, tensor in sorted(tensors.items()):
        if name.endswith(("word_embeddings.weight", "shared.weight")):
            tensors[name] = _with_rows(random, tensor, config["vocab_size"])
        elif name == "roformer.encoder.embed_positions.weight":
            tensors[name] = _sinusoids(POSITIONS, tensor.shape[1])
        elif name.endswith(("position_embeddings.weight", "embed_positions.weight")):
            # BART's table has two rows more than positions.
            tensors[name] = _with_rows(random, tensor, POSITIONS + 2 * (family == "bart"))
        elif name.endswith("qa_outputs.weight"):
            tensors[name] = tensor * np.float32(6)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in ("tokenizer.json", "special_tokens_map.json"):
        shutil.copyfile(tokenizer / file, folder / file)
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text("utf-8"))
    if family == "distilbert":
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return folder


def _token_ids(tokenizer, config):
    """The size of the vocabulary, and the ids of those special tokens that the config has."""
    names = json.loads((tokenizer / "special_tokens_map.json").read_text("utf-8"))
    file = json.loads((tokenizer / "tokenizer.json").read_text("utf-8"))
    ids = {token["content"]: token["id"] for token in file["added_tokens"]}
    tokens = {"pad": "pad_token", "sep": "sep_token", "bos": "cls_token", "eos": "sep_token"}
    found = {f"{name}_token_id": ids[names[token]] for name, token in tokens.items()}
    return {"vocab_size": len(file["model"]["vocab"])} | {
        name: number for name, number in found.items() if config.get(name) is not None
    }


def _with_rows(random, table, rows):
    """Cut the table, or append random rows of the size of the others."""
    more = random.uniform(-0.35, 0.35, (max(0, rows - len(table)), table.shape[1]))
    return np.concatenate([table[:rows], more.astype(np.float32)])


def _sinusoids(positions, size):
    """RoFormer's angles: sines in the first half of the columns, cosines in the second."""
    angles = np.arange(positions)[:, None] / 10_000 ** (np.arange(0, size, 2) / size)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def write_mini_lm(encoder: Path, folder: Path, seed: int = 0) -> Path:
    """Write a real BERT encoder (all-MiniLM-L6-v2) with a random span head; return the folder."""
    config = json.loads((encoder / "config.json").read_text("utf-8"))
    size = config["hidden_size"]
    random = np.random.default_rng(seed)
    tensors = {
        f"bert.{name}": tensor
        for name, tensor in load_file(encoder / "model.safetensors").items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }
    head = random.uniform(-1, 1, (2, size)) * HEAD_SCALE
    tensors["qa_outputs.weight"] = head.astype(np.float32)
    tensors["qa_outputs.bias"] = np.zeros(2, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config["architectures"] = ["BertForQuestionAnswering"]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(encoder / file, folder / file)
    return folder
