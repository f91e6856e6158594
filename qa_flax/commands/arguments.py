"""The arguments of `qa-flax run`, in addition to the training arguments (host, no JAX).

Arguments that Hugging Face's run_qa.py also has keep its names and defaults.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any, get_type_hints

from qa_flax.commands import argument_file
from qa_flax.commands.grouped_help import Grouping, add_help, grouped_help
from qa_flax.ranges import BELOW_1, NUMBER, POSITIVE, Range, at_least, check_flags

_COUNT = at_least(1)
_OPTIONAL_COUNT = at_least(1).or_none()
_RANGES = {
    "lora_r": at_least(0),
    "lora_alpha": POSITIVE,
    "lora_dropout": BELOW_1,
    "validation_split": Range(
        "a share of the training data, above 0 and below 1, such as 0.1",
        lambda v: 0 < v < 1,
        is_optional=True,
    ),
    "folds": Range(
        "at least 2 for cross-validation", lambda v: v >= 2, is_whole=True, is_optional=True
    ),
    "max_seq_length": _COUNT,
    "doc_stride": at_least(0),
    "preprocessing_num_workers": _OPTIONAL_COUNT,
    "augment_preview": at_least(0),
    "max_train_samples": _OPTIONAL_COUNT,
    "max_eval_samples": _OPTIONAL_COUNT,
    "max_predict_samples": _OPTIONAL_COUNT,
    "null_score_diff_threshold": NUMBER,
    "n_best_size": _COUNT,
    "max_answer_length": _COUNT,
    "num_processes": _OPTIONAL_COUNT,
    "process_id": at_least(0).or_none(),
    "initialization_timeout": POSITIVE,
}


@dataclass
class ModelArguments:
    """The model to start from: its weights, config, tokenizer, dtype and LoRA adapters."""

    model_name_or_path: str = field(
        metadata={
            "help": "Model to fine-tune or evaluate: a directory with config.json and "
            "model.safetensors, or a model id on the Hugging Face Hub."
        }
    )
    config_name: str | None = field(
        default=None,
        metadata={"help": "Directory or Hub id of the config, if it differs from the model's."},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Directory or Hub id of the tokenizer, if it differs from the model's."},
    )
    base_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Directory or Hub id of the base model, if model_name_or_path has PEFT's "
            "adapters and their base is not where adapter_config.json says."
        },
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Directory for models and data sets downloaded from the Hub."},
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."}
    )
    token: str | None = field(
        default=None,
        metadata={
            "help": "Access token for the Hub. Prefer `hf auth login` or the environment variable "
            "HF_TOKEN, because other users of the machine can read command lines."
        },
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Data type of the computation; parameters are always float32. --bf16 has the "
            "same effect as --dtype bfloat16.",
            "choices": ["float32", "bfloat16"],
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Not supported: only the model code of qa-flax itself is run."},
    )
    lora_r: int = field(
        default=0,
        metadata={
            "help": "Rank of LoRA adapters. If above 0, only the adapters and the span head are "
            "trained; if 0, all parameters are."
        },
    )
    lora_alpha: float = field(
        default=16.0,
        metadata={
            "help": "LoRA scaling: the adapters' output is multiplied by lora_alpha / lora_r."
        },
    )
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout probability of the adapters' input."}
    )
    lora_target_modules: str | None = field(
        default=None,
        metadata={
            "help": "Layers that get adapters, required with --lora_r: comma-separated PyTorch "
            "names (query,value for BERT), or all-linear."
        },
    )

    def __post_init__(self):
        check_flags(_RANGES, self)
        if self.lora_target_modules and not self.lora_r:
            raise ValueError("--lora_target_modules has no effect without --lora_r")
        if self.trust_remote_code:
            raise ValueError(
                "--trust_remote_code is not supported: qa-flax never runs code that comes with a "
                "checkpoint; remove the argument"
            )


@dataclass
class DataArguments:
    """The data, how to cut it into windows, and how to choose the answers."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set id on the Hub."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration name of the Hub data set."}
    )
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Training data: a SQuAD JSON (nested or flat), JSONL, CSV or Parquet file, "
            "also compressed (.gz, .bz2, .xz)."
        },
    )
    extra_train_file: str | None = field(
        default=None,
        metadata={
            "help": "Further training data, such as SQuAD beside your own, in the same formats. "
            "extra_train_ratio says which share of the batches of each epoch comes from it. "
            "max_train_samples, validation_split and folds apply to the own data only."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Evaluation data, in the same formats."}
    )
    test_file: str | None = field(
        default=None,
        metadata={"help": "Data for --do_predict, in the same formats; answers are optional."},
    )
    question_column: str | None = field(
        default=None,
        metadata={"help": "Name of the column with the questions, if it is not question."},
    )
    context_column: str | None = field(
        default=None,
        metadata={"help": "Name of the column with the contexts, if it is not context."},
    )
    answer_column: str | None = field(
        default=None,
        metadata={
            "help": "Name of the column with the answers, if it is not answers: their text and "
            "start, or the text alone."
        },
    )
    id_column: str | None = field(
        default=None, metadata={"help": "Name of the column with the ids, if it is not id."}
    )
    validation_split: float | None = field(
        default=None,
        metadata={
            "help": "Share of the training data, such as 0.1, to keep for evaluation instead of a "
            "validation file. Questions about one text are never separated (see split_by). The "
            "choice depends on data_seed, or on seed without one; max_train_samples and "
            "max_eval_samples apply after it."
        },
    )
    folds: int | None = field(
        default=None,
        metadata={
            "help": "Cross-validation with this many trainings: each part of the training data is "
            "the evaluation data of one of them. Results, mean and standard deviation are in "
            "folds.json, the models in fold-1, fold-2 and so on in output_dir. The models together "
            "answer the test data (do_predict)."
        },
    )
    split_by: str = field(
        default="auto",
        metadata={
            "help": "What validation_split and folds never separate: questions about the same "
            "context, or about contexts with the same title. auto: title if the data has several "
            "titles, else context.",
            "choices": ["auto", "title", "context"],
        },
    )
    max_seq_length: int = field(
        default=384,
        metadata={
            "help": "Maximum tokens of a window (question, context and special tokens). Longer "
            "contexts are split into several overlapping windows."
        },
    )
    doc_stride: int = field(
        default=128,
        metadata={"help": "Overlap of two consecutive windows of a context, in tokens."},
    )
    pad_to_max_length: bool = field(
        default=True,
        metadata={
            "help": "Pad every window to max_seq_length. --no_pad_to_max_length pads to the "
            "longest window of the data instead."
        },
    )
    overwrite_cache: bool = field(
        default=False,
        metadata={"help": "No effect: windows are computed in each run and never cached."},
    )
    preprocessing_num_workers: int | None = field(
        default=None,
        metadata={"help": "No effect: the tokenizer always uses all CPU cores."},
    )
    max_train_samples: int | None = field(
        default=None,
        metadata={"help": "Use only the first N examples of the training data."},
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={
            "help": "Use only the first N examples of the evaluation data.",
            "aliases": ["--max_val_samples"],
        },
    )
    max_predict_samples: int | None = field(
        default=None,
        metadata={"help": "Use only the first N examples of the test data."},
    )
    version_2_with_negative: bool = field(
        default=False,
        metadata={"help": "The data may have questions without an answer (SQuAD v2.0)."},
    )
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={
            "help": "Predict no answer if the null score exceeds the best span's score by more "
            "than this (with --version_2_with_negative)."
        },
    )
    n_best_size: int = field(
        default=20,
        metadata={
            "help": "Number of best spans to write for each question; also the number of best "
            "start and of best end tokens to combine in each window."
        },
    )
    max_answer_length: int = field(
        default=30, metadata={"help": "Maximum length of an answer, in tokens."}
    )
    accept_changes: bool = field(
        default=False,
        metadata={
            "help": "Resume from a checkpoint even if the seed, batch size, data or model differ "
            "from the interrupted run's."
        },
    )
    misaligned_answers: str = field(
        default="drop",
        metadata={
            "help": "What to do with answers that are not in the context at their answer_start. "
            "drop: train on the nearest place where their text occurs, or not at all if it occurs "
            "nowhere; evaluate on them as they are. keep: train on what is at their answer_start. "
            "repair: move them, also to other spellings of their text. refuse the data.",
            "choices": ["drop", "keep", "repair", "refuse"],
        },
    )
    answers: str = field(
        default="first",
        metadata={
            "help": "Which answers of a question are labels. all: the loss of a window is that of "
            "the probability of all its answers together, for data with several answers to a "
            "question; first: the others are not trained on, as in run_qa.py.",
            "choices": ["first", "all"],
        },
    )
    bad_rows: str = field(
        default="refuse",
        metadata={
            "help": "What to do with rows that cannot be used: refuse the data, or skip them and "
            "write them with the reasons to rejected.jsonl in output_dir.",
            "choices": ["refuse", "skip"],
        },
    )

    long_questions: str = field(
        default="truncate",
        metadata={
            "help": "What to do with questions that leave no room for the context in the window: "
            "truncate them and warn, or refuse the data.",
            "choices": ["truncate", "refuse"],
        },
    )
    language: str | None = field(
        default=None,
        metadata={
            "help": "Score answers with the rules of MLQA's scorer for this language, as qa-flax "
            "score --language does, instead of SQuAD's.",
            "choices": ["ar", "de", "en", "es", "hi", "vi", "zh"],
        },
    )
    hf_compatible: bool = field(
        default=False,
        metadata={
            "help": "Post-process answers exactly as Hugging Face's utils_qa.py does, with its "
            'defects, such as the answer "empty".'
        },
    )
    save_spans: bool = field(
        default=False,
        metadata={
            "help": "Also write eval_spans.json and predict_spans.json: the spans of the n-best "
            "lists with their start and end in the context, in characters."
        },
    )

    augment_preview: int = field(
        default=0,
        metadata={
            "help": "Before the training, print the first N training questions as augment and "
            "paraphrases change them in the first epoch."
        },
    )

    calibrate: bool = field(
        default=False,
        metadata={
            "help": "After the evaluation, fit how sure the model may be of its answers on the "
            "validation data, and write it to calibration.json in output_dir, for the confidence "
            "that QuestionAnswerer and qa-flax answer give. Reports the expected calibration error "
            "and how many questions can be answered with 80 of 100 right, on questions that were "
            "not used for the fit."
        },
    )

    gather: str = field(
        default="topk",
        metadata={
            "help": "What is copied from the devices to the host in evaluation: only the best "
            "start and end tokens of each window (topk), or all logits. The answers are the same.",
            "choices": ["topk", "logits"],
        },
    )

    def __post_init__(self):
        if not (self.dataset_name or self.train_file or self.validation_file or self.test_file):
            raise ValueError(
                "no data: set --train_file, --validation_file, --test_file or --dataset_name"
            )
        check_flags(_RANGES, self)
        self._check_split()

    def _check_split(self) -> None:
        share, folds = self.validation_split, self.folds
        if share is not None and folds is not None:
            raise ValueError(
                "--folds and --validation_split exclude each other: every fold is evaluated on its "
                "own part of the training data; remove one of them"
            )
        flag = "--folds" if folds is not None else "--validation_split"
        if share is None and folds is None:
            if self.split_by != "auto":
                raise ValueError(
                    "--split_by has no effect without --validation_split or --folds; add one of "
                    "them, or remove it"
                )
        elif self.validation_file is not None:
            raise ValueError(
                f"{flag} takes the evaluation data from the training data, but --validation_file "
                "names other evaluation data; remove one of them"
            )
        elif self.train_file is None and self.dataset_name is None:
            raise ValueError(
                f"{flag} splits the training data; give it with --train_file or --dataset_name"
            )


