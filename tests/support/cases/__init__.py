"""What each family is tested with: a small config, what changes it, and what it refuses.

`tests/models/loud.py` makes models of them, `tests/models/test_families.py` and
`tests/models/test_torch_parity.py` test them.
"""

from cases import (
    albert,
    bart,
    bert,
    big_bird,
    deberta_v2,
    distilbert,
    electra,
    longformer,
    mbart,
    modernbert,
    mpnet,
    roberta,
    roberta_prelayernorm,
    roformer,
    xlm_roberta_xl,
)
from cases.case import Case

CASES: dict[str, Case] = {
    "bert": bert.CASE,
    "distilbert": distilbert.CASE,
    "roberta": roberta.CASE,
    "xlm-roberta": roberta.CASE,
    "camembert": roberta.CASE,
    "electra": electra.CASE,
    "albert": albert.CASE,
    "deberta-v2": deberta_v2.CASE,
    "modernbert": modernbert.CASE,
    "mpnet": mpnet.CASE,
    "roberta-prelayernorm": roberta_prelayernorm.CASE,
    "roformer": roformer.CASE,
    "xlm-roberta-xl": xlm_roberta_xl.CASE,
    "longformer": longformer.CASE,
    "big_bird": big_bird.CASE,
    "bart": bart.CASE,
    "mbart": mbart.CASE,
}
