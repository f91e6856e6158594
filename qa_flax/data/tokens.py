"""Stage 2 of 7: texts -> token ids and offsets (host, NumPy).

Each distinct text is tokenized once. A long text is split into overlapping chunks to bound memory.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Bool, Int32, Int64
from tokenizers import Encoding, Tokenizer
from tqdm import tqdm

from qa_flax.data import offsets as token_offsets
from qa_flax.data.interrupts import interrupts_deferred
from qa_flax.data.screen import shows_bar

BATCH_CHARACTERS = 1 << 20  # bounds the tokenizer's memory (about 100 bytes a token)
CHUNK_SIZE = 1 << 18  # characters; longer texts are split into chunks of this size
CHUNK_OVERLAP = 1 << 11  # characters that two neighbouring chunks share

Int64Array = Int64[np.ndarray, " n"]  # one number for each text


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of e texts; equal texts share their tokens.

    Text i has the tokens `ids[first[i] : first[i] + count[i]]`.
    """

    ids: Int32[np.ndarray, " t"]  # tokens of all distinct texts, concatenated
    offsets: Int32[np.ndarray, "k 2"]  # in code points; k = t, or 0 if offsets are not needed
    first: Int64Array
    count: Int64Array
    begins_word: Bool[np.ndarray, " t"] | None = None  # whether each is the first of its word


def encode_distinct(
    texts: list[str],
    backend: Tokenizer,
    *,
    disable: bool,
    words: bool = False,
    offsets: bool = True,
) -> Tokens:
    """Tokenize texts without special tokens.

    Offsets from which the tokenizer's post-processor leaves out letters are corrected. Unless
    `disable`, a terminal or a notebook shows a progress bar, and a log one line at the end. With
    `words` the result says where the words of the tokenizer's pre-tokenizer begin. Without
    `offsets`, which take a sixth of the tokenizer's time, it has none.

    Raises:
        ValueError: the tokenizer cannot encode the texts.
    """
    if offsets and _can_encode(backend) and token_offsets.trims_letters(backend):
        blank = token_offsets.blank_tokens(backend)
        with token_offsets.untrimmed(backend):
            return _encode_distinct(texts, backend, disable=disable, blank=blank, words=words)
    tokens = _encode_distinct(
        texts, backend, disable=disable, blank=None, words=words, offsets=offsets
    )
    return tokens if offsets else dataclasses.replace(tokens, offsets=np.zeros((0, 2), np.int32))


def _can_encode(backend: Tokenizer) -> bool:
    """Whether a tokenizer can encode any text: one without an unknown token may not."""
    try:
        backend.encode(token_offsets.PROBE, add_special_tokens=False)
    except Exception:  # tokenizers raises plain `Exception`
        return False
    return True