@dataclass
class DistributedArguments:
    """How the processes of a run find each other, and the backend they must run on."""

    distributed: bool = field(
        default=False,
        metadata={
            "help": "Run as one of several processes: start the same command on every host. On TPU "
            "VMs, GKE, Slurm and MPI, JAX detects the other processes."
        },
    )
    coordinator: str | None = field(
        default=None,
        metadata={"help": "Address of process 0, HOST:PORT, if JAX cannot detect it."},
    )
    num_processes: int | None = field(
        default=None,
        metadata={"help": "Number of processes of the run, if JAX cannot detect it."},
    )
    process_id: int | None = field(
        default=None,
        metadata={"help": "Index of this process, counted from 0, if JAX cannot detect it."},
    )
    initialization_timeout: float = field(
        default=300.0,
        metadata={"help": "Seconds to wait for the other processes at the start."},
    )
    require_backend: str | None = field(
        default=None,
        metadata={
            "help": "Stop with an error if JAX runs on another backend. Without this argument, JAX "
            "may silently fall back to the CPU.",
            "choices": ["cpu", "gpu", "tpu"],
        },
    )

    def __post_init__(self):
        flags = [
            f"--{name}"
            for name in ("coordinator", "num_processes", "process_id")
            if getattr(self, name) is not None
        ]
        if flags and not self.distributed:
            raise ValueError(
                f"arguments without effect unless --distributed is set: {', '.join(flags)}"
            )
        check_flags(_RANGES, self)


