from cases.case import A_DECODER, BLOCK, BLOCK_CHANGED, ELSEWHERE, RELATIVE_POSITIONS, Case

CASE = Case(
    BLOCK | {"type_vocab_size": 2, "embedding_size": 12},
    BLOCK_CHANGED | {"embedding_size": 8},
    ELSEWHERE | {f"summary_{n}" for n in ("type", "use_proj", "activation", "last_dropout")},
    refused=(*A_DECODER, RELATIVE_POSITIONS),
    variations=({"embedding_size": 16},),  # no projection
)
