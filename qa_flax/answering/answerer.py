"""`QuestionAnswerer`: asks a model questions about texts."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from qa_flax import messages
from qa_flax.answering.calibrating import (
    AGAIN,
    ScoredExamples,
    calibrated,
    check_has_answers,
    is_of,
    read_calibration,
    score_examples,
)
from qa_flax.answering.forward import Forward
from qa_flax.answering.loading import load_model, load_tokenizer_for
from qa_flax.answering.questions import (
    BLOCK_QUESTIONS,
    STREAM_QUESTIONS,
    TEXTS,
    Call,
    Item,
    Question,
    in_blocks,
    read_call,
)
from qa_flax.answering.results import Found, needs_confidence, result
from qa_flax.answering.settings import Settings
from qa_flax.answers.calibration import Calibration
from qa_flax.answers.ranking import CANDIDATES, Candidate, Span, merged, separate
from qa_flax.answers.window_spans import (
    WindowSpans,
    probable_spans,
    separate_spans,
    window_logits,
)
from qa_flax.answers.words import Words
from qa_flax.data.columns import blocks
from qa_flax.data.examples import load_examples
from qa_flax.data.features import windows_of_texts
from qa_flax.data.windows import LazyWindows
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.tokenizer_fit import position_limit

logger = messages.logger(__name__)

WINDOWS_AT_ONCE = 2048
"""How many windows' logits are kept, at most."""
COMPARED_TEXTS = 24
"""After how many contexts tokens are no longer compared with the texts, if they gave no warning."""
DEFAULT_SEQ_LEN, DEFAULT_STRIDE = 384, 128

Progress = Callable[[int, int], None]
"""Called with the number of windows of a block that are computed, and of all its windows."""


