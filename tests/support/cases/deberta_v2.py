from cases.case import BLOCK, BLOCK_CHANGED, HEADS, UNKNOWN_ACTIVATION, Case

CASE = Case(
    # As in DeBERTa-v3's checkpoints.
    BLOCK
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
        "max_position_embeddings": 30,
    },
    BLOCK_CHANGED
    | {
        # Limits the relative positions while max_relative_positions is not set.
        "max_position_embeddings": 9,
        "relative_attention": False,
        "max_relative_positions": 7,
        "position_buckets": -1,
        "norm_rel_ebd": "none",
        "share_att_key": False,
        "pos_att_type": ["c2p"],
        "position_biased_input": True,
        "type_vocab_size": 2,
        "embedding_size": 12,
        "conv_kernel_size": 3,
    },
    frozenset(
        {
            *("bos_token_id", "eos_token_id", "tie_word_embeddings", "legacy"),
            *("pooler_dropout", "pooler_hidden_act"),
        }
    ),
    unsupported=(
        (
            {"pos_att_type": ["c2p", "p2p"]},
            r"pos_att_type=\['c2p', 'p2p'\] is not supported .*p2p;",
        ),
        (
            {"norm_rel_ebd": "batch"},
            "norm_rel_ebd='batch' is not supported .* 'none', 'layer_norm'",
        ),
        ({"attention_head_size": 8}, "attention_head_size=8 is not supported"),
        ({"conv_kernel_size": 3, "conv_act": "gelu_10"}, "conv_act='gelu_10' is not supported"),
        UNKNOWN_ACTIVATION,
        HEADS,
    ),
    variations=(
        {"pos_att_type": ["p2c"]},
        {"pos_att_type": None},
        {"pos_att_type": "c2p|p2c", "share_att_key": False},
        {"pos_att_type": ["p2c"], "share_att_key": False},
        {"position_buckets": -1, "max_relative_positions": 5},
        {"position_buckets": 6, "max_relative_positions": 40},
        {"conv_kernel_size": 3, "conv_act": "gelu", "conv_groups": 2},
        {"position_biased_input": True, "type_vocab_size": 2, "embedding_size": 8},
        {"relative_attention": False, "pos_att_type": None, "position_biased_input": True},
    ),
    lengths=(12, 7, 30),
    types=0,
    max_length=None,
)
