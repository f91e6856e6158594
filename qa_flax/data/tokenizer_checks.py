"""Check that a tokenizer is complete, and that it belongs to the model (host, no JAX).

transformers builds a tokenizer of a few special tokens from a folder without tokenizer files, and
nothing in a tokenizer says which model it was made for. What can be compared are the numbers: how
many tokens there are, which ids the special tokens have, and how many token types.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from qa_flax import messages
from qa_flax.data.tokens import Template, Tokens, read_template
from qa_flax.messages import first_few, quoted, shown
from qa_flax.ranges import POSITIVE

logger = messages.logger(__name__)

ROLES = ("pad", "cls", "sep", "bos", "eos")
# What takes the place of a special token that a tokenizer does not have.
SAME_ROLES = {"bos": "cls", "eos": "sep", "cls": "bos", "sep": "eos"}
FEW_TOKENS = 0.5
"""The share of the model's embeddings below which a tokenizer is too small to be the model's."""
MAX_HALF_MADE = 1
"""The most tokens, without special ones, of a tokenizer that was made without a vocabulary."""
MIN_UNKNOWN, MAX_UNKNOWN = 10, 0.1
"""The number of tokens for unknown text, and their share, above which a warning is logged."""
PROBE = "Who wrote the CAFÉ's 12 naïve letters, in Köln?"


def advice(argument: str) -> str:
    """How to give another tokenizer: by an argument of the command line or of a function."""
    if argument.startswith("--"):
        return f"give the model's own tokenizer with {argument}"
    return f"pass the model's own tokenizer as {argument}"


# ---- a tokenizer by itself -----------------------------------------------------------------------


def fast_backend(tokenizer: PreTrainedTokenizerBase, argument: str = "tokenizer") -> Tokenizer:
    """The tokenizer of the tokenizers library inside transformers' object.

    Args:
        tokenizer: transformers' tokenizer.
        argument: the argument that gives another one, for messages.

    Raises:
        ValueError: it is a slow one, has no padding token, or a model_max_length that is no number.
    """
    name, in_python = type(tokenizer).__name__, not argument.startswith("--")
    if not getattr(tokenizer, "is_fast", False):
        how = "load it with AutoTokenizer.from_pretrained(...)" if in_python else advice(argument)
        raise ValueError(
            f"{name} has no character offsets. A fast tokenizer (one with a tokenizer.json) is "
            f"required: {how}."
        )
    if tokenizer.pad_token_id is None:
        how = (
            "tokenizer.pad_token = tokenizer.eos_token"
            if in_python
            else '"pad_token": "[PAD]" in its tokenizer_config.json'
        )
        raise ValueError(
            f"{name} has no padding token, which is required to pad the windows. Set one, for "
            f"example {how}."
        )
    length = POSITIVE._replace(is_infinite=True)
    if not length.contains(tokenizer.model_max_length):  # transformers takes anything
        raise ValueError(
            f"{name} has model_max_length={shown(tokenizer.model_max_length)}, which must be "
            f"{length.allowed}; correct it in its tokenizer_config.json"
        )
    return cast(Tokenizer, tokenizer.backend_tokenizer)


def check_vocabulary(tokenizer: Any, argument: str = "tokenizer") -> None:
    """Refuse a tokenizer that was made without a vocabulary.

    Raises:
        ValueError: it has only special tokens.
    """
    if plain_tokens(tokenizer) > MAX_HALF_MADE:
        return
    where = getattr(tokenizer, "name_or_path", "") or "its folder"
    raise ValueError(
        f"the tokenizer from {where} has {len(tokenizer)} tokens, which are special ones "
        f"({first_few(sorted(tokenizer.get_vocab()))}): transformers makes such a tokenizer where "
        "tokenizer.json or the vocabulary file (vocab.txt, vocab.json and merges.txt, or a "
        f"SentencePiece model) is missing or empty. Add these files, or {advice(argument)}."
    )


def plain_tokens(tokenizer: Any) -> int:
    """The number of tokens that are neither special nor added."""
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    return len(tokenizer) - len(special)


def checked_template(
    tokenizer: PreTrainedTokenizerBase, backend: Tokenizer, argument: str = "tokenizer"
) -> Template:
    """The special tokens around question and context, see `tokens.read_template`.

    Raises:
        ValueError: there are none.
    """
    template = read_template(backend)
    name = type(tokenizer).__name__
    if not template.special_tokens:
        how = (
            "Set tokenizer.backend_tokenizer.post_processor, or "
            if not argument.startswith("--")
            else 'Add a "post_processor" to its tokenizer.json, or '
        )
        raise ValueError(
            f"{name} puts no special tokens around question and context and no separator between "
            f"them, because it has no post-processor for pairs of texts. {how}{advice(argument)}."
        )
    return template


def unknown_ids(tokenizer: Any, backend: Tokenizer) -> set[int]:
    """The ids that stand for text that is not in the vocabulary; normally one."""
    name, ids = getattr(backend.model, "unk_token", None), set()
    if name is not None:
        ids.add(backend.token_to_id(name))
    ids |= {getattr(backend.model, "unk_id", None), tokenizer.unk_token_id}
    return {id_ for id_ in ids if id_ is not None}


def warn_of_unknown(
    texts: Mapping[str, Sequence[str]],
    contexts: Tokens,
    unknown: set[int],
    argument: str,
    warn: Callable[..., None],
) -> None:
    """Warn if many tokens of the contexts stand for text that is not in the vocabulary.

    Args:
        texts: the columns `id` and `context`.
        contexts: the tokens of the contexts.
        unknown: the ids of tokens that stand for unknown text.
        argument: the argument that gives another tokenizer.
        warn: logs a warning.
    """
    is_unknown = np.isin(contexts.ids, list(unknown))
    count = int(np.count_nonzero(is_unknown))
    if count < MIN_UNKNOWN or count <= MAX_UNKNOWN * len(is_unknown):
        return
    token = int(np.flatnonzero(is_unknown)[count // 2])
    n = int(
        np.flatnonzero((contexts.first <= token) & (token < contexts.first + contexts.count))[0]
    )
    start, end = contexts.offsets[token].tolist()
    warn(
        "%.0f%% of the tokens of the contexts stand for text that the tokenizer does not know (%s "
        "of %s; such as %s in example %s): its vocabulary is perhaps of another language. If so, "
        "%s.",
        100 * count / len(is_unknown),
        f"{count:,}",
        f"{len(is_unknown):,}",
        quoted(texts["context"][n][start : min(end, start + 30)]),
        quoted(texts["id"][n]),
        "choose a model for that language"
        + " with --model_name_or_path" * argument.startswith("--"),
    )


# ---- tokenizer and model -------------------------------------------------------------------------


class ModelNumbers:
    """The numbers of a model that must agree with its tokenizer's.

    Args:
        config: transformers' config.
        rows: the numbers of rows of the tables of `input_ids` and, if it has one, of
            `token_type_ids`.
        roles: the special tokens by which the model computes, such as "pad" for positions.
        ignored: special tokens whose ids in the config need not be the tokenizer's.
        question_token: the token beside each question from which the span head reads the question,
            if the model has such a head.
    """

    def __init__(
        self,
        config: Any,
        rows: Mapping[str, int],
        roles: Collection[str] = (),
        ignored: Collection[str] = (),
        question_token: int | None = None,
    ):
        self.model_type = str(config.model_type)
        self.name = str(getattr(config, "name_or_path", "") or f"this {config.model_type} model")
        self.rows, self.roles = dict(rows), frozenset(roles)
        self.question_token = question_token
        checked = [role for role in ROLES if role not in ignored]
        ids = {role: getattr(config, f"{role}_token_id", None) for role in checked}
        self.special_ids = {role: id_ for role, id_ in ids.items() if isinstance(id_, int)}


def check_fit(
    tokenizer: Any,
    model: ModelNumbers,
    argument: str,
    warn: Callable[..., None] = logger.warning,
) -> None:
    """Check that a tokenizer belongs to a model, as far as numbers can tell.

    Args:
        tokenizer: a fast tokenizer; any other is not checked.
        model: the model's numbers.
        argument: the argument that gives another tokenizer, such as "--tokenizer_name".
        warn: logs a warning.

    Raises:
        ValueError: they do not belong together.
    """
    if not getattr(tokenizer, "is_fast", False) or not hasattr(tokenizer, "backend_tokenizer"):
        return
    check_vocabulary(tokenizer, argument)
    _check_types(tokenizer, model, argument)
    doubts = [
        _check_size(tokenizer, model, argument),
        _check_special_ids(tokenizer, model, argument),
        _check_question_token(tokenizer, model),
    ]
    for doubt in filter(None, doubts):
        warn("%s If so, %s.", doubt, advice(argument))
    _warn_of_missing_types(tokenizer, model, argument, warn)


def _check_size(tokenizer: Any, model: ModelNumbers, argument: str) -> str | None:
    """Refuse more tokens than embeddings; return a doubt about far fewer."""
    rows, vocabulary = model.rows["input_ids"], tokenizer.get_vocab()
    outside = sorted((id_, token) for token, id_ in vocabulary.items() if id_ >= rows)
    # A mask token that transformers added to a vocabulary without one is never used here.
    if outside and [token for _, token in outside] != [tokenizer.mask_token]:
        example = f"{outside[0][1]!r} has the id {outside[0][0]}"
        added = (
            ""
            if argument.startswith("--")
            else ", or call model.resize_token_embeddings(len(tokenizer)) after adding tokens to it"
        )
        raise ValueError(
            f"the tokenizer and the model do not belong together: the tokenizer has "
            f"{len(vocabulary):,} tokens, but {model.name} has embeddings for {rows:,} ({example})"
            f"; {advice(argument)}{added}."
        )
    if len(vocabulary) >= FEW_TOKENS * rows:
        return None
    return (
        f"The tokenizer has {len(vocabulary):,} tokens, but {model.name} has embeddings for "
        f"{rows:,}: perhaps the tokenizer is another model's, or its vocabulary file is cut."
    )


def _check_special_ids(tokenizer: Any, model: ModelNumbers, argument: str) -> str | None:
    """Refuse special tokens that change the result; return a doubt about the padding token."""
    differences: dict[str, str] = {}
    for role, expected in model.special_ids.items():
        id_ = getattr(tokenizer, f"{role}_token_id", None)
        if id_ is None and role in SAME_ROLES:
            id_ = getattr(tokenizer, f"{SAME_ROLES[role]}_token_id", None)
        if id_ is not None and id_ != expected:
            differences[role] = f"{role}_token_id is {id_}, in the model's config {expected}"
    is_read = model.roles & differences.keys()
    is_other = len(differences) == len(model.special_ids) > 1
    if is_read or is_other:
        raise ValueError(
            f"the tokenizer and {model.name} do not belong together: the tokenizer's "
            f"{', '.join(differences.values())}; {advice(argument)}. If it is the right one, "
            "correct the ids in the model's config.json."
        )
    if "pad" not in differences:
        return None
    types = ""
    rows = model.rows.get("token_type_ids", 1)
    if rows > 1 and "token_type_ids" not in tokenizer.model_input_names:
        types = f", and it gives no token types, of which the model has {rows}"
    return (
        f"The tokenizer's {differences['pad']}{types}: perhaps it is not the tokenizer of "
        f"{model.name}."
    )


def _check_question_token(tokenizer: Any, model: ModelNumbers) -> str | None:
    """Return a doubt about a tokenizer that does not put the question's token into windows."""
    if model.question_token is None:
        return None
    blocks = read_template(tokenizer.backend_tokenizer).blocks
    if any(model.question_token in ids for ids, _ in blocks):
        return None
    return (
        f"The tokenizer puts no token with the model's question_token_id ({model.question_token}) "
        "beside the question, so the span head reads the question from each window's first token: "
        f"perhaps it is not the tokenizer of {model.name}."
    )


