from cases.case import A_DECODER, BLOCK, BLOCK_CHANGED, ELSEWHERE, RELATIVE_POSITIONS, Case

MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")
CASE = Case(
    BLOCK | {"type_vocab_size": 2, "pad_token_id": 0},
    BLOCK_CHANGED,
    ELSEWHERE,
    refused=(*A_DECODER, RELATIVE_POSITIONS),
    variations=({"pad_token_id": 1},),
    longest=39,
)
