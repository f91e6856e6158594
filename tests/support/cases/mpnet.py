from cases.case import BLOCK, BLOCK_CHANGED, ELSEWHERE, HEADS, Case

# There are no token types, and the padding word is 1 whatever the config says.
ABSENT = ("type_vocab_size", "pad_token_id")

CASE = Case(
    BLOCK | {"max_position_embeddings": 160},
    {field: value for field, value in BLOCK_CHANGED.items() if field not in ABSENT}
    | {"max_position_embeddings": 161, "relative_attention_num_buckets": 33},
    ELSEWHERE | {"pad_token_id"},
    refused=(
        (
            {"relative_attention_num_buckets": 31},
            "relative_attention_num_buckets=31 is not supported for mpnet; known: 32 or more",
        ),
        HEADS,
    ),
    variations=({"pad_token_id": 5},),
    # The longest has every kind of distance, the last from 91 on.
    lengths=(12, 7, 150),
    types=0,
    longest=158,
)
