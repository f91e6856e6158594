from cases.case import BLOCK, BLOCK_CHANGED, HEADS, OTHER_TASK_FIELDS, Case

# MPNet has no token types, and its padding token is 1 whatever the config says.
ABSENT = ("type_vocab_size", "pad_token_id")

CASE = Case(
    BLOCK | {"max_position_embeddings": 160},
    {field: value for field, value in BLOCK_CHANGED.items() if field not in ABSENT}
    | {"max_position_embeddings": 161, "relative_attention_num_buckets": 33},
    OTHER_TASK_FIELDS | {"pad_token_id"},
    unsupported=(
        (
            {"relative_attention_num_buckets": 31},
            "relative_attention_num_buckets=31 is not supported for mpnet; supported: 32 or more",
        ),
        HEADS,
    ),
    variations=({"pad_token_id": 5},),
    # The longest row has relative positions of every bucket; the last one begins at 91.
    lengths=(12, 7, 150),
    types=0,
    max_length=158,
)