def dataclass_parser(
    *kinds: Any,
    without: Collection[str] = (),
    positional: Mapping[str, str] | None = None,
    own: tuple[str, Sequence[str]] = ("", ()),
    **options: Any,
) -> argparse.ArgumentParser:
    """Build a parser with one argument for each field of the given dataclasses.

    `parse_args(...).dataclasses` is a tuple with one instance of each dataclass, and `given` a dict
    of the arguments that were given, by name, with their converted values. A first argument that
    ends in .json, .yaml or .yml is a file with values of arguments; the arguments after it take
    precedence over the file's.

    Args:
        kinds: dataclasses as transformers' `HfArgumentParser` takes them.
        without: fields that the command has no argument for, so that they keep their defaults.
        positional: a field that is given without a flag, such as the data, by its name in messages.
            Then no argument is a file of arguments.
        own: title and names of the command's own arguments, which the help shows first.
        options: passed to `argparse.ArgumentParser`, such as `prog` and `description`.
    """
    from transformers import HfArgumentParser  # imported here because it is slow

    # Before the parser replaces the annotations that argparse cannot use.
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}

    class Parser(HfArgumentParser):
        def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, args: Sequence[str] | None = None, namespace: None = None
        ) -> argparse.Namespace:
            argv = list(args or ())
            in_file: dict[str, Any] = {}
            if not positional and argv and argv[0].endswith(argument_file.SUFFIXES):
                in_file = argument_file.read(argv.pop(0), self, hints)
                self._use_file(in_file)
            *parsed, unknown = self.parse_args_into_dataclasses(
                argv, return_remaining_strings=True, look_for_args_file=False
            )
            if unknown:
                self.error(f"unrecognized arguments: {' '.join(unknown)}")
            given = in_file | self._given(argv)
            return argparse.Namespace(dataclasses=tuple(parsed), given=given)

        def _given(self, argv: Sequence[str]) -> dict[str, Any]:
            """Parse valid arguments again, without defaults."""
            before = [(action, action.default, action.required) for action in self._actions]
            defaults, self._defaults = self._defaults, {}
            try:
                for action in self._actions:
                    action.default, action.required = argparse.SUPPRESS, False
                return vars(self.parse_known_args(argv)[0])
            finally:
                self._defaults = defaults
                for action, default, required in before:
                    action.default, action.required = default, required

        def format_help(self) -> str:
            return grouped_help(self, grouping, everything=False)

        def _use_file(self, values: Mapping[str, Any]) -> None:
            self.set_defaults(**values)
            for action in self._actions:
                action.required = action.required and action.dest not in values

    grouping = _grouping(kinds, (own[0], [*(positional or ()), *own[1]]))
    parser = Parser(list(kinds), add_help=False, **options)
    add_help(parser, lambda everything: grouped_help(parser, grouping, everything=everything))
    _remove(parser, {*without, *(positional or ())})
    for name, metavar in (positional or {}).items():
        parser.add_argument(name, metavar=metavar, help=_help_of(kinds, name))
    return parser


