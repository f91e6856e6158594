"""A tiny model of each family that reads the windows of `tiny`, to train for a few updates."""

import tiny
from cases import CASES
from transformers import AutoConfig

from qa_flax import AutoModelForQuestionAnswering, prepare_train_features


def family_model(family, seed=0, **changes):
    """A model of `family` without dropout, except as `changes` say; loud initial weights."""
    sizes = CASES[family].sizes | {"vocab_size": tiny.VOCABULARY, "max_position_embeddings": 128}
    defaults = AutoConfig.for_model(family)
    off = {name: 0.0 for name in defaults.to_dict() if "dropout" in name}
    # BigBird's head and Longformer's global attention look for the separators of the windows.
    separator = {"sep_token_id": tiny.tokenizer().sep_token_id}
    config = AutoConfig.for_model(family, **(sizes | off | separator | changes))
    return AutoModelForQuestionAnswering.from_config(config, seed)


def family_windows(rows=8):
    """Training windows of 64 tokens."""
    lengths = {"max_seq_length": 64, "doc_stride": 16, "disable_tqdm": True}
    windows = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **lengths)
    return windows.select(range(rows))