class QuestionAnswerer:
    """Answers questions by spans of texts, as transformers 4's question answering pipeline did.

    The answers and scores are those of that pipeline. Windows of many questions are computed
    together, on all cores of this process. A model that is trained further, or gets other weights,
    answers with its present ones.

    Args:
        model: a folder, the URL of a folder in a bucket or a name on the Hugging Face Hub, as of
            `AutoModelForQuestionAnswering.from_pretrained`; or a model of qa_flax.
        tokenizer: the model's tokenizer, or its folder or name; None: the one beside the model.
        calibration: turns scores into confidences: a `Calibration`, or a folder with the
            `calibration.json` of one; None: that beside the model, if there is one. A calibration
            that was fitted with other weights is ignored, with a warning.
        dtype: compute dtype, "float32" or "bfloat16", of a model that is loaded here.
        revision: branch, tag or commit on the Hub.
        token: the Hub's access token.
        cache_dir: the folder for downloads.
        base_model: for a folder of LoRA adapters, the base model's folder or name.
        progress: called after each batch with the number of windows that are computed and of all
            windows of the present block of questions.
        **settings: defaults of the call's settings:

            - `top_k` (1): how many answers to return at most, best first.
            - `answers` (None): how many separate answers, with confidences, to return at most, and
              `threshold` (0.05): the lowest confidence of these.
            - `handle_impossible_answer` (False): whether "no answer", "", may be an answer.
            - `max_answer_len` (15), `max_seq_len` (384), `doc_stride` (128), `max_question_len`
              (None, no limit): tokens of answers, of windows, that neighbouring windows share, and
              of questions.
            - `align_to_words` (True): whether answers are widened to whole words.
            - `normalize` ("all"): with several contexts, whether confidences sum to 1 over "all" or
              over "each".
            - `batch_size` (what is fast): windows that a core computes at once, at most.
            - `padding`, `num_workers`: of transformers' pipeline, without effect.

    Raises:
        OSError: files are missing, or could not be downloaded.
        TypeError: `model` is no model of qa_flax, or a setting is unknown.
        ValueError: a file or a setting is invalid, or model and tokenizer do not belong together.

    Example:
        >>> from qa_flax import QuestionAnswerer
        >>> answerer = QuestionAnswerer("bert-base-uncased")
        >>> context = "Ada wrote the first program in 1843."
        >>> answer = answerer(question="Who wrote it?", context=context)
        >>> context[answer["start"] : answer["end"]] == answer["answer"]
        True
        >>> sorted(answer)
        ['answer', 'end', 'score', 'start']
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | AutoModelForQuestionAnswering,
        tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase | None = None,
        *,
        calibration: Calibration | str | os.PathLike[str] | None = None,
        dtype: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        base_model: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ):
        self.settings = Settings().changed(settings)
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
        self.model = load_model(model, dtype, base_model, hub)
        self.tokenizer = load_tokenizer_for(self.model, model, tokenizer, base_model, hub)
        self.progress = progress
        self._forward = Forward(self.model)
        self._warned: set[str] = set()
        self._compared = 0  # contexts whose tokens were compared with the texts
        self.calibration = read_calibration(calibration, model, hub)
        self._checked: tuple[Calibration | None, int] | None = None
        self._check_calibration()

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Answer questions.

        Args:
            *inputs: questions without names: a dict `{"question": ..., "context": ...}`, a list or
                a data set of such dicts, an iterator of them, or a question and a context.
            **keywords: `question` and `context`, or `contexts`, and the settings of the
                class, which take precedence over those of the answerer.

                `question` and `context` are texts, or lists of texts of the same length; several
                questions may share one context. `contexts` is a list of texts, or a dict of texts
                by name, of which each question is asked: its answers are the best over all.

        Returns:
            The answers to one question: a dict, or a list of dicts, best first, if there are
            several or with `answers`. A list of those for several questions; for an iterator, an
            iterator, which reads and answers some 256 questions at a time. A dict has

            - `score`: the pipeline's. The sum of the probabilities of the answer's spans in their
              windows; it may exceed 1, and says little about other windows and contexts.
            - `start`, `end`: of the answer in the context, in code points, end exclusive; 0 and 0
              for "no answer".
            - `answer`: `context[start:end]`.
            - `confidence`: how probable it is that the answer is right; if the model is calibrated,
              and with `answers` and `contexts`.
            - `context`: with `contexts`, the index or the name of the answer's context.

        Raises:
            QuestionError: a text is missing, empty or not a text; a `ValueError`.
            TypeError: an argument is unknown, or questions have another form.
            ValueError: a setting is not allowed, or questions do not fit into windows.
        """
        texts = {name: keywords.pop(name) for name in TEXTS if name in keywords}
        settings = self.settings.changed(keywords)
        call: Call = read_call(inputs, texts)
        results = self._answer(call.questions, settings, call.is_stream)
        if call.is_stream:
            return results
        results = list(results)
        return results[0] if call.is_single else results

    def calibrate(
        self,
        examples: Any,
        folder: str | os.PathLike[str] | None = None,
        *,
        language: str | None = None,
    ) -> Calibration:
        """Fit how sure the model is of its answers on questions whose answers are known.

        The model must not have been trained on them. Several hundred questions about many contexts
        like those that it will be asked about are best. Afterwards each answer has a `confidence`.

        Args:
            examples: what `load_examples` reads: a file, a data set or a list of dicts.
            folder: where `calibration.json` is written, usually the model's folder or URL; None:
                nowhere.
            language: compare answers as MLQA's scorer does for this language; None: as SQuAD's.

        Returns:
            The calibration, which is used from now on. Printed, it is a report on how well
            confidences and answers agreed on questions that were not used for the fit.

        Raises:
            ExampleError: the examples cannot be read; a `ValueError`.
            OSError: a file cannot be read or written.
            ValueError: no question has an answer, or the model's scores are NaN or infinite.

        Example:
            >>> from qa_flax import QuestionAnswerer
            >>> answerer = QuestionAnswerer("bert-base-uncased")
            >>> report = answerer.calibrate("dev-v1.1.json")
            >>> report.fitted_questions
            12
            >>> answer = answerer(question="Who wrote it?", context="Ada wrote it.")
            >>> 0 < answer["confidence"] <= 1
            True
        """
        examples = load_examples(examples, require_answers=True)
        check_has_answers(examples)
        calibration = calibrated(self.score_examples(examples, language), self.model)
        if folder is not None:
            calibration.write(folder)
        self.calibration = calibration
        return calibration

    def score_examples(self, examples: Any, language: str | None = None) -> ScoredExamples:
        """Answer the questions of examples, and compare the answers with the known ones.

        Args:
            examples: a result of `load_examples`.
            language: as of `calibrate`.
        """
        settings = replace(self.settings, answers=None)

        def find(questions: Iterable[Question]) -> Iterator[Found]:
            for block in in_blocks(questions, BLOCK_QUESTIONS):
                self._forward.refresh()
                yield from self._find(block, settings, Calibration())

        return score_examples(examples, find, language)

    def _check_calibration(self) -> Calibration | None:
        """Return the calibration; one that was fitted with other weights is dropped and warned of.

        The weights are looked at when they or the calibration have changed since the last time.
        """
        if self.calibration is not None and self._checked != self._calibration_state():
            if not is_of(self.calibration, self.model):
                logger.warning(
                    "The calibration was fitted with other weights than the model has, which was "
                    "trained or changed since, so it is ignored. Make a new one: %s.",
                    AGAIN,
                )
                self.calibration = None
            self._checked = self._calibration_state()
        return self.calibration

    def _calibration_state(self) -> tuple[Calibration | None, int]:
        return self.calibration, self._forward.loads

    # ---- questions -> results --------------------------------------------------------------------

    def _answer(
        self, questions: Iterable[Question], settings: Settings, is_stream: bool
    ) -> Iterator[Any]:
        """Yield the result of each question."""
        waiting: deque[tuple[Question, list[Found]]] = deque()
        size = STREAM_QUESTIONS if is_stream else BLOCK_QUESTIONS
        for number, block in enumerate(in_blocks(questions, size)):
            # A stream may go on for long, but nobody changes the model while a list is answered.
            if number == 0 or is_stream:
                self._forward.refresh()
            calibration = self._check_calibration()
            for item, found in zip(block, self._find(block, settings, calibration), strict=True):
                if item.number == 0:
                    waiting.append((item.question, []))
                waiting[-1][1].append(found)
            while waiting and len(waiting[0][1]) == len(waiting[0][0].contexts):
                question, all_found = waiting.popleft()
                yield result(question, all_found, settings, calibration)

    def _find(
        self, block: list[Item], settings: Settings, calibration: Calibration | None
    ) -> list[Found]:
        """Return what was found for each question in its context."""
        windows = self._windows(block, settings)
        count = settings.spans_per_window
        if any(needs_confidence(item.question, settings, calibration) for item in block):
            count = max(count, CANDIDATES)
        best, own, nulls = [], [], []
        for rows in blocks(len(windows), WINDOWS_AT_ONCE):
            part = windows.select(rows)
            counter = self._counter(rows.start, len(windows))
            logits = self._forward(part, settings.batch_size, counter)
            selected = window_logits(part, logits, self._null_positions(part))
            words = Words(part, settings.align_to_words)
            spans = probable_spans(selected, count, settings.max_answer_len)
            best += _as_lists(spans, words)
            nulls.append(np.stack([spans.null_probabilities, spans.null_scores], axis=1))
            if settings.answers is not None:
                apart = separate_spans(
                    selected, settings.answers, settings.max_answer_len, words.widened
                )
                own += _as_lists(apart, words)
        # Each question has at least one window.
        bounds = np.searchsorted(windows.slices.example, np.arange(len(block) + 1)).tolist()
        lowest = np.minimum.reduceat(np.concatenate(nulls), bounds[:-1]).tolist()
        return [
            _found(item, best[a:b], own[a:b], null, settings, calibration)
            for item, (a, b), null in zip(block, itertools.pairwise(bounds), lowest, strict=True)
        ]

    def _counter(self, first: int, total: int) -> Callable[[int], None]:
        """Return a function that reports the progress after each batch."""
        done = first

        def count(windows: int) -> None:
            nonlocal done
            done += windows
            if self.progress is not None:
                self.progress(done, total)

        return count

    # ---- windows ---------------------------------------------------------------------------------

    def _windows(self, block: list[Item], settings: Settings) -> LazyWindows:
        length = settings.max_seq_len
        limit = position_limit(self.model)
        if length is None:
            length = min(DEFAULT_SEQ_LEN, self.tokenizer.model_max_length, limit or DEFAULT_SEQ_LEN)
        elif limit is not None and length > limit:
            raise ValueError(
                f"max_seq_len is {length}, but the model has positions for windows of {limit} "
                f"tokens only; pass max_seq_len={limit} or less"
            )
        stride = settings.doc_stride
        compare = bool(self._warned) or self._compared < COMPARED_TEXTS
        self._compared += len(block)
        texts = {
            "id": [item.id for item in block],
            "question": [item.question.text for item in block],
            "context": [item.context for item in block],
        }
        try:
            return windows_of_texts(
                texts,
                self.tokenizer,
                max_seq_length=length,
                doc_stride=min(length // 2, DEFAULT_STRIDE) if stride is None else stride,
                max_question_length=settings.max_question_len,
                pad_to_max_length=False,
                disable_tqdm=True,
                words=True,
                compare=compare,
                warn=self._warn,
            )
        except ValueError as error:
            raise ValueError(_in_own_words(str(error))) from error

    def _null_positions(self, windows: LazyWindows) -> np.ndarray | None:
        """Return the position of each window's CLS token; None if windows do not begin with it."""
        ids, _ = windows.layout.template.blocks[0]
        if not ids or ids[0] != self.tokenizer.cls_token_id:
            return None
        return np.zeros(len(windows), np.int64) if windows.cls_index is None else windows.cls_index

    def _warn(self, message: str, *values: Any) -> None:
        """Log a warning, but the same one only once."""
        text = _in_own_words(message % values)
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s", text)


# ---- windows -> spans ----------------------------------------------------------------------------


def _as_lists(spans: WindowSpans, words: Words) -> list[list[Span]]:
    """Return the spans of each window with their characters, without those that are none."""
    starts, ends = words.characters(spans.starts, spans.ends)
    columns = (starts, ends, spans.probabilities, spans.scores)
    counts = (spans.probabilities >= 0).sum(axis=1).tolist()
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        list(zip(*(values[:count] for values in row), strict=True))
        for row, count in zip(rows, counts, strict=True)
    ]