def _grouping(kinds: Sequence[Any], own: tuple[str, Collection[str]]) -> Grouping:
    """The groups of the help, from what the training arguments refuse and ignore."""
    hidden, without_effect = {"trust_remote_code"}, {"overwrite_cache", "preprocessing_num_workers"}
    old = set[str]()
    if any(hasattr(kind, "evaluation_strategy") for kind in kinds):  # the training arguments
        from qa_flax.train.old_names import OldNames
        from qa_flax.train.training_arguments import REFUSED, WITHOUT_EFFECT

        hidden |= REFUSED.keys()
        helps = {f.name: f.metadata["help"] for f in dataclass_fields(OldNames)}
        old = {name for name, text in helps.items() if text.startswith("Deprecated")}
        without_effect |= WITHOUT_EFFECT.keys() | (helps.keys() - old)
    return Grouping(own, hidden, without_effect, old)


def _remove(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Remove arguments; their fields have the defaults."""
    for action in [action for action in parser._actions if action.dest in names]:
        parser._optionals._remove_action(action)
        for option in action.option_strings:
            del parser._option_string_actions[option]
        parser.set_defaults(**{action.dest: action.default})


def _help_of(kinds: Sequence[Any], name: str) -> str:
    """Return the help of a dataclass's field."""
    fields = (field_ for kind in kinds for field_ in dataclass_fields(kind) if field_.name == name)
    return next(fields).metadata["help"]
