from cases.bart import CHANGED, REFUSED, SIZES, VARIATIONS, WITHOUT_EFFECT
from cases.case import Case

CASE = Case(
    SIZES,
    CHANGED,
    WITHOUT_EFFECT | {"decoder_start_token_id"},
    refused=REFUSED,
    variations=(*VARIATIONS, {"decoder_start_token_id": 3}),
    types=0,
    in_padding=0,  # the decoder's first word is the last that is no padding
)
