from cases.case import (
    BLOCK,
    BLOCK_CHANGED,
    DECODER_SETTINGS,
    OTHER_TASK_FIELDS,
    RELATIVE_POSITIONS,
    Case,
)

CASE = Case(
    BLOCK | {"type_vocab_size": 2, "pad_token_id": 0},
    BLOCK_CHANGED,
    OTHER_TASK_FIELDS,
    unsupported=(*DECODER_SETTINGS, RELATIVE_POSITIONS),
    variations=({"pad_token_id": 1},),
    max_length=39,
)