def _check_types(tokenizer: Any, model: ModelNumbers, argument: str) -> None:
    rows = model.rows.get("token_type_ids")
    if not rows or "token_type_ids" not in tokenizer.model_input_names:
        return
    template = read_template(tokenizer.backend_tokenizer)
    types = {*template.types, *(n for _, block in template.blocks for n in block)}
    if max(types) < rows:
        return
    how = (
        "tokenizer.model_input_names = ['input_ids', 'attention_mask']"
        if not argument.startswith("--")
        else '"model_input_names": ["input_ids", "attention_mask"] in its tokenizer_config.json'
    )
    raise ValueError(
        f"the tokenizer gives the token types 0 to {max(types)}, but {model.name} has "
        f"type_vocab_size={rows}: only the types 0 to {rows - 1}; {advice(argument)}, or leave the "
        f"types out: {how}."
    )


def _warn_of_missing_types(
    tokenizer: Any, model: ModelNumbers, argument: str, warn: Callable[..., None]
) -> None:
    """Warn of token types that the tokenizer knows and the model has, but that are left out."""
    rows, names = model.rows.get("token_type_ids", 1), tokenizer.model_input_names
    # A model that looks for the separator makes the types itself.
    if rows < 2 or "token_type_ids" in names or "sep" in model.roles:
        return
    template = read_template(tokenizer.backend_tokenizer)
    question, context = template.types
    if question == context or max(template.types) >= rows:
        return
    names = [*names, "token_type_ids"]
    how = f'"model_input_names": {json.dumps(names)} in its tokenizer_config.json'
    if not argument.startswith("--"):
        how = f"tokenizer.model_input_names = {names}"
    warn(
        "The tokenizer gives no token types, although it tells question and context apart (types "
        "%d and %d) and %s has %d types: all tokens get type 0. In transformers 4 this kind of "
        "tokenizer gave them; for a model that was trained with them, add them: %s.",
        question,
        context,
        model.name,
        rows,
        how,
    )


