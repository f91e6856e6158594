"""The help of commands with many arguments: by group, the most used first (host, no JAX)."""

import argparse
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

_MOST_USED = """model_name_or_path lora_r lora_target_modules
train_file validation_file test_file dataset_name validation_split version_2_with_negative
do_train do_eval do_predict output_dir overwrite_output_dir max_seq_length doc_stride
num_train_epochs learning_rate warmup_steps per_device_train_batch_size
per_device_eval_batch_size gradient_accumulation_steps seed
weight_decay hidden_dropout_prob early_stopping_patience
eval_strategy save_strategy load_best_model_at_end metric_for_best_model
bf16 packing gradient_checkpointing report_to require_backend"""
MOST_USED = frozenset(_MOST_USED.split())
"""What `--help` shows of a command with more arguments than `SHORT`."""
SHORT = 40
"""A help with at most this many arguments shows all of them."""

_DATA = """train_file validation_file test_file dataset_name dataset_config_name validation_split
folds split_by version_2_with_negative extra_train_file extra_train_ratio max_train_samples
max_eval_samples max_predict_samples question_column context_column answer_column id_column answers
misaligned_answers bad_rows augment paraphrases augment_preview remove_unused_columns"""
_WINDOWS = """max_seq_length doc_stride pad_to_max_length long_questions n_best_size
max_answer_length null_score_diff_threshold language calibrate save_spans hf_compatible gather"""
_MODEL = """model_name_or_path config_name tokenizer_name base_model_name_or_path model_revision
cache_dir token dtype lora_r lora_alpha lora_dropout lora_target_modules"""
_WORK = "do_train do_eval do_predict output_dir overwrite_output_dir"
_TRAINING = """num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
warmup_steps per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
optim optim_args adam_beta1 adam_beta2 adam_epsilon max_grad_norm train_sampling_strategy
dataloader_drop_last seed data_seed"""
_REGULARIZATION = """weight_decay hidden_dropout_prob attention_probs_dropout_prob
classifier_dropout label_smoothing_factor layerwise_lr_decay ema_decay freeze_layers
freeze_embeddings reinit_layers early_stopping_patience early_stopping_threshold
eval_train_samples"""
_CHECKPOINTS = """eval_strategy eval_steps eval_delay eval_on_start save_strategy save_steps
save_total_limit save_only_model load_best_model_at_end metric_for_best_model greater_is_better
resume_from_checkpoint accept_changes ignore_data_skip prediction_loss_only include_for_metrics"""
_SPEED = """bf16 fp16 bf16_full_eval fp16_full_eval packing gradient_checkpointing
activation_checkpointing shard_params bf16_gradients dropout_bits profile debug"""
_LOGGING = """report_to run_name project trackio_space_id trackio_bucket_id
trackio_static_space_id logging_strategy logging_steps logging_first_step
include_num_input_tokens_seen log_level log_level_replica disable_tqdm"""
_SHARING = """push_to_hub hub_model_id hub_token hub_private_repo hub_strategy hub_revision
hub_always_push"""
_MACHINES = """require_backend use_cpu distributed coordinator num_processes process_id
initialization_timeout"""
GROUPS = {
    "what to do": _WORK,
    "model": _MODEL,
    "data": _DATA,
    "windows and answers": _WINDOWS,
    "training": _TRAINING,
    "regularization": _REGULARIZATION,
    "evaluation and checkpoints": _CHECKPOINTS,
    "memory and speed": _SPEED,
    "logging": _LOGGING,
    "sharing": _SHARING,
    "devices and machines": _MACHINES,
}
"""Title -> the names of its arguments."""
OLD = "names of earlier versions of transformers"


