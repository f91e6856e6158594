"""Stage 2 of 7: check that offsets are those of the tokens, and correct those that are not (host).

A byte-level tokenizer writes the space before a word into the word's token, and its post-processor
then leaves the space out of the token's offsets. If other pre-tokenizers cut the text before
the byte-level one adds a space that the text does not have, the post-processor leaves out the first
letter instead: " Orla" has the offsets of "rla". Labels and answers made of such offsets are wrong.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unicodedata import combining, normalize

import numpy as np
from jaxtyping import Bool, Int32
from tokenizers import Tokenizer, decoders

Offsets = Int32[np.ndarray, "t 2"]

# Words after a space, a mark, a digit, another script and an apostrophe; a word of one letter.
PROBE = (
    "The mill, built by O'Neill in 1843 (a burned-down one), isn't   naïve:\n12½ x 3, 東京, Tōkyō, "
    "القاهرة عاصمة."
)
SHIFTS = ((1, 1), (-1, -1), (-1, 0), (1, 0), (0, 1), (0, -1), (2, 2), (-2, -2))
"""Constant errors of starts and ends that are corrected, if they explain all tokens."""
SAMPLED_TEXTS, SAMPLED_TOKENS = 24, 160


@contextmanager
def untrimmed(backend: Tokenizer) -> Iterator[None]:
    """Encode without the post-processor, which trims offsets, in a `with` block.

    It has no other effect on texts that are encoded without special tokens.
    """
    processor = backend.post_processor
    backend.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        backend.post_processor = processor


def trims_letters(backend: Tokenizer) -> bool:
    """Whether the tokenizer's post-processor leaves letters out of offsets, and not only spaces."""
    given = backend.encode(PROBE, add_special_tokens=False)
    with untrimmed(backend):
        full = backend.encode(PROBE, add_special_tokens=False).offsets
    return any(
        PROBE[slice(*ours)].strip() != PROBE[slice(*all_)].strip() and not is_blank(token)
        for token, ours, all_ in zip(given.tokens, given.offsets, full, strict=True)
    )


def is_blank(token: str) -> bool:
    """Whether a byte-level tokenizer's token stands for white space only."""
    return not decoders.ByteLevel().decode([token]).strip()


def blank_tokens(backend: Tokenizer) -> Int32[np.ndarray, " n"]:
    """The ids of the tokens that stand for white space only."""
    vocabulary = backend.get_vocab(with_added_tokens=False)
    return np.array([id_ for token, id_ in vocabulary.items() if is_blank(token)], np.int32)


def trimmed(offsets: Offsets, is_blank: Bool[np.ndarray, " t"], text: str) -> Offsets:
    """Leave out the white space at both ends of every token, and what a blank token cuts out."""
    start, end = offsets.T.copy()
    is_space = np.array([character.isspace() for character in f"{text} "])
    while (leading := (start < end) & is_space[start]).any():
        start += leading
    while (trailing := (start < end) & is_space[end - 1]).any():
        end -= trailing
    # The space that such a token stands for may have been added before the word.
    end = np.where(is_blank, start, end)
    return np.stack([start, end], axis=1)


class TokenTexts:
    """Compares the text of a token with the text that its offsets cut out.

    Only letters and digits count, without case and accents, because tokenizers mark the beginnings
    of words and normalize the text. Tokens that have none are not compared, nor are parts of
    letters and tokens that stand for unknown text.
    """

    def __init__(self, backend: Tokenizer, skipped: set[int]):
        self._backend, self._skipped = backend, skipped
        state = b"".join(map(_state, filter(None, (backend.pre_tokenizer, backend.decoder))))
        self._byte_level = decoders.ByteLevel() if b'"ByteLevel"' in state else None
        self._suffix = getattr(backend.model, "end_of_word_suffix", None) or ""
        self._known: dict[int, str] = {}

    def of_token(self, token: int) -> str:
        """The comparable text of a token; "" if there is none."""
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def _read(self, token: int) -> str:
        text = self._backend.id_to_token(token)
        if text is None or token in self._skipped or re.fullmatch("<0x[0-9A-F]{2}>", text):
            return ""
        if self._byte_level is not None:
            text = self._byte_level.decode([text])
        return "" if "\ufffd" in text else _letters(text.removesuffix(self._suffix))

    def of_text(self, text: str) -> str:
        """The comparable part of a piece of the user's text."""
        normalizer = self._backend.normalizer
        return _letters(text if normalizer is None else normalizer.normalize_str(text))

    def is_of(self, expected: str, cut: str) -> bool:
        """Whether a token's comparable text is that of the piece of text that its offsets cut out.

        A normalizer may make several letters of one character, as of a Korean syllable or of "½".
        A token of only some of them has the offsets of the whole character.
        """
        whole = self.of_text(cut)
        if whole == expected:
            return True
        if expected not in whole:
            return False
        return all(expected not in self.of_text(part) for part in (cut[1:], cut[:-1]))


