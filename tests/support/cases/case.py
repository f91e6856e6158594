"""The data with which one family is tested."""

from dataclasses import dataclass
from typing import Any

Changes = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A small config of a family, changes of it, and the properties that tests depend on."""

    sizes: Changes
    """Fields of a small config: `vocab_size` is 40 and rows of 12 tokens are possible."""
    changed: Changes
    """Fields that affect a result, each with another value; see `variations` for combinations."""
    without_effect: frozenset[str]
    """Fields of transformers' config class that have no effect in question answering."""
    unsupported: tuple[tuple[Changes, str], ...] = ()
    """Settings that are not supported, with the expected error message."""
    variations: tuple[Changes, ...] = ()
    """More settings, or combinations of them, to compare with PyTorch."""
    lengths: tuple[int, ...] = (12, 7)
    """Lengths of the rows compared with PyTorch; one exceeds the local window, if there is one."""
    types: int = 2
    """Number of token types in the rows; 0: `token_type_ids` are not passed."""
    types_change_after: int | None = None
    """Default token types are 0 up to this token id and 1 after it; None: all are 0."""
    needs_separators: bool = False
    """Whether PyTorch requires exactly three `sep_token_id` in each row."""
    can_pack: bool = True
    """Whether several windows can be packed into one row."""
    sees_padding: bool = False
    """Whether the last tokens of a row see a few tokens of the padding after it, as in PyTorch."""
    padding_id: int = 7
    """The token id that tests write to padding; `pad_token_id` if the family looks for it."""
    max_length: int | None = 40
    """The longest row that the position table allows, in tokens; None: no limit."""
    golden_attention: str = "eager"
    """PyTorch's attention in the golden files; "sdpa", its default, if "eager" differs from it."""
    later: bool = False
    """Whether the default tests only compare with golden files; all families since the first 17."""


# Fields that change the sizes of the model but not its operations. Each value requires compiling
# everything again, so only `pytest -m slow` compares them with PyTorch.
SIZES = {
    *("vocab_size", "hidden_size", "dim", "d_model", "embedding_size", "max_position_embeddings"),
    *("intra_bottleneck_size", "num_feedforward_networks"),
    *("q_groups", "k_groups", "v_groups"),
    *("input_embedding_size", "num_layers", "num_decoder_layers", "num_heads", "d_kv", "d_ff"),
    *("entity_vocab_size", "entity_emb_size"),
    *("intermediate_size", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "type_vocab_size"),
    "task_type_vocab_size",
    *("num_hidden_layers", "n_layers", "encoder_layers", "decoder_layers"),
    *("num_attention_heads", "n_heads", "encoder_attention_heads", "decoder_attention_heads"),
}


# Settings that most families share.
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
# Fields of generation and of other tasks.
OTHER_TASK_FIELDS = frozenset(
    {"bos_token_id", "eos_token_id", "use_cache", "classifier_dropout", "tie_word_embeddings"}
)
UNKNOWN_ACTIVATION = (
    {"hidden_act": "gelu_10"},
    "hidden_act='gelu_10' is not supported; supported: gelu, gelu_fast, ",
)
DECODER_SETTINGS = (
    ({"is_decoder": True}, "is_decoder=True is not supported for .*; supported: False"),
    ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
)
RELATIVE_POSITIONS = (
    {"position_embedding_type": "relative_key"},
    "position_embedding_type='relative_key' is not supported for .*; supported: 'absolute'",
)
HEADS = (
    {"num_attention_heads": 3},
    "hidden_size=16 is not a multiple of num_attention_heads=3",
)
