"""`qa-flax clozes`: make questions from texts without labels, to train on first (host, no JAX)."""

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from qa_flax.commands.errors import TOKENIZER_ARGUMENT, usage_errors
from qa_flax.commands.hidden_torch import show_torch
from qa_flax.messages import printable
from qa_flax.ranges import SEED, at_least, check_flags

logger = logging.getLogger(__name__)

SUMMARY = "make questions from your own texts without labels, to train on before the labelled ones"
SUFFIX = ".json"

DESCRIPTION = """Make questions from texts without labels. A span that occurs again in its passage
becomes the answer; the sentence around one occurrence, with the span masked, becomes the question
and is left out of the context. Train on them with qa-flax run --train_file, and then on your
labelled questions, starting from that output folder."""

# Arguments of other commands and programs -> what to do here.
OTHER_NAMES = {
    "model_name_or_path": "use --tokenizer_name with the same folder or Hub id",
    "tokenizer": "use --tokenizer_name",
    "output_dir": "use --output with the name of a .json file",
    "output_file": "use --output",
    "overwrite_output_dir": "use --overwrite_output",
    "context": "name the files and folders without a flag",
    "input": "name the files and folders without a flag",
    "train_file": "name the files and folders without a flag",
    "dataset_name": "name the data set without a flag",
    "dataset_split": "use --split",
    "max_train_samples": "use --max_clozes",
    "max_samples": "use --max_clozes",
    "data_seed": "use --seed",
    "mask_token": "use --mask",
    "text_column": "use --context_column",
    "question_column": "leave it out: the questions of the documents are not read",
    "answer_column": "leave it out: the answers of the documents are not read",
}
_RANGES = {
    "max_clozes": at_least(1).or_none(),
    "max_per_passage": at_least(1),
    "max_seq_length": at_least(1),
    "seed": SEED,
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    parser = argparse.ArgumentParser(
        prog="qa-flax clozes",
        description=" ".join(DESCRIPTION.split()),
        allow_abbrev=False,  # --context, of `qa-flax answer`, is not --context_column
    )
    parser.other_names = OTHER_NAMES  # pyright: ignore[reportAttributeAccessIssue]
    parser.add_argument(
        "docs",
        nargs="+",
        metavar="DOCS",
        help="texts: .txt and .md files, data files as of qa-flax run (only their contexts are "
        "read, each once), folders of such files, or the id of a data set on the Hub",
    )
    parser.add_argument(
        "--tokenizer_name",
        required=True,
        metavar="NAME",
        help="folder or Hub id of the model that will be trained, or of its tokenizer",
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE.json", help="SQuAD JSON file to write"
    )
    parser.add_argument(
        "--overwrite_output", action="store_true", help="replace --output if it exists"
    )
    parser.add_argument(
        "--mask",
        action="append",
        metavar="TEXT",
        help="what stands for the answer in a question (default: the tokenizer's mask token); a "
        "word such as what makes it more like a question. Given several times, each question gets "
        "one of these texts",
    )
    parser.add_argument(
        "--keep_sentence",
        action="store_true",
        help="make questions about sentences that stay in the context, with some words left out "
        "and some moved; their spans need not occur again",
    )
    for name, default, text in (
        ("--max_clozes", None, "write at most N clozes, of as many passages as possible"),
        ("--max_per_passage", 6, "make at most N clozes of a passage (default: 6)"),
        (
            "--max_seq_length",
            384,
            "tokens of the windows to train on: a question and its context fit into one "
            "(default: 384)",
        ),
        ("--seed", 42, "chooses spans and sentences (default: 42)"),
    ):
        parser.add_argument(name, type=int, default=default, metavar="N", help=text)
    _add_sources(parser.add_argument_group("data files and data sets"))
    return parser


def _add_sources(group: Any) -> None:
    group.add_argument(
        "--context_column",
        metavar="NAME",
        help="name of the column with the texts, if it is not context",
    )
    group.add_argument("--split", metavar="NAME", help="split of a data set that has several")
    group.add_argument(
        "--dataset_config_name", metavar="NAME", help="configuration of a data set on the Hub"
    )
    group.add_argument("--cache_dir", metavar="DIR", help="folder for what is downloaded")
    group.add_argument("--token", help="access token for the Hub; prefer `hf auth login`")


def main(parsed: argparse.Namespace) -> int | None:
    """Write the clozes, and print how many there are and what to do with them.

    Returns:
        1 if no cloze could be made.

    Raises:
        UsageError: an argument, a document or the tokenizer is invalid.
        OSError: the file cannot be written.
    """
    with usage_errors(ValueError, OSError):
        _check(parsed)
    # Slow, so that they come after the checks.
    from qa_flax import storage
    from qa_flax.commands.wording import in_flags
    from qa_flax.data.cloze_files import squad_json
    from qa_flax.data.clozes import NoClozesError, counted, find_clozes
    from qa_flax.data.documents import Documents
    from qa_flax.data.tokenizer_files import load_tokenizer

    show_torch()
    hub = {"cache_dir": parsed.cache_dir, "token": parsed.token}
    hub = {name: value for name, value in hub.items() if value is not None}
    output = storage.path(parsed.output)
    with usage_errors(ValueError, OSError):
        storage.check_writable(output.parent)
        tokenizer = load_tokenizer(parsed.tokenizer_name, argument=TOKENIZER_ARGUMENT, **hub)
        documents = Documents(
            parsed.docs,
            split=parsed.split,
            config_name=parsed.dataset_config_name,
            context_column=parsed.context_column,
            load_dataset_kwargs=hub,
            excluded={_resolved(parsed.output)},
            warn=lambda message, *values: logger.warning("%s", in_flags(message % values)),
        )
        try:
            clozes = find_clozes(
                documents,
                tokenizer,
                mask=parsed.mask,
                keep_sentence=parsed.keep_sentence,
                max_clozes=parsed.max_clozes,
                max_per_passage=parsed.max_per_passage,
                max_seq_length=parsed.max_seq_length,
                seed=parsed.seed,
                argument=TOKENIZER_ARGUMENT,
            )
        except NoClozesError as error:
            print(f"qa-flax: {in_flags(str(error))}", file=sys.stderr)
            return 1
    storage.write_texts(output, squad_json(clozes.examples))
    if documents.others:
        kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in documents.others.most_common(5))
        print(
            printable(f"Not read in the folders, because they hold neither text nor data: {kinds}")
        )
    found = counted(clozes.spans, "sentence" if parsed.keep_sentence else "recurring span")
    found += " to ask about" * parsed.keep_sentence
    print(
        printable(
            f"{counted(clozes.documents, 'text')}, {counted(clozes.passages, 'passage')}, "
            f"{found}: {counted(len(clozes.examples), 'cloze')} "
            f"written to {parsed.output}"
        )
    )
    print(printable(_next_steps(parsed)))
    return None


