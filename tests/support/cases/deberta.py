from cases import deberta_v2
from cases.case import BLOCK, BLOCK_CHANGED, HEADS, UNKNOWN_ACTIVATION, Case

CASE = Case(
    # As in DeBERTa's checkpoints.
    BLOCK
    | {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
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
        "pos_att_type": ["c2p"],
        "position_biased_input": True,
        "type_vocab_size": 2,
        "embedding_size": 12,
    },
    deberta_v2.CASE.without_effect,
    unsupported=(
        (
            {"pos_att_type": ["c2p", "p2p"]},
            r"pos_att_type=\['c2p', 'p2p'\] is not supported for deberta: p2p;",
        ),
        ({"talking_head": True}, "talking_head=True is not supported for deberta"),
        UNKNOWN_ACTIVATION,
        HEADS,
    ),
    variations=(
        {"pos_att_type": ["p2c"]},
        {"pos_att_type": None},
        {"pos_att_type": "c2p|p2c", "max_relative_positions": 5},
        {"max_relative_positions": 40},
        {"position_biased_input": True, "type_vocab_size": 2, "embedding_size": 8},
        {"relative_attention": False, "pos_att_type": None, "position_biased_input": True},
        # Settings of version 2, which version 1 does not have.
        {"position_buckets": 4, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    lengths=(12, 7, 30),
    types=0,
    max_length=None,
    later=True,
)
