from cases.case import BLOCK, BLOCK_CHANGED, DECODER_SETTINGS, HEADS, OTHER_TASK_FIELDS, Case

CASE = Case(
    BLOCK | {"type_vocab_size": 2, "embedding_size": 12},
    BLOCK_CHANGED | {"hidden_size": 24, "embedding_size": 8, "rotary_value": True},
    OTHER_TASK_FIELDS,
    unsupported=(
        *DECODER_SETTINGS,
        HEADS,
        (
            {"num_attention_heads": 16},
            "hidden_size=16 with num_attention_heads=16 gives heads of an odd size, 1",
        ),
    ),
    variations=({"embedding_size": None},),  # defaults to the hidden size: no projection
)
