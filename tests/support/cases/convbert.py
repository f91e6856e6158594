from cases.case import (
    BLOCK,
    BLOCK_CHANGED,
    DECODER_SETTINGS,
    HEADS,
    OTHER_TASK_FIELDS,
    RELATIVE_POSITIONS,
    Case,
)

CASE = Case(
    BLOCK | {"type_vocab_size": 2, "embedding_size": 12, "conv_kernel_size": 3, "pad_token_id": 0},
    # Two groups, as in conv-bert-medium-small.
    BLOCK_CHANGED
    | {
        "intermediate_size": 36,
        "embedding_size": 8,
        "head_ratio": 4,
        "conv_kernel_size": 5,
        "num_groups": 2,
    },
    OTHER_TASK_FIELDS,
    unsupported=(
        *DECODER_SETTINGS,
        RELATIVE_POSITIONS,
        HEADS,
        ({"conv_kernel_size": 4}, "conv_kernel_size=4 is not supported for convbert"),
        ({"conv_kernel_size": 0}, "conv_kernel_size=0 is not supported for convbert"),
        ({"num_groups": 3}, "num_groups=3 does not divide hidden_size=16 and intermediate_size=32"),
        ({"hidden_size": 20, "head_ratio": 1}, "hidden_size=20 is not a multiple of 8: with num_"),
    ),
    variations=(
        {"embedding_size": 16},  # no projection
        {"head_ratio": 8, "num_groups": 4, "conv_kernel_size": 9},  # more than there are heads
        {"conv_kernel_size": 1},
    ),
    can_pack=False,
    sees_padding=True,
    padding_id=0,
    later=True,
)