# ---- two tokenizers ------------------------------------------------------------------------------


def compare(
    given: Any, own: Any, argument: str, warn: Callable[..., None] = logger.warning
) -> None:
    """Compare a tokenizer that the user gave with the one in the model's own folder.

    Raises:
        ValueError: most ids stand for other tokens.
    """
    tokens, own_tokens = ({i: t for t, i in x.get_vocab().items()} for x in (given, own))
    shared = tokens.keys() & own_tokens.keys()
    differing = sorted(i for i in shared if tokens[i] != own_tokens[i])
    if differing:
        i = differing[len(differing) // 2]
        text = (
            f"{len(differing):,} of {len(shared):,} ids stand for other tokens than in the model's "
            f"own tokenizer (the id {i} for {tokens[i]!r} instead of {own_tokens[i]!r})"
        )
        if len(differing) > len(shared) / 2:
            raise ValueError(
                f"{argument} gives the tokenizer of another model: {text}; leave {argument} out"
            )
        warn("%s: %s. Leave it out to use the model's own.", argument, text)
    elif len(tokens) != len(own_tokens):
        message = "%s: the tokenizer has %s tokens, the model's own %s."
        warn(message, argument, f"{len(tokens):,}", f"{len(own_tokens):,}")
    elif (ours := given.tokenize(PROBE)) != (theirs := own.tokenize(PROBE)):
        message = "%s: the tokenizer splits text otherwise than the model's own: %s and %s."
        warn(message, argument, " ".join(ours), " ".join(theirs))
