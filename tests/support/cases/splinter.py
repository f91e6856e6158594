from cases.case import BLOCK, BLOCK_CHANGED, RELATIVE_POSITIONS, UNKNOWN_ACTIVATION, Case

CASE = Case(
    # Not every row has a question token.
    BLOCK | {"type_vocab_size": 2, "question_token_id": 20},
    BLOCK_CHANGED | {"question_token_id": 22},
    frozenset({"bos_token_id", "eos_token_id"}),
    unsupported=(RELATIVE_POSITIONS, UNKNOWN_ACTIVATION),
    later=True,
)
