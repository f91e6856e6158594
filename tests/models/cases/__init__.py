"""What each family is tested with: a small config, what changes it, and what it refuses.

`tests/models/loud.py` makes models of them, `tests/models/test_families.py` and
`tests/models/test_torch_parity.py` test them.
"""

from cases import bart, bert, deberta_v2, distilbert, electra, mbart, roberta
from cases.case import Case

CASES: dict[str, Case] = {
    "bert": bert.CASE,
    "distilbert": distilbert.CASE,
    "roberta": roberta.CASE,
    "xlm-roberta": roberta.CASE,
    "camembert": roberta.CASE,
    "electra": electra.CASE,
    "deberta-v2": deberta_v2.CASE,
    "bart": bart.CASE,
    "mbart": mbart.CASE,
}