def _state(part: Any) -> bytes:
    """A part of a tokenizer as JSON; empty for one that is written in Python, as RoFormer's."""
    try:
        return part.__getstate__()
    except Exception as error:  # tokenizers raises plain `Exception`
        if "cannot be serialized" not in str(error):
            raise
        return b""


def _letters(text: str) -> str:
    folded = normalize("NFKD", text).casefold()
    return "".join(c for c in folded if c.isalnum() and not combining(c))


class WrongOffsets:
    """How many of a sample of tokens have offsets that cut out another text, and how to correct it.

    Attributes:
        share: the part of the tokens that is wrong.
        shift: what to add to all starts and ends, if that makes them right; else None.
        example: a token's text, and the text that its offsets cut out.
    """

    def __init__(
        self, sample: list[tuple[str, list[int], list[tuple[int, int]]]], token_texts: TokenTexts
    ):
        """Compare a sample: texts with the ids and offsets of their tokens."""
        tokens = [
            (expected, text, start, end)
            for text, ids, offsets in sample
            for token, (start, end) in zip(ids, offsets, strict=True)
            if (expected := token_texts.of_token(token))
        ]

        def is_right(token: tuple[str, str, int, int], shift: tuple[int, int] = (0, 0)) -> bool:
            expected, text, start, end = token
            cut = text[max(start + shift[0], 0) : max(end + shift[1], 0)]
            return token_texts.is_of(expected, cut)

        wrong = [token for token in tokens if not is_right(token)]
        self.share = len(wrong) / len(tokens) if len(tokens) >= 10 else 0.0
        self.shift: tuple[int, int] | None = None
        self.example = ("", "")
        if wrong:
            expected, text, start, end = wrong[len(wrong) // 2]
            self.example = expected, text[start:end]
        if self.share > 0.5:
            for shift in SHIFTS:
                if np.mean([is_right(token, shift) for token in tokens]) > 0.95:
                    self.shift = shift
                    break


def shifted(offsets: Offsets, shift: tuple[int, int]) -> Offsets:
    """Add a constant to all starts and ends; none becomes negative."""
    return np.maximum(offsets + np.array(shift, np.int32), 0).astype(np.int32)


def checked_offsets(
    texts: list[str],
    tokens: tuple[np.ndarray, Offsets, np.ndarray, np.ndarray],
    token_texts: TokenTexts,
    warn: Callable[..., None],
    advice: str,
) -> Offsets:
    """Compare the tokens of some of the texts with what their offsets cut out.

    Args:
        texts: the texts.
        tokens: ids and offsets of the tokens of all texts, and of each text the index of the first
            token and the number of tokens.
        token_texts: the texts of the tokens.
        warn: logs a warning.
        advice: how to give another tokenizer.

    Returns:
        The offsets, which are corrected if a constant is missing from all.

    Raises:
        ValueError: most of the tokens have offsets that cut out another text.
    """
    ids, offsets, first, count = tokens
    sample = []
    for n in range(0, len(texts), max(1, len(texts) // SAMPLED_TEXTS)):
        part = slice(first[n], first[n] + min(count[n], SAMPLED_TOKENS))
        sample.append((texts[n], ids[part].tolist(), [tuple(p) for p in offsets[part].tolist()]))
    found = WrongOffsets(sample, token_texts)
    if found.share < 0.2:
        return offsets
    what = f"{found.share:.0%} of the tokens (the token {found.example[0]!r} has the offsets of "
    what += f"{found.example[1]!r})"
    if found.shift is not None:
        warn(
            "The tokenizer's offsets are wrong for %s; they are corrected by %+d (starts) and %+d "
            "(ends).",
            what,
            *found.shift,
        )
        return shifted(offsets, found.shift)
    if found.share > 0.5:
        raise ValueError(
            f"the tokenizer's offsets are wrong for {what}, so labels and answers would be wrong; "
            f"{advice}, or correct its pre_tokenizer and post_processor"
        )
    message = (
        "The tokenizer's offsets are wrong for %s; labels and answers may be wrong. Perhaps %s."
    )
    warn(message, what, advice)
    return offsets
