"""The work of `qa-flax answer`: load texts, questions and model, and answer the questions."""

import argparse
import sys
from typing import Any

from qa_flax import storage
from qa_flax.answering.answerer import QuestionAnswerer
from qa_flax.answering.calibrating import read_calibration
from qa_flax.commands.answer.batch import answer_questions, read_rows
from qa_flax.commands.answer.progress import Progress
from qa_flax.commands.answer.prompt import Asker, ask, piped_questions
from qa_flax.commands.answer.texts import Texts, read_texts
from qa_flax.commands.errors import TOKENIZER_ARGUMENT, model_errors, usage_errors
from qa_flax.data.examples import LoadedExamples
from qa_flax.data.tokenizer_checks import fast_backend
from qa_flax.data.tokens import encode_distinct, plain_encoding
from qa_flax.device import parallel
from qa_flax.messages import escaped
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.tokenizer_fit import load_fitting_tokenizer, position_limit


def run(args: argparse.Namespace) -> None:
    """Answer the questions of `--input`, `--question`, standard input or the prompt.

    Raises:
        UsageError: a file, an argument, a question or the model is invalid.
        OSError: the answers cannot be written.
    """
    with usage_errors(ValueError, OSError):
        texts = None if args.context is None else read_texts(args.context)
        _check_normalize(args, texts)
        rows = None if args.output is None else _rows(args)
        progress = Progress()
        answerer = _load(args, progress)
    _report(args, answerer, texts, rows)
    if rows is not None and args.output is not None:
        with usage_errors(ValueError):
            answer_questions(answerer, rows, texts, storage.path(args.output), progress)
        return
    assert texts is not None
    asker = Asker(answerer, texts, progress)
    if args.question is None and sys.stdin.isatty():
        ask(asker)
        return
    with usage_errors(ValueError):
        questions = args.question or piped_questions()
        asker.print_all(questions, names_each=len(args.question or ()) != 1)


def _rows(args: argparse.Namespace) -> LoadedExamples:
    """The questions of a batch: rows of `--input`, or those given otherwise."""
    if args.input is not None:
        return read_rows(args)
    return read_rows(args, list(args.question or piped_questions()))


# ---- loading -------------------------------------------------------------------------------------


def _check_normalize(args: argparse.Namespace, texts: Texts | None) -> None:
    if args.normalize is not None and (texts is None or texts.is_single):
        raise ValueError(
            "--normalize says how the confidences of several contexts are normalized, but there is "
            "only one; remove it, or give several files or a folder with --context"
        )


def _load(args: argparse.Namespace, progress: Progress) -> QuestionAnswerer:
    """Load the model and its tokenizer.

    Raises:
        OSError: files are missing, or could not be downloaded.
        ValueError: a file or an argument is invalid, or model and tokenizer do not belong together.
    """
    hub: dict[str, Any] = {"revision": args.model_revision, "token": args.token}
    hub["cache_dir"] = args.cache_dir
    source, base = args.model_name_or_path, args.base_model_name_or_path
    with model_errors():
        model = AutoModelForQuestionAnswering.from_pretrained(
            source, dtype=args.dtype, base_model=base, **hub
        )
        tokenizer = load_fitting_tokenizer(
            model, source, args.tokenizer_name, base_model=base, argument=TOKENIZER_ARGUMENT, **hub
        )
        calibration = read_calibration(args.calibration, source, hub)
    limit = position_limit(model)
    if args.max_seq_len is not None and limit is not None and args.max_seq_len > limit:
        raise ValueError(
            f"--max_seq_len is {args.max_seq_len}, but {source} has positions for windows of "
            f"{limit} tokens only; use --max_seq_len {limit} or less"
        )
    names = ("top_k", "answers", "threshold", "doc_stride", "max_answer_len", "max_seq_len")
    names += ("max_question_len", "batch_size", "normalize")
    settings = {name: getattr(args, name) for name in names}
    settings["handle_impossible_answer"] = args.handle_impossible_answer
    settings["align_to_words"] = not args.no_align_to_words
    return QuestionAnswerer(
        model, tokenizer, calibration=calibration, progress=progress, **settings
    )


def _report(
    args: argparse.Namespace,
    answerer: QuestionAnswerer,
    texts: Texts | None,
    rows: LoadedExamples | None,
) -> None:
    """Say on stderr what was loaded."""
    model = answerer.model
    kind = f"{model.config.model_type}, {model.num_parameters():,} parameters, {args.dtype}"
    if answerer.calibration is not None:
        kind += ", calibrated"
    print(
        f"Model: {escaped(args.model_name_or_path)} ({kind}) on {parallel.describe_cores()}",
        file=sys.stderr,
    )
    if texts is not None:
        print(f"Context: {_described(texts, answerer)}", file=sys.stderr)
    if rows is not None and args.input is not None:
        print(f"Questions: {rows.counts()}", file=sys.stderr)


def _described(texts: Texts, answerer: QuestionAnswerer) -> str:
    """Name the texts, with their characters and tokens."""
    names, values = list(texts.by_name), list(texts.by_name.values())
    tokenizer = answerer.tokenizer
    backend = fast_backend(tokenizer)
    with plain_encoding(backend, tokenizer.split_special_tokens):
        tokens = encode_distinct(values, backend, disable=True).count.sum()
    what = escaped(names[0]) if len(names) == 1 else f"{len(names):,} files"
    return f"{what}, {sum(map(len, values)):,} characters, {tokens:,} tokens"
