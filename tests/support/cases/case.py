"""What one family is tested with."""

from dataclasses import dataclass
from typing import Any

Changes = dict[str, Any]


@dataclass(frozen=True)
class Case:
    sizes: Changes
    """transformers' config, small: `vocab_size` 40 and rows of 12 tokens are taken for granted."""
    changed: Changes
    """Fields that change a result, each with another value; `variations` if it takes several."""
    without_effect: frozenset[str]
    """Fields of transformers' config class that change nothing in question answering."""
    refused: tuple[tuple[Changes, str], ...] = ()
    """SearchSettings that are not computed, with the message."""
    variations: tuple[Changes, ...] = ()
    """More settings to compare with PyTorch."""
    lengths: tuple[int, ...] = (12, 7)
    """Rows to compare with PyTorch; one longer than the local window, where there is one."""
    types: int = 2
    """Token types in the rows; 0: they are not given."""
    types_change_after: int | None = None
    """The id up to which token types default to 0 and after which to 1; None: all to 0."""
    needs_separators: bool = False
    """Whether PyTorch takes only rows with three of the config's `sep_token_id`."""
    packs: bool = True
    """Whether several windows can share a row."""
    in_padding: int = 7
    """A token that may stand in padding; the padding word where a family looks for it."""
    longest: int | None = 40
    """The longest row by its positions; None: no limit."""
    golden_attention: str = "eager"
    """PyTorch's implementation in the golden files; its default, "sdpa", where the two differ."""


# Fields that change how wide, high or long the model is and not how it computes: everything is
# compiled anew for each, so these are compared with PyTorch by `pytest -m slow`.
SIZES = {
    *("vocab_size", "hidden_size", "dim", "d_model", "embedding_size", "max_position_embeddings"),
    *("intermediate_size", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "type_vocab_size"),
    *("num_hidden_layers", "n_layers", "encoder_layers", "decoder_layers"),
    *("num_attention_heads", "n_heads", "encoder_attention_heads", "decoder_attention_heads"),
}


# Those most families share.
BLOCK = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}
BLOCK_CHANGED = {
    "vocab_size": 41,
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 33,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.4,
    "attention_probs_dropout_prob": 0.4,
    "max_position_embeddings": 41,
    "type_vocab_size": 3,
    "initializer_range": 0.3,
    "layer_norm_eps": 1e-2,
    "pad_token_id": 5,
}
# Of generation and of other tasks.
ELSEWHERE = frozenset(
    {"bos_token_id", "eos_token_id", "use_cache", "classifier_dropout", "tie_word_embeddings"}
)
UNKNOWN_ACTIVATION = (
    {"hidden_act": "gelu_10"},
    "hidden_act='gelu_10' is not known here; known: gelu, gelu_fast, ",
)
A_DECODER = (
    ({"is_decoder": True}, "is_decoder=True is not supported for .*; known: False"),
    ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
)
RELATIVE_POSITIONS = (
    {"position_embedding_type": "relative_key"},
    "position_embedding_type='relative_key' is not supported for .*; known: 'absolute'",
)
HEADS = (
    {"num_attention_heads": 3},
    "hidden_size=16 is not a multiple of num_attention_heads=3",
)
