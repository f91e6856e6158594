from cases.case import A_DECODER, BLOCK, BLOCK_CHANGED, ELSEWHERE, HEADS, Case

CASE = Case(
    BLOCK | {"type_vocab_size": 2, "embedding_size": 12},
    BLOCK_CHANGED | {"hidden_size": 24, "embedding_size": 8, "rotary_value": True},
    ELSEWHERE,
    refused=(
        *A_DECODER,
        HEADS,
        (
            {"num_attention_heads": 16},
            "hidden_size=16 makes num_attention_heads=16 heads of an odd size, 1",
        ),
    ),
    variations=({"embedding_size": None},),  # the hidden size: no projection
)