WORDS = {
    "do_train": "Train on the training data.",
    "do_eval": "Evaluate on the validation data: exact match, F1 and the answers.",
    "do_predict": "Answer the questions of the test data.",
    "output_dir": "Directory for checkpoints, the model, metrics and answers.",
    "num_train_epochs": "How often the training data is gone through.",
    "max_steps": "Number of updates; above 0 it replaces num_train_epochs.",
    "learning_rate": "Highest learning rate, after the warmup.",
    "warmup_steps": "Updates in which the learning rate rises from 0, or a share of all (0.1).",
    "per_device_train_batch_size": "Windows of a batch on each core (TPU core, GPU, or the CPU).",
    "per_device_eval_batch_size": "As per_device_train_batch_size, for evaluation.",
    "gradient_accumulation_steps": "Batches of one update, where a larger one does not fit.",
    "optim": "Optimizer: adamw_torch, adafactor, ademamix, lion_32bit, lamb, sgd, adagrad, "
    "rmsprop.",
    "lr_scheduler_type": "Schedule of the learning rate: linear, cosine, cosine_with_restarts, "
    "polynomial, constant, constant_with_warmup, inverse_sqrt, reduce_lr_on_plateau, "
    "cosine_with_min_lr, cosine_warmup_with_min_lr, warmup_stable_decay or greedy.",
    "train_sampling_strategy": "Order of the training data: random, sequential or group_by_length.",
    "use_cpu": "Compute on the CPU.",
    "fp16": "The same as bf16.",
    "seed": "Seed of the span head's first weights, the order of the data and dropout.",
    "weight_decay": "Weight decay of the optimizer; biases and layer norms have none.",
    "eval_strategy": "When to evaluate during the training.",
    "save_strategy": "When to write a checkpoint; best: when metric_for_best_model has improved.",
    "load_best_model_at_end": "Keep the best model instead of the last; needs eval_strategy.",
    "metric_for_best_model": "What is best: a metric such as f1 or exact_match; default: loss.",
    "bf16": "Compute in bfloat16; recommended on TPU and GPU.",
    "gradient_checkpointing": "Use less memory: layers are computed again in the backward pass.",
    "activation_checkpointing": "The same as gradient_checkpointing.",
    "report_to": "Where metrics are sent: none, all, or names such as tensorboard and wandb.",
}
"""Help texts that differ from transformers'."""


class Grouping:
    """Which arguments a help shows, and under which titles."""

    def __init__(
        self,
        own: tuple[str, Collection[str]] = ("", ()),
        hidden: Collection[str] = (),
        without_effect: Collection[str] = (),
        old: Collection[str] = (),
    ):
        """Set the groups that differ between commands.

        Args:
            own: title and arguments of the command's own group, which comes first and is never cut.
            hidden: arguments that are refused: no help shows them.
            without_effect: arguments that only log a warning, which the full help names together.
            old: deprecated names.
        """
        title, names = own
        usual = {title: names.split() for title, names in GROUPS.items()}
        groups = {title: list(names)} | usual | {OLD: sorted(old)}
        self._titles = list(groups)
        self._own, self._hidden = set(names), {*hidden, *without_effect}
        self.without_effect = sorted(without_effect)
        # The first group of an argument that `own` and `usual` both have, but the last otherwise.
        order = [*range(1, len(groups)), 0]
        members = list(groups.values())
        self._place = {name: (n, i) for n in order for i, name in enumerate(members[n])}

    def shown(self, parser: argparse.ArgumentParser, *, everything: bool) -> list[argparse.Action]:
        """The arguments of one page: all but the refused ones, or the most used."""
        actions = {}
        for action in parser._actions:
            if action.dest not in self._hidden and action.help is not argparse.SUPPRESS:
                actions.setdefault(action.dest, action)  # not its --no_... again
        if not everything and len(actions) > SHORT:
            most_used = MOST_USED | self._own
            return [a for a in actions.values() if a.dest in most_used or not a.option_strings]
        return list(actions.values())

    def groups(
        self, actions: Sequence[argparse.Action]
    ) -> Iterator[tuple[str, list[argparse.Action]]]:
        """Yield each title with its arguments, in the order of the groups."""
        last = len(self._titles)
        placed: dict[int, list[tuple[int, argparse.Action]]] = {}
        for action in actions:
            number, place = self._place.get(action.dest, (last, 0))
            placed.setdefault(number, []).append((place, action))
        for number, members in sorted(placed.items()):
            title = "other arguments" if number == last else self._titles[number]
            yield title, [action for _, action in sorted(members, key=lambda pair: pair[0])]


