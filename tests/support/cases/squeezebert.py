from cases.case import BLOCK, BLOCK_CHANGED, HEADS, RELATIVE_POSITIONS, UNKNOWN_ACTIVATION, Case

CHANGED = BLOCK_CHANGED | {"intermediate_size": 36}
del CHANGED["hidden_size"]  # only together with embedding_size, as in a variation

CASE = Case(
    BLOCK
    | {
        "type_vocab_size": 2,
        "embedding_size": 16,
        "q_groups": 2,
        "k_groups": 1,
        "v_groups": 2,
        "intermediate_groups": 2,
        "output_groups": 2,
    },
    CHANGED
    | {
        "q_groups": 4,
        "k_groups": 2,
        "v_groups": 1,
        "post_attention_groups": 2,
        "intermediate_groups": 1,
        "output_groups": 4,
    },
    frozenset({"bos_token_id", "eos_token_id", "tie_word_embeddings"}),
    unsupported=(
        RELATIVE_POSITIONS,
        UNKNOWN_ACTIVATION,
        HEADS,
        (
            {"hidden_size": 20},
            "embedding_size=16 is not supported for squeezebert; it must be hidden_size",
        ),
        ({"embedding_size": 12}, "embedding_size=12 is not supported"),
        ({"q_groups": 3}, "q_groups=3 does not divide 16, the sizes of its layer"),
        ({"output_groups": 5}, "output_groups=5 does not divide 16 and 32"),
        ({"v_groups": 0}, "v_groups=0 is not supported; it must be a whole number from 1"),
    ),
    variations=(
        {"hidden_size": 24, "embedding_size": 24, "num_attention_heads": 3, "q_groups": 3},
    ),
    later=True,
)
