from cases.case import BLOCK, BLOCK_CHANGED, HEADS, OTHER_TASK_FIELDS, UNKNOWN_ACTIVATION, Case

CASE = Case(
    BLOCK
    | {
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "entity_vocab_size": 9,
        "entity_emb_size": 8,
        "use_entity_aware_attention": True,
    },
    # The weights for entities are kept, but rows have no entities.
    BLOCK_CHANGED
    | {
        "entity_vocab_size": 10,
        "entity_emb_size": 16,
        "use_entity_aware_attention": False,
    },
    OTHER_TASK_FIELDS,
    unsupported=(UNKNOWN_ACTIVATION, HEADS),
    variations=({"pad_token_id": 1},),
    max_length=39,
    later=True,
)
