"""Texts without labels -> questions about them, to pre-train on (host, text).

A span that occurs again in its passage becomes an answer. The sentence around one of its
occurrences, with the span masked, becomes the question, and is left out of the passage, which
becomes the context: Dhingra et al. 2018, "Simple and effective semi-supervised question answering"
(N18-2092).
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from qa_flax import messages
from qa_flax.data.cloze_maker import MAX_QUESTION, Cloze, ClozeMaker
from qa_flax.data.documents import Documents, as_sources
from qa_flax.data.examples import FEATURES, checked_examples
from qa_flax.data.kept_sentences import KeptSentenceMaker
from qa_flax.data.passages import LETTER, PassageReader
from qa_flax.data.recurring import WORD
from qa_flax.data.rejected import ExampleError
from qa_flax.data.screen import shows_bar
from qa_flax.data.spool import Spool
from qa_flax.data.stop_words import frequent_words, stop_words
from qa_flax.data.tokenizer_checks import (
    MAX_UNKNOWN,
    check_vocabulary,
    fast_backend,
    unknown_ids,
)
from qa_flax.data.tokens import plain_encoding, read_template
from qa_flax.ranges import SEED, at_least, check_numbers

logger = messages.logger(__name__)

PER_PASSAGE = 6
"""How many clozes a passage has, at most."""
MIN_PASSAGES = 3
"""With fewer passages, stop words are recognized by the sentences that have them."""
MIN_ROOM = 24
"""Tokens of the smallest passages that can have a cloze."""
_ROWS_AT_ONCE = 2048
_RANGES = {
    "max_clozes": at_least(1).or_none(),
    "max_per_passage": at_least(1),
    "max_seq_length": at_least(1),
    "seed": SEED,
}


class NoClozesError(ExampleError):
    """No cloze could be made of the texts; the message says why, and what to do."""


def make_clozes(
    docs: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    mask: str | Sequence[str] | None = None,
    keep_sentence: bool = False,
    max_clozes: int | None = None,
    max_per_passage: int = PER_PASSAGE,
    max_seq_length: int = 384,
    seed: int = 42,
    split: str | None = None,
    config_name: str | None = None,
    context_column: str | None = None,
    disable_tqdm: bool = False,
    **load_dataset_kwargs: Any,
) -> datasets.Dataset:
    """Make questions from texts without labels, to train on before the labelled questions.

    A span of 1 to 5 words that occurs 2 to 4 times in a passage becomes the answer. The sentence
    around one occurrence, with the span masked, becomes the question; it is left out of the
    context, which is the rest of the passage. The span begins and ends with words of content, which
    are distinguished by how they are spread over the passages. In scripts without blanks between
    words a token is a word, but a single character is half of one, and of Thai a quarter. (Dhingra
    et al. 2018, N18-2092; Ram et al. 2021, arXiv 2101.00438.)

    Args:
        docs: one of the following, or a list of them: a text file (``.txt``, ``.md``), anything
            that ``load_examples`` reads, whose contexts alone are used, each once, or a folder of
            such files. Their order does not matter.
        tokenizer: a fast tokenizer, of the model that will be trained.
        mask: what stands for the answer in a question, or a list of texts of which each question
            gets one; None: the tokenizer's mask token.
        keep_sentence: make questions about sentences that stay in the context, with some words left
            out and some moved; their spans need not occur again. (Lewis et al. 2019, P19-1484.)
        max_clozes: return at most so many, from as many passages as possible; None: all.
        max_per_passage: how many clozes a passage has, at most.
        max_seq_length: tokens of the windows to train on. Passages are paragraphs, or parts of
            them, such that a question and its context fit into one window.
        seed: chooses spans and sentences. The same texts and seed give the same clozes.
        split, config_name: see ``load_examples``.
        context_column: the documents' own name of the column ``context``.
        disable_tqdm: show no progress bar.
        load_dataset_kwargs: see ``load_examples``.

    Returns:
        A data set as of ``load_examples``, with an example for each cloze. Its answers are the
        occurrences of the span in the context; the first is in the sentence that shares most with
        the question.

    Raises:
        FileNotFoundError: there is no such file.
        ExampleError: no document could be read, or no cloze could be made of them.
        ValueError: the tokenizer is not supported or has no mask token, or a number is out of
            range.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from qa_flax import make_clozes
        >>> text = "Ada Lovelace wrote a program. In 1843 few people knew of Ada Lovelace."
        >>> tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        >>> cloze = make_clozes([{"context": text}], tokenizer, mask="what", disable_tqdm=True)[0]
        >>> cloze["question"], cloze["answers"]["text"]
        ('In 1843 few people knew of what.', ['Ada Lovelace'])
    """
    return find_clozes(
        Documents(as_sources(docs), split, config_name, context_column, load_dataset_kwargs),
        tokenizer,
        mask=mask,
        keep_sentence=keep_sentence,
        max_clozes=max_clozes,
        max_per_passage=max_per_passage,
        max_seq_length=max_seq_length,
        seed=seed,
        disable_tqdm=disable_tqdm,
    ).examples


@dataclass(frozen=True)
class Clozes:
    """The clozes of some documents."""

    examples: datasets.Dataset
    """As `load_examples` returns them."""
    documents: int
    """How many texts were read."""
    passages: int
    """How many different passages they have."""
    spans: int
    """How many spans occur again in their passages, or sentences have a span to ask for."""


def find_clozes(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    *,
    mask: str | Sequence[str] | None,
    keep_sentence: bool,
    max_clozes: int | None,
    max_per_passage: int,
    max_seq_length: int,
    seed: int,
    disable_tqdm: bool = False,
    argument: str = "tokenizer",
) -> Clozes:
    """Do the work of `make_clozes`, and count.

    Args:
        documents: the texts.
        tokenizer, mask, keep_sentence, max_clozes, max_per_passage, max_seq_length, seed,
            disable_tqdm: see `make_clozes`.
        argument: the interface's argument that gives another tokenizer, for messages.

    Raises:
        NoClozesError: no cloze could be made.
        ValueError: as of `make_clozes`.
    """
    check_numbers(
        _RANGES,
        max_clozes=max_clozes,
        max_per_passage=max_per_passage,
        max_seq_length=max_seq_length,
        seed=seed,
    )
    backend = fast_backend(tokenizer, argument)
    check_vocabulary(tokenizer, argument)
    masks = _masks(tokenizer, mask)
    with Spool() as passages, plain_encoding(backend, tokenizer.split_special_tokens):
        around = read_template(backend).special_tokens
        around += max(len(backend.encode(mask, add_special_tokens=False)) for mask in masks)
        room = int(min(max_seq_length, tokenizer.model_max_length)) - around
        # A sentence that is kept takes room in the context and in the question, with its "?".
        max_question = min(MAX_QUESTION, room // 3) if keep_sentence else MAX_QUESTION
        room -= max_question + 1 if keep_sentence else 0
        if room < MIN_ROOM:
            raise ValueError(
                f"max_seq_length={max_seq_length} leaves {room} tokens for a passage, which needs "
                f"{MIN_ROOM}; give at least max_seq_length={max_seq_length + MIN_ROOM - room}"
            )
        reader = PassageReader(backend, room, unknown_ids(tokenizer, backend))
        is_stopped = _read_all(documents, reader, passages, disable_tqdm or not shows_bar())
        _warn_of_unknown(reader, argument)
        maker = (KeptSentenceMaker if keep_sentence else ClozeMaker)(
            reader.vocabulary, is_stopped, masks, max_per_passage, seed, max_question
        )
        numbered = enumerate(_all_clozes(maker, passages, disable_tqdm or not shows_bar()))
        if max_clozes is not None:
            chosen = heapq.nsmallest(max_clozes, numbered, key=lambda pair: pair[1].order)
            numbered = iter(sorted(chosen, key=lambda pair: pair[0]))
        examples = _dataset(cloze for _, cloze in numbered)
        if not len(examples):
            raise NoClozesError(_why_none(documents, passages, maker))
        return Clozes(examples, documents.count, len(passages), maker.span_count)


def _masks(tokenizer: PreTrainedTokenizerBase, mask: str | Sequence[str] | None) -> list[str]:
    if mask is None:
        if tokenizer.mask_token is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no mask token to stand for the answer in the "
                'questions; give a word for it, such as mask="what"'
            )
        return [str(tokenizer.mask_token)]
    masks = [mask] if isinstance(mask, str) or not isinstance(mask, Sequence) else list(mask)
    for text in masks or [mask]:
        if not isinstance(text, str) or not text.strip() or len(text.splitlines()) > 1:
            raise ValueError(
                f"mask is {messages.shown(text)}; it must be a word or a few, in one line, such as "
                'mask="what", or a list of such texts'
            )
    return [text.strip() for text in masks]


# ---- all passages --------------------------------------------------------------------------------


def _read_all(
    documents: Documents, reader: PassageReader, passages: Spool, disable: bool
) -> np.ndarray:
    """Read all different passages, and return which words of the vocabulary are stop words."""
    seen: set[bytes] = set()
    counts = _Counts()
    with tqdm(desc="Reading passages", unit="", disable=disable) as bar:
        for passage in reader.read(documents):
            key = hashlib.blake2b(passage.words.tobytes(), digest_size=12).digest()
            if key not in seen:
                seen.add(key)
                passages.add(passage)
                counts.add(passage.words)
                bar.update()
    sizes = np.array(reader.vocabulary.sizes)
    if len(passages) >= MIN_PASSAGES:
        occurrences, found = counts.arrays(len(reader.vocabulary))
        stopped = stop_words(occurrences, found, counts.total, sizes < WORD)
        return stopped & (sizes > LETTER)
    counts = _Counts()
    for passage in passages:
        for sentence in passage.words_by_sentence():
            counts.add(sentence)
    stopped = frequent_words(counts.arrays(len(reader.vocabulary))[1], counts.total)
    return stopped & (sizes == WORD)


class _Counts:
    """How often words occur, and in how many passages or sentences."""

    def __init__(self):
        self._occurrences: Counter[int] = Counter()
        self._passages: Counter[int] = Counter()
        self.total = 0

    def add(self, words: Collection[int]) -> None:
        """Count the words of a passage."""
        self._occurrences.update(words)
        self._passages.update(set(words))
        self.total += 1

    def arrays(self, size: int) -> list[np.ndarray]:
        """Return both counts of each word of a vocabulary."""
        return [
            np.fromiter((counter[number] for number in range(size)), np.int64, size)
            for counter in (self._occurrences, self._passages)
        ]


def _all_clozes(maker: ClozeMaker, passages: Spool, disable: bool) -> Iterator[Cloze]:
    for passage in tqdm(passages, "Making clozes", len(passages), unit="", disable=disable):
        yield from maker.clozes(passage)


def _dataset(clozes: Iterable[Cloze]) -> datasets.Dataset:
    """Return the clozes as examples; rows are converted in blocks, which bounds the memory."""
    schema = FEATURES.arrow_schema
    tables: list[pa.Table] = [schema.empty_table()]
    rows: list[dict[str, Any]] = []
    for cloze in clozes:
        rows.append(cloze.row)
        if len(rows) == _ROWS_AT_ONCE:
            tables.append(pa.Table.from_pylist(rows, schema=schema))
            rows = []
    tables.append(pa.Table.from_pylist(rows, schema=schema))
    return checked_examples(pa.concat_tables(tables))


# ---- messages ------------------------------------------------------------------------------------


def _warn_of_unknown(reader: PassageReader, argument: str) -> None:
    if reader.unknown_count > MAX_UNKNOWN * reader.token_count:
        logger.warning(
            "%.0f%% of the tokens of the texts stand for text that the tokenizer does not know: "
            "its vocabulary is perhaps of another language. If so, choose a model for that "
            "language, and give its tokenizer%s.",
            100 * reader.unknown_count / reader.token_count,
            f" with {argument}" * argument.startswith("--"),
        )


def _why_none(documents: Documents, passages: Spool, maker: ClozeMaker) -> str:
    """Say why there are no clozes, and what to do."""
    single = sum(len(passage.sentences) < 2 for passage in passages)
    counts = f"{counted(documents.count, 'text')} with {counted(len(passages), 'passage')}"
    advice = (
        "Give longer texts: a cloze needs a passage of several sentences in which a name or a term "
        "occurs twice"
    )
    if not len(passages):
        why = "the texts have no words"
    elif isinstance(maker, KeptSentenceMaker):
        why = "their sentences have too few words beside those that could be an answer, or too many"
        advice = "Give texts with longer sentences, or a larger max_seq_length"
    elif single > len(passages) / 2:
        why = f"{single:,} of the passages are one sentence only"
        advice += ". Sentences that belong together must be in one text, such as in one row or file"
    elif not maker.span_count:
        why = "no span of content words occurs 2 to 4 times in a passage"
    else:
        why = (
            f"{counted(maker.span_count, 'span')} that occur again do so in the same sentence, or "
            "in sentences that are too short or too long for a question"
        )
    return f"no clozes could be made of {counts}: {why}. {advice}."


def counted(count: int, thing: str) -> str:
    """Return a number of things in words: `1 text`, `2 texts`."""
    return f"{count:,} {thing}{'s' * (count != 1)}"
