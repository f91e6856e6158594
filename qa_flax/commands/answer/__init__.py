"""`qa-flax answer`: ask a model questions about texts, at a prompt or in batches."""

import argparse
from typing import Any

from qa_flax.commands.hidden_torch import show_torch

SUMMARY = "ask a model questions about texts: at a prompt, or a file of questions"

USAGE = """qa-flax answer --model_name_or_path DIR_OR_HUB_ID --context FILE_OR_FOLDER [...]
       qa-flax answer --model_name_or_path DIR_OR_HUB_ID --context FILE --question TEXT
       qa-flax answer --model_name_or_path DIR_OR_HUB_ID --input FILE --output FILE.jsonl"""

DESCRIPTION = """Answer questions by spans of texts. Without --question and --input, questions are
asked at a prompt, or read from standard input, one in each line. The names and defaults of the
settings are those of the question answering pipeline of transformers 4."""

_LEAVE_OUT = "leave it out"
# Arguments of other programs and of other commands of this one -> what to do here.
OTHER_NAMES = {
    "n_best_size": "use --top_k, the number of answers to give",
    "n_best": "use --top_k",
    "topk": "use --top_k",
    "null_score_diff_threshold": "calibrate the model: then its own no-answer threshold is used",
    "model": "use --model_name_or_path",
    "revision": "use --model_revision",
    "file": "use --context for the text, or --input for a file of questions",
    "text": "use --context with a file of the text",
    "test_file": "use --input",
    "validation_file": "use --input",
    "predict_file": "use --input",
    "questions_file": "use --input, or pipe the questions, one in each line",
    "dataset_name": "use --input with a file, or the id of a data set on the Hub",
    "output_dir": "use --output with the name of a .jsonl file",
    "output_file": "use --output",
    "overwrite_output_dir": "use --overwrite_output",
    "do_predict": f"{_LEAVE_OUT}: this command does nothing else",
    "do_eval": "use qa-flax run, which scores answers",
    "per_device_eval_batch_size": "use --batch_size",
    "bf16": "use --dtype bfloat16",
    "fp16": "use --dtype bfloat16",
    "use_auth_token": "use --token",
    "device": f"{_LEAVE_OUT}: JAX computes on the TPU or GPU that it finds, else on the CPU",
    "trust_remote_code": f"{_LEAVE_OUT}: no code that comes with a model is ever run",
    "use_fast_tokenizer": f"{_LEAVE_OUT}: tokenizers are always the fast ones",
    "do_lower_case": f"{_LEAVE_OUT}: the tokenizer's own setting is used",
    "padding": f"{_LEAVE_OUT}: padding takes no part in any answer",
    "answer_column": f"{_LEAVE_OUT}: the answers of the input are not read",
    "misaligned_answers": f"{_LEAVE_OUT}: the answers of the input are not read",
    "language": "use qa-flax score --language for the scores of the answers",
    "save_spans": f"{_LEAVE_OUT}: every answer has its start and end",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    parser = argparse.ArgumentParser(
        prog="qa-flax answer", usage=USAGE, description=" ".join(DESCRIPTION.split())
    )
    parser.other_names = OTHER_NAMES  # pyright: ignore[reportAttributeAccessIssue]
    _add_model(parser.add_argument_group("model"))
    _add_texts(parser.add_argument_group("texts and questions"))
    _add_batch(parser.add_argument_group("a file of questions"))
    _add_answers(parser.add_argument_group("answers"))
    return parser


def _add_model(group: Any) -> None:
    group.add_argument(
        "--model_name_or_path",
        required=True,
        metavar="MODEL",
        help="the model: a folder with config.json and model.safetensors, such as the --output_dir "
        "of qa-flax run, or a model id on the Hugging Face Hub",
    )
    group.add_argument(
        "--tokenizer_name",
        metavar="NAME",
        help="folder or Hub id of the tokenizer, if it differs from the model's",
    )
    group.add_argument(
        "--base_model_name_or_path",
        metavar="MODEL",
        help="the base model, if MODEL has PEFT's adapters and their base is not where "
        "adapter_config.json says",
    )
    group.add_argument(
        "--calibration",
        metavar="DIR",
        help="folder with the calibration.json of the model, if it is not in the model's",
    )
    group.add_argument(
        "--model_revision", metavar="NAME", help="branch, tag or commit of the model on the Hub"
    )
    group.add_argument("--token", help="access token for the Hub; prefer `hf auth login`")
    group.add_argument("--cache_dir", metavar="DIR", help="folder for what is downloaded")
    group.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="data type of the computation (default: float32)",
    )
    group.add_argument(
        "--batch_size",
        type=int,
        metavar="N",
        help="windows that a core computes at once, at most (default: 32)",
    )


