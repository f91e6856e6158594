"""The settings of a call of `QuestionAnswerer`: their defaults and what is allowed (host)."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from qa_flax.ranges import Range, at_least, check_numbers

NORMALIZE = ("all", "each")

_RANGES = {
    "top_k": at_least(1),
    "doc_stride": at_least(0).or_none(),
    "max_answer_len": at_least(1),
    "max_seq_len": at_least(1).or_none(),
    "max_question_len": at_least(1).or_none(),
    "answers": at_least(1).or_none(),
    "threshold": Range("a number from 0 to 1", lambda v: 0 <= v <= 1),
    "batch_size": at_least(1).or_none(),
    "num_workers": at_least(0).or_none(),
}
_PADDING = (None, False, True, "do_not_pad", "longest", "max_length")
_FLAGS = ("handle_impossible_answer", "align_to_words")

# Names that other programs have for a setting -> the setting here.
OTHER_NAMES = {
    "n_best": "top_k",
    "n_best_size": "top_k",
    "max_seq_length": "max_seq_len",
    "max_length": "max_seq_len",
    "max_answer_length": "max_answer_len",
    "max_query_length": "max_question_len",
    "version_2_with_negative": "handle_impossible_answer",
}


@dataclass(frozen=True)
class Settings:
    """How questions are answered. The first seven are those of transformers 4's pipeline.

    Attributes:
        top_k: how many answers to return at most, best first.
        doc_stride: tokens that two neighbouring windows of a long context share; None: 128, or half
            of `max_seq_len` if that is less.
        max_answer_len: the longest answer, in tokens.
        max_seq_len: tokens in a window; None: 384, or the model's limit if that is less.
        max_question_len: longer questions are truncated to this number of tokens; None: none is.
        handle_impossible_answer: whether "no answer", "", may be an answer.
        align_to_words: whether answers are widened to whole words.
        answers: how many separate answers to return at most; None: see `top_k`.
        threshold: the lowest confidence of the separate answers.
        normalize: with several contexts, whether confidences sum to 1 over the answers in "all"
            contexts, or over those in "each".
        batch_size: the largest number of windows that a core computes at once; None: what is
            fast: 32, or on a CPU as many as have 256 tokens.
        padding: the pipeline's; has no effect, because padding takes no part in any result.
        num_workers: the pipeline's; has no effect, because there are no loader processes.
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    answers: int | None = None
    threshold: float = 0.05
    normalize: str = "all"
    batch_size: int | None = None
    padding: bool | str | None = None
    num_workers: int | None = None

    def __post_init__(self):
        check_numbers(_RANGES, **{name: getattr(self, name) for name in _RANGES})
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: it must be True or False")
        if self.normalize not in NORMALIZE:
            raise ValueError(f"normalize={self.normalize!r}: it must be one of {NORMALIZE}")
        if not any(self.padding is value or self.padding == value for value in _PADDING):
            raise ValueError(f"padding={self.padding!r}: it must be one of {_PADDING}")

    @property
    def spans_per_window(self) -> int:
        """How many spans of a window may become answers, as in the pipeline."""
        # Some of them become the same answer when they are widened to words.
        return self.top_k * 2 + 10 if self.align_to_words else self.top_k

    def changed(self, values: Mapping[str, Any]) -> "Settings":
        """Return these settings with other values; None keeps a value, as in the pipeline.

        Raises:
            TypeError: a name is unknown.
            ValueError: a value is not allowed, or two values exclude each other.
        """
        if unknown := [name for name in values if name not in (*NAMES, "topk")]:
            raise TypeError(_unknown(unknown[0]))
        given = {name: value for name, value in values.items() if value is not None}
        if "topk" in given:
            warnings.warn("topk is deprecated; use top_k instead", UserWarning, stacklevel=3)
            given.setdefault("top_k", given.pop("topk"))
        if given.get("answers") is not None and given.get("top_k", 1) != 1:
            raise ValueError(
                "answers and top_k both say how many answers to return; pass answers for answers "
                "that do not overlap, or top_k for the pipeline's"
            )
        if "threshold" in given and (given.get("answers", self.answers)) is None:
            raise ValueError("threshold selects among separate answers: pass answers=..., too")
        return replace(self, **given)


NAMES = tuple(field.name for field in fields(Settings))


def _unknown(name: str) -> str:
    if name in OTHER_NAMES:
        return f"there is no argument {name!r} here; it is called {OTHER_NAMES[name]}"
    near = get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(NAMES)}"
    return f"there is no argument {name!r}{hint}"