def _next_steps(parsed: argparse.Namespace) -> str:
    model, output = shlex.quote(parsed.tokenizer_name), shlex.quote(parsed.output)
    folder = Path(parsed.output).stem
    first, second = shlex.quote(f"out-{folder}"), shlex.quote(f"out-{folder}-labelled")
    length = f" --max_seq_length {parsed.max_seq_length}" if parsed.max_seq_length != 384 else ""
    stride = ""
    if parsed.max_seq_length < 256:  # the default of 128 must be less than a window has room for
        stride = f" --doc_stride {parsed.max_seq_length // 4}"
    return (
        "Next, train on them, and then on your labelled questions (QUESTIONS.json):\n"
        f"  qa-flax run --model_name_or_path {model} --train_file {output} --do_train "
        f"--num_train_epochs 1{length}{stride} --output_dir {first}\n"
        f"  qa-flax run --model_name_or_path {first} --train_file QUESTIONS.json --do_train "
        f"--validation_split 0.2 --do_eval{length}{stride} --output_dir {second}"
    )


# ---- checks --------------------------------------------------------------------------------------


def _check(parsed: argparse.Namespace) -> None:
    """Refuse values that are not allowed, before anything slow is imported or done.

    Raises:
        ValueError: says what to do instead.
    """
    from qa_flax import storage

    check_flags(_RANGES, parsed)
    output = parsed.output
    if Path(output).suffix.lower() != SUFFIX:
        raise ValueError(
            f"--output is {output}, but clozes are written as SQuAD JSON; give a name that ends in "
            f"{SUFFIX}"
        )
    path = storage.path(output)
    if path.is_dir():
        raise ValueError(f"--output {output} is a folder; give the name of a file")
    for doc in parsed.docs:
        if _resolved(doc) == _resolved(output):
            raise ValueError(f"--output {output} would overwrite {doc}, which is read")
    if path.exists() and not parsed.overwrite_output:
        raise ValueError(
            f"--output {output} exists already; add --overwrite_output to replace it, or give "
            "another name"
        )


def _resolved(name: str) -> Path:
    """Return the path behind links; a URL is no local path, and equals only itself."""
    from qa_flax import storage

    return Path(name if storage.is_remote(name) else os.path.realpath(os.path.expanduser(name)))