def _add_texts(group: Any) -> None:
    group.add_argument(
        "--context",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="the text to ask about: a text file (UTF-8 or UTF-16), several files, or a folder, "
        "whose *.txt and *.md files are read. The best answers over all files are given, each "
        "with the name of its file.",
    )
    group.add_argument(
        "--question",
        action="append",
        metavar="TEXT",
        help="answer this question and exit; may be repeated",
    )


def _add_batch(group: Any) -> None:
    group.add_argument(
        "--input",
        metavar="FILE",
        help="questions with their contexts: SQuAD JSON, JSONL, CSV or Parquet, as of qa-flax run; "
        "rows without a context are asked of --context",
    )
    group.add_argument(
        "--output",
        metavar="FILE.jsonl",
        help="write a line of JSON for each question, in the order of the questions",
    )
    group.add_argument(
        "--overwrite_output", action="store_true", help="replace --output if it exists"
    )
    for column in ("question", "context", "id"):
        group.add_argument(
            f"--{column}_column",
            metavar="NAME",
            help=f"name of the column of --input with the {column}s, if it is not {column}",
        )
    group.add_argument(
        "--bad_rows",
        choices=["refuse", "skip"],
        help="what to do with rows of --input that cannot be used: refuse the file (default), or "
        "skip them and write them with the reasons beside --output, as FILE.rejected.jsonl",
    )


def _add_answers(group: Any) -> None:
    group.add_argument(
        "--top_k", type=int, metavar="N", help="give the N best answers, best first (default: 1)"
    )
    group.add_argument(
        "--answers",
        type=int,
        metavar="N",
        help="give at most N answers that do not overlap, each with a confidence of --threshold "
        "or more",
    )
    group.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="the lowest confidence of --answers, from 0 to 1 (default: 0.05)",
    )
    group.add_argument(
        "--normalize",
        choices=["all", "each"],
        help="with several contexts: confidences sum to 1 over the answers in all of them "
        "(default), or over those in each",
    )
    _add_switch(
        group,
        "--handle_impossible_answer",
        "--version_2_with_negative",
        text="the question may have no answer in the context",
    )
    _add_switch(group, "--no_align_to_words", text="do not widen answers to whole words")
    for names, text in (
        (("--max_answer_len", "--max_answer_length"), "longest answer, in tokens (default: 15)"),
        (
            ("--max_seq_len", "--max_seq_length"),
            "tokens in a window (default: 384, or the model's limit); long contexts have several",
        ),
        (("--doc_stride",), "tokens that two neighbouring windows share (default: 128)"),
        (
            ("--max_question_len", "--max_query_length"),
            "truncate longer questions to this number of tokens (default: none is)",
        ),
    ):
        group.add_argument(*names, type=int, metavar="N", help=text)


def _add_switch(group: Any, *names: str, text: str) -> None:
    """Add a flag that may also be given a value, as those of `qa-flax run`."""
    values = {"nargs": "?", "const": True, "default": False, "metavar": "BOOL"}
    group.add_argument(*names, type=_boolean, help=text, **values)


def _boolean(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}; use true or false")
    return words[text.lower()]


def main(parsed: argparse.Namespace) -> None:
    """Answer questions, as the arguments say.

    Raises:
        UsageError: a file, an argument, a question or the model is invalid.
        OSError: the answers cannot be written.
    """
    from qa_flax.commands.answer.check import check
    from qa_flax.commands.errors import usage_errors

    with usage_errors(ValueError, OSError):
        check(parsed)
    from qa_flax.commands.answer.job import run  # slow, so that it comes after the checks

    show_torch()
    run(parsed)