def grouped_help(parser: argparse.ArgumentParser, grouping: Grouping, *, everything: bool) -> str:
    """Return the help of a parser.

    Args:
        parser: its usage, description and arguments are shown.
        grouping: the groups of the arguments.
        everything: whether all arguments are shown, not only the most used.
    """
    shown = grouping.shown(parser, everything=everything)
    formatter = _Formatter(parser.prog, max_help_position=30, width=min(100, _columns()))
    formatter.add_usage(parser.usage or f"{parser.prog} [arguments]", shown, [])
    formatter.add_text(parser.description)
    for title, members in grouping.groups(shown):
        formatter.start_section(title)
        formatter.add_arguments(members)
        formatter.end_section()
    names = {action.dest for action in parser._actions}
    ignored = [f"--{name}" for name in grouping.without_effect if name in names]
    if everything and ignored:
        formatter.add_text(f"Accepted for scripts, without effect here: {', '.join(ignored)}.")
    further = len(grouping.shown(parser, everything=True)) - len(shown)
    if further:
        formatter.add_text(f"{parser.prog} --help_all shows {further} further arguments.")
    return formatter.format_help()


def _columns() -> int:
    return max(60, shutil.get_terminal_size().columns - 2)


def add_help(parser: argparse.ArgumentParser, show: Callable[[bool], str]) -> None:
    """Add `-h`, `--help` and `--help_all` to a parser without help.

    Args:
        parser: made with `add_help=False`.
        show: from whether everything is shown to the text.
    """
    named: dict[str, Any] = {"action": _Help, "show": show, "help": argparse.SUPPRESS}
    parser.add_argument("-h", "--help", everything=False, **named)
    parser.add_argument("--help_all", "--help-all", everything=True, **named)


class _Help(argparse.Action):
    """Print a help and exit."""

    def __init__(self, option_strings, dest, show, everything, **settings):
        super().__init__(option_strings, "help", default=argparse.SUPPRESS, nargs=0, **settings)
        self._show, self._everything = show, everything

    def __call__(self, parser, namespace, values, option_string=None):
        print(self._show(self._everything), end="")
        parser.exit()


class _Formatter(argparse.HelpFormatter):
    """Shows each option once, with underscores, and what its value is."""

    def _format_action_invocation(self, action):
        if not action.option_strings:
            return super()._format_action_invocation(action)
        name = next((o for o in action.option_strings if "-" not in o[2:]), None)
        name = name or action.option_strings[0]
        if action.nargs in (0, "?"):
            return f"{name}, --no_{name[2:]}" if action.default is True else name
        return f"{name} {self._format_args(action, value_of(action))}"

    def _expand_help(self, action):
        words = " ".join(super()._expand_help(action).split())
        text = WORDS.get(action.dest, words) if action.option_strings else words
        if action.required and action.option_strings:
            return f"{text} (required)"
        default = action.default
        if default is None or default == "" or default == [] or "default:" in text:
            return text
        if action.nargs in (0, "?"):
            return f"{text} (default: {str(default).lower()})" if default else text
        return f"{text} (default: {getattr(default, 'value', default)})"


def value_of(action: argparse.Action) -> str:
    """Return what stands for an argument's value in the help."""
    if action.metavar is not None:
        return str(action.metavar)
    if action.choices is not None and action.dest not in _VALUES:
        return "{" + ",".join(str(getattr(c, "value", c)) for c in action.choices) + "}"
    if getattr(action.type, "__name__", "") == "string_to_bool":  # of HfArgumentParser
        return "{true,false}"
    endings = (value for ending, value in _VALUES.items() if action.dest.endswith(ending))
    return next(endings, {int: "N", float: "X"}.get(action.type, "VALUE"))  # pyright: ignore[reportCallIssue,reportArgumentType]


_VALUES = {
    "name_or_path": "DIR_OR_ID",
    "_file": "FILE",
    "_dir": "DIR",
    "_column": "NAME",
    "_name": "NAME",
    "_kwargs": "JSON",
    "report_to": "NAME",
    "train_sampling_strategy": "NAME",
    "lr_scheduler_type": "NAME",
    "optim": "NAME",
    "_steps": "N",
}
