from cases.bart import CHANGED, SIZES, UNSUPPORTED, VARIATIONS, WITHOUT_EFFECT
from cases.case import Case

CASE = Case(
    SIZES,
    CHANGED,
    WITHOUT_EFFECT | {"decoder_start_token_id"},
    unsupported=UNSUPPORTED,
    variations=(*VARIATIONS, {"decoder_start_token_id": 3}),
    types=0,
    padding_id=0,  # the decoder's first token is the last one that is not padding
)
