"""Stage 2 of 7: texts -> token ids and offsets (host, NumPy).

Each distinct text is tokenised once, long ones in pieces, so that memory stays bounded.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Int32, Int64
from tokenizers import Encoding, Tokenizer
from tqdm import tqdm

CHARACTERS_AT_ONCE = 1 << 20  # bounds what the tokenizer holds (about 100 bytes a token)
LONG_TEXT = 1 << 18  # characters; longer texts are tokenised in pieces, which
PIECES_SHARE = 1 << 11  # share this many, so that they can be put together where they agree

Numbers = Int64[np.ndarray, " n"]  # one a text


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens of the distinct texts, end to end; text e of all has count[e] from first[e] on."""

    ids: Int32[np.ndarray, " t"]
    offsets: Int32[np.ndarray, "k 2"]  # k is t; 0 where offsets are not needed
    first: Numbers
    count: Numbers


def encode_distinct(texts: list[str], backend: Tokenizer, *, disable: bool) -> Tokens:
    """Tokens of every text, without special tokens; a progress bar unless `disable`."""
    number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    ids, offsets = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int32)]
    with tqdm(total=len(texts), desc="Tokenising", unit="ex", disable=disable) as bar:
        for batch in _batches(list(number)):
            if len(batch[0]) > LONG_TEXT:
                encoded = [_encode_long(batch[0], backend)]
            else:
                encodings = backend.encode_batch(batch, add_special_tokens=False)
                encoded = map(_ids_and_offsets, encodings)
            for text_ids, text_offsets in encoded:
                ids.append(text_ids)
                offsets.append(text_offsets)
            bar.update(len(texts) * len(batch) // len(number))
        bar.update(bar.total - bar.n)
    count = np.array([len(tokens) for tokens in ids[1:]], np.int64)
    of_text = np.array([number[text] for text in texts], np.int64)
    first = np.cumsum(count) - count
    return Tokens(np.concatenate(ids), np.concatenate(offsets), first[of_text], count[of_text])


def _ids_and_offsets(encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    n = len(encoding)
    pairs = itertools.chain.from_iterable(encoding.offsets)
    offsets = np.fromiter(pairs, np.int32, 2 * n).reshape(n, 2)
    return np.fromiter(encoding.ids, np.int32, n), offsets


def _encode_long(text: str, backend: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of a long text in bounded memory: pieces, put together where neighbours agree.

    A tokenizer looks at words, or a little further. Two pieces that share PIECES_SHARE characters
    have the same tokens there but at their edges; that is checked, and a text for which it does not
    hold is tokenised whole.
    """
    ids, offsets = [], []
    begin, kept = 0, 0  # characters up to `kept` have their tokens in the lists
    while True:
        end = min(begin + LONG_TEXT, len(text))
        encoding = backend.encode(text[begin:end], add_special_tokens=False)
        piece_ids, piece_offsets = _ids_and_offsets(encoding)
        piece_offsets += begin
        if begin:
            margin = PIECES_SHARE // 4
            last = begin + PIECES_SHARE - margin
            ours, theirs = (
                (starts >= kept) & (starts < last)
                for starts in (piece_offsets[:, 0], offsets[-1][:, 0])
            )
            if not (
                ours.any()
                and np.array_equal(piece_ids[ours], ids[-1][theirs])
                and np.array_equal(piece_offsets[ours], offsets[-1][theirs])
            ):
                return _ids_and_offsets(backend.encode(text, add_special_tokens=False))
            before = offsets[-1][:, 0] < kept
            ids[-1], offsets[-1] = ids[-1][before], offsets[-1][before]
            after = piece_offsets[:, 0] >= kept
            piece_ids, piece_offsets = piece_ids[after], piece_offsets[after]
        ids.append(piece_ids)
        offsets.append(piece_offsets)
        if end == len(text):
            return np.concatenate(ids), np.concatenate(offsets)
        begin = end - PIECES_SHARE
        kept = begin + PIECES_SHARE // 4


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, about CHARACTERS_AT_ONCE at a time; a long one by itself."""
    begin, characters = 0, 0
    for n, text in enumerate(texts):
        if n > begin and (len(text) > LONG_TEXT or characters >= CHARACTERS_AT_ONCE):
            yield texts[begin:n]
            begin, characters = n, 0
        # Nothing joins a long text.
        characters += CHARACTERS_AT_ONCE if len(text) > LONG_TEXT else len(text)
    if texts:
        yield texts[begin:]


@contextmanager
def plain_encoding(backend: Tokenizer, split_special_tokens: bool) -> Iterator[None]:
    """Whole texts, unpadded; afterwards the tokenizer is as the user had it.

    A `tokenizer.json` may carry its own truncation and padding (all-MiniLM-L6-v2: both 128).
    """
    truncation, padding = backend.truncation, backend.padding
    split_before = backend.encode_special_tokens
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = split_special_tokens
    try:
        yield
    finally:
        backend.encode_special_tokens = split_before
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


# --- The pair's special tokens -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Template:
    """How the tokenizer joins two texts: block 0, text, block 1, text, block 2."""

    blocks: tuple[tuple[list[int], list[int]], ...]  # (token ids, token types) of each block
    types: tuple[int, int]  # token type of each text
    special_tokens: int


def read_template(backend: Tokenizer) -> Template:
    """Read off a pair encoded by the tokenizer itself; it must hold the texts' own tokens."""
    probe = ("What is it?", "It is a probe, nothing more.")
    pair = backend.encode(*probe)
    alone = [backend.encode(text, add_special_tokens=False) for text in probe]
    in_pair = list(zip(pair.sequence_ids, pair.ids, pair.offsets, strict=True))
    expected = [
        (n, *token) for n, e in enumerate(alone) for token in zip(e.ids, e.offsets, strict=True)
    ]
    if [token for token in in_pair if token[0] is not None] != expected:
        raise ValueError(
            "this tokenizer encodes a pair of texts in another way than the two texts alone, so "
            "its windows cannot be put together. Please report the tokenizer."
        )
    begins = [pair.sequence_ids.index(0), pair.sequence_ids.index(1), len(pair)]
    ends = [0, *(begin + len(e) for begin, e in zip(begins, alone, strict=False))]
    blocks = tuple(
        (pair.ids[end:begin], pair.type_ids[end:begin])
        for end, begin in zip(ends, begins, strict=True)
    )
    types = (pair.type_ids[begins[0]], pair.type_ids[begins[1]])
    return Template(blocks, types, len(pair) - len(expected))