def _found(
    item: Item,
    best: list[list[Span]],
    apart: list[list[Span]],
    null: list[float],
    settings: Settings,
    calibration: Calibration | None,
) -> Found:
    """Combine what the windows of a context give.

    Args:
        item: the question and its context.
        best: the most probable spans of each window.
        apart: its spans that do not overlap; [] unless they are asked for.
        null: the smallest probability of "no answer" in a window, and the smallest sum of logits.
        settings: of the call.
        calibration: of the model.
    """
    context = item.context
    competing: list[Candidate] = []
    if needs_confidence(item.question, settings, calibration):
        # As many for any top_k, so that confidences do not depend on it.
        competing = merged(context, (spans[:CANDIDATES] for spans in best))
    if settings.answers is not None:
        shown = separate(context, apart, settings.answers)
    else:
        shown = merged(context, (spans[: settings.spans_per_window] for spans in best))
        if competing:
            logits = {answer.text.lower(): answer.logit for answer in competing}
            for answer in shown:
                answer.logit = logits.get(answer.text.lower(), answer.logit)
    return Found(shown, competing, *null)


def _in_own_words(message: str) -> str:
    """Return a message about windows with the names of this interface's settings."""
    message = message.replace("max_seq_length", "max_seq_len")
    return message.replace('as long_questions="truncate" does', "as max_question_len does")
