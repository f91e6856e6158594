from cases.case import (
    BLOCK,
    BLOCK_CHANGED,
    DECODER_SETTINGS,
    OTHER_TASK_FIELDS,
    RELATIVE_POSITIONS,
    Case,
)

CASE = Case(
    # As in the checkpoints of ERNIE 2.0 and 3.0.
    BLOCK | {"type_vocab_size": 2, "use_task_id": True},
    BLOCK_CHANGED | {"use_task_id": False, "task_type_vocab_size": 4},
    OTHER_TASK_FIELDS,
    unsupported=(*DECODER_SETTINGS, RELATIVE_POSITIONS),
    later=True,
)
