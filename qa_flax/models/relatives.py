"""Model types that no family implements -> the supported one that is nearest to each (host)."""

import difflib
from collections.abc import Collection

RELATIVES = {
    # The same layers, trained otherwise or with something added.
    "bert-generation": "bert",
    "flaubert": "camembert",
    "fnet": "bert",
    "funnel": "bert",
    "ibert": "roberta",
    "layoutlm": "bert",
    "layoutlmv2": "bert",
    "layoutlmv3": "roberta",
    "layoutxlm": "xlm-roberta",
    "lilt": "roberta",
    "lxmert": "bert",
    "markuplm": "roberta",
    "mra": "roberta",
    "nezha": "bert",
    "qdqbert": "bert",
    "realm": "bert",
    "roc_bert": "bert",
    "ultrabert": "bert",
    "visual_bert": "bert",
    "xlm": "xlm-roberta",
    "xmod": "xlm-roberta",
    # Other attention for long texts.
    "bigbird_pegasus": "big_bird",
    "canine": "xlm-roberta",
    "led": "longformer",
    "nystromformer": "big_bird",
    "reformer": "longformer",
    "yoso": "big_bird",
    # Those of several languages, and newer encoders.
    "ernie_m": "xlm-roberta",
    "eurobert": "modernbert",
    "jina_embeddings_v3": "xlm-roberta",
    "modernbert-decoder": "modernbert",
    "nomic_bert": "modernbert",
    "xlnet": "deberta-v2",
    # Encoders with decoders.
    "blenderbot": "bart",
    "longt5": "t5",
    "m2m_100": "mbart",
    "marian": "bart",
    "mvp": "bart",
    "pegasus": "bart",
    "plbart": "mbart",
    "t5gemma": "t5",
    "umt5": "mt5",
}
"""By `model_type`. A type of no near relative, such as a decoder's, is not in it."""


def near_relative(model_type: object, supported: Collection[str]) -> str | None:
    """Return the supported model type that is nearest to one that is not, or spelled alike.

    Args:
        model_type: the value in a `config.json`.
        supported: the model types to choose from.

    Example:
        >>> near_relative("led", ["bert", "longformer"])
        'longformer'
        >>> near_relative("Deberta_V3", ["bert", "deberta-v2"])
        'deberta-v2'
        >>> near_relative("gpt2", ["bert", "longformer"])
    """
    if not isinstance(model_type, str):
        return None
    relative = RELATIVES.get(model_type)
    if relative in supported:
        return relative
    folded = model_type.casefold().replace("_", "-")
    spelled = {name.replace("_", "-"): name for name in sorted(supported)}
    close = difflib.get_close_matches(folded, spelled, n=1, cutoff=0.8)
    return spelled[close[0]] if close else None
