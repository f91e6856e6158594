from cases.case import (
    BLOCK,
    BLOCK_CHANGED,
    DECODER_SETTINGS,
    OTHER_TASK_FIELDS,
    RELATIVE_POSITIONS,
    Case,
)

CASE = Case(
    BLOCK | {"type_vocab_size": 2, "embedding_size": 12},
    BLOCK_CHANGED | {"embedding_size": 8},
    OTHER_TASK_FIELDS
    | {f"summary_{n}" for n in ("type", "use_proj", "activation", "last_dropout")},
    unsupported=(*DECODER_SETTINGS, RELATIVE_POSITIONS),
    variations=({"embedding_size": 16},),  # no projection
)