def _encode_distinct(
    texts: list[str],
    backend: Tokenizer,
    *,
    disable: bool,
    blank: Int32[np.ndarray, " n"] | None,
    words: bool,
    offsets: bool = True,
) -> Tokens:
    """Tokenize texts; with `blank`, white space is trimmed from the offsets.

    `blank` are the ids of the tokens that stand for white space only. Without `offsets`, those of
    the result mean nothing.
    """
    is_log = not (disable or shows_bar())
    index = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    counts: list[int] = []
    parts = [_arrays([], words)]
    with tqdm(total=len(texts), desc="Tokenizing", unit="ex", disable=disable or is_log) as bar:
        for batch in _batches(list(index)):
            if len(batch[0]) > CHUNK_SIZE:
                arrays = _encode_long(batch[0], backend, words)
                in_batch = [len(arrays[0])]
            else:
                encodings = _encode_batch(batch, backend, offsets)
                arrays = _arrays(encodings, words)
                in_batch = [len(encoding) for encoding in encodings]
            if blank is not None:
                _trim(arrays, in_batch, batch, blank)
            counts += in_batch
            parts.append(arrays)
            bar.update(len(texts) * len(batch) // len(index))
        bar.update(bar.total - bar.n)
    if is_log:
        print(f"Tokenizing: 100%, {len(texts)}/{len(texts)} texts", file=sys.stderr)
    count = np.array(counts, np.int64)
    row = np.array([index[text] for text in texts], np.int64)
    first = np.cumsum(count) - count
    ids, pairs, *begins_word = map(np.concatenate, zip(*parts, strict=True))
    return Tokens(ids, pairs, first[row], count[row], *begins_word)


def _trim(
    arrays: tuple[np.ndarray, ...],
    counts: list[int],
    texts: list[str],
    blank: Int32[np.ndarray, " n"],
) -> None:
    """Trim white space from the offsets of several texts, in place."""
    ids, offsets, *_ = arrays
    is_blank = np.isin(ids, blank)
    ends = list(itertools.accumulate(counts))
    for text, begin, end in zip(texts, [0, *ends], ends, strict=False):
        of_text = slice(begin, end)
        offsets[of_text] = token_offsets.trimmed(offsets[of_text], is_blank[of_text], text)


def _encode_batch(texts: list[str], backend: Tokenizer, offsets: bool) -> list[Encoding]:
    encode = backend.encode_batch if offsets else backend.encode_batch_fast
    with interrupts_deferred():  # the interrupt would be lost
        try:
            return encode(texts, add_special_tokens=False)
        except Exception as error:  # tokenizers raises plain `Exception`
            raise ValueError(f"the tokenizer cannot encode the texts: {error}") from error


def _arrays(encodings: list[Encoding], words: bool) -> tuple[np.ndarray, ...]:
    """Return the ids, the offsets and, with `words`, whether each token begins a word.

    The tokens of all encodings follow each other.
    """
    ends = list(itertools.accumulate(map(len, encodings)))
    n = ends[-1] if ends else 0
    chained = itertools.chain.from_iterable
    ids = np.fromiter(chained(e.ids for e in encodings), np.int32, n)
    numbers = chained(chained(e.offsets for e in encodings))
    offsets = np.fromiter(numbers, np.int32, 2 * n).reshape(n, 2)
    if not words:
        return ids, offsets
    # A token that is in no word, if a tokenizer makes any, has NaN, so it is a word of its own.
    word = np.array([*chained(e.word_ids for e in encodings)], np.float64)
    begins_word = np.ones(n, bool)
    begins_word[1:] = np.diff(word) != 0
    begins_word[[begin for begin in (0, *ends) if begin < n]] = True
    return ids, offsets, begins_word


def _encode_long(text: str, backend: Tokenizer, words: bool) -> tuple[np.ndarray, ...]:
    """Tokenize a long text in bounded memory: in overlapping chunks, which are then merged.

    If the tokens of two chunks differ in the overlap, the text is tokenized as a whole.
    """
    # A token depends on its word and perhaps on neighbouring words. So the tokens of two chunks
    # agree inside the overlap, except near its ends: a quarter of it is left out on each side.
    chunks: list[tuple[np.ndarray, ...]] = []
    begin, seam = 0, 0  # the previous chunk provides the tokens before character `seam`
    while True:
        end = min(begin + CHUNK_SIZE, len(text))
        encoding = backend.encode(text[begin:end], add_special_tokens=False)
        chunk = _arrays([encoding], words)
        starts = chunk[1][:, 0]
        chunk[1][:] += begin
        if begin:
            previous_starts = chunks[-1][1][:, 0]
            margin = CHUNK_OVERLAP // 4
            last = begin + CHUNK_OVERLAP - margin
            shared = (starts >= seam) & (starts < last)
            previous_shared = (previous_starts >= seam) & (previous_starts < last)
            if not (
                shared.any()
                and all(
                    np.array_equal(ours[shared], theirs[previous_shared])
                    for ours, theirs in zip(chunk, chunks[-1], strict=True)
                )
            ):
                return _arrays([backend.encode(text, add_special_tokens=False)], words)
            chunks[-1] = tuple(array[previous_starts < seam] for array in chunks[-1])
            chunk = tuple(array[starts >= seam] for array in chunk)
        chunks.append(chunk)
        if end == len(text):
            return tuple(map(np.concatenate, zip(*chunks, strict=True)))
        begin = end - CHUNK_OVERLAP
        seam = begin + CHUNK_OVERLAP // 4


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """Yield the texts in batches of about BATCH_CHARACTERS; a long text is a batch by itself."""
    begin, characters = 0, 0
    for n, text in enumerate(texts):
        if n > begin and (len(text) > CHUNK_SIZE or characters >= BATCH_CHARACTERS):
            yield texts[begin:n]
            begin, characters = n, 0
        # A long text fills its batch, so that no text is added to it.
        characters += BATCH_CHARACTERS if len(text) > CHUNK_SIZE else len(text)
    if texts:
        yield texts[begin:]


@contextmanager
def plain_encoding(backend: Tokenizer, split_special_tokens: bool) -> Iterator[None]:
    """Disable truncation and padding in a `with` block; restore the user's settings after it.

    A `tokenizer.json` may enable both (all-MiniLM-L6-v2 truncates and pads to 128 tokens).
    """
    truncation, padding = backend.truncation, backend.padding
    encode_special_tokens = backend.encode_special_tokens
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = split_special_tokens
    try:
        yield
    finally:
        backend.encode_special_tokens = encode_special_tokens
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


# --- Special tokens of a pair --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Template:
    """The special tokens around a pair of texts: block 0, text 0, block 1, text 1, block 2."""

    blocks: tuple[tuple[list[int], list[int]], ...]  # (token ids, token type ids) of each block
    types: tuple[int, int]  # token type id of each text
    special_tokens: int  # number of tokens in all blocks


def read_template(backend: Tokenizer) -> Template:
    """Find the tokenizer's special tokens from a pair of texts that it encodes.

    Raises:
        ValueError: the texts' tokens in the pair differ from those of the texts alone, or the
            tokenizer cannot encode them.
    """
    probe = ("What is it?", "It is a probe, nothing more.")
    try:
        with plain_encoding(backend, backend.encode_special_tokens):
            pair = backend.encode(*probe)
            alone = [backend.encode(text, add_special_tokens=False) for text in probe]
    except Exception as error:  # tokenizers raises plain `Exception`
        raise ValueError(f"the tokenizer cannot encode text: {error}") from error
    in_pair = list(zip(pair.sequence_ids, pair.ids, pair.offsets, strict=True))
    expected = [
        (n, *token) for n, e in enumerate(alone) for token in zip(e.ids, e.offsets, strict=True)
    ]
    if [token for token in in_pair if token[0] is not None] != expected:
        raise ValueError(
            "this tokenizer gives two texts other tokens in a pair than alone, so windows cannot "
            "be built from their tokens. Please report the tokenizer as an issue."
        )
    begins = [pair.sequence_ids.index(0), pair.sequence_ids.index(1), len(pair)]
    ends = [0, *(begin + len(e) for begin, e in zip(begins, alone, strict=False))]
    blocks = tuple(
        (pair.ids[end:begin], pair.type_ids[end:begin])
        for end, begin in zip(ends, begins, strict=True)
    )
    types = (pair.type_ids[begins[0]], pair.type_ids[begins[1]])
    return Template(blocks, types, len(pair) - len(expected))
