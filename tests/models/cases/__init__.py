"""What each family is tested with: a small config, what changes it, and what it refuses.

`tests/models/loud.py` makes models of them, `tests/models/test_families.py` and
`tests/models/test_torch_parity.py` test them.
"""

from cases import (
    bert,
    distilbert,
    electra,
    longformer,
    roberta,
    roberta_prelayernorm,
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
    "roberta-prelayernorm": roberta_prelayernorm.CASE,
    "xlm-roberta-xl": xlm_roberta_xl.CASE,
    "longformer": longformer.CASE,
}
