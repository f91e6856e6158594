from cases.bart import CHANGED, REFUSED, SIZES, WITHOUT_EFFECT
from cases.case import Case

CASE = Case(
    SIZES,
    CHANGED,
    WITHOUT_EFFECT | {"decoder_start_token_id"},
    refused=REFUSED,
    types=0,
    packs=False,
    in_padding=0,  # the decoder's first token is the last that is no padding
)
