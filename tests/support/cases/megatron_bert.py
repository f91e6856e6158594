from cases.case import (
    BLOCK,
    BLOCK_CHANGED,
    DECODER_SETTINGS,
    OTHER_TASK_FIELDS,
    RELATIVE_POSITIONS,
    Case,
)

CASE = Case(
    BLOCK | {"type_vocab_size": 2},
    BLOCK_CHANGED,
    OTHER_TASK_FIELDS,
    unsupported=(*DECODER_SETTINGS, RELATIVE_POSITIONS),
    later=True,
)
