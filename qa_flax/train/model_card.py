"""The model card (README.md) of a trained model, through huggingface_hub's `ModelCardData` (host).

The card has the metadata of the Hub: task, data set, scores (the model index), base model,
language, license and an example for the Hub's widget. Text of the data and names are escaped.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import jax
import tokenizers
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.modelcard import (
    TASK_TAG_TO_NAME_MAPPING,
    make_markdown_table,
    parse_log_history,
)
from transformers.trainer_callback import TrainerState

import qa_flax
from qa_flax import storage
from qa_flax.device import parallel
from qa_flax.train.base_card import BaseCard
from qa_flax.train.plan import ema_decay_of
from qa_flax.train.training_arguments import plain_value, trains_in_bfloat16

TASK = "question-answering"
METRICS = {"exact_match": "Exact match", "f1": "F1"}
_OWN_DATA = "own-data"
# transformers leaves out the times and speeds that its own trainer logs.
_SPEEDS = ("Fill", "Post Processing Time", "Examples Per Second")


@dataclass(frozen=True)
class EvaluatedData:
    """The data that a model was evaluated on.

    Args:
        name: for readers.
        hub_id: its id on the Hub; None: it is not there.
        config: the configuration of a data set on the Hub.
        split: such as validation.
        args: what `create_model_card` was given as `dataset_args`.
        prefix: what the names of its metrics begin with, after `eval_`.
        widget: a question and a context, see `widget_example`.
    """

    name: str
    hub_id: str | None = None
    config: str | None = None
    split: str | None = None
    args: Any = None
    prefix: str = ""
    widget: Mapping[str, str] | None = None


def model_card(
    args: transformers.TrainingArguments,
    state: TrainerState,
    base: BaseCard,
    data: Sequence[EvaluatedData] = (),
    *,
    language: str | Sequence[str] | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    model_name: str | None = None,
    tasks: str | Sequence[str] | None = None,
    is_adapter: bool = False,
) -> ModelCard:
    """The model card, with the metadata that the Hub reads.

    Args:
        args: hyperparameters of the training.
        state: its log history has the training and evaluation results.
        base: the base model.
        data: the data sets that it was evaluated on.
        language: codes of languages; None: the base model's.
        license: of the model; None: the base model's.
        tags: in addition to `generated_from_trainer`, `qa_flax` and `jax`.
        model_name: None: the name of `output_dir`.
        tasks: None: question-answering.
        is_adapter: whether the model is LoRA adapters.
    """
    name = _line(model_name or _name(args.output_dir or "trainer_output")) or "model"
    _, lines, results = parse_log_history(state.log_history or [{}])
    scores = _scores(args, state)
    task_names = _listed(tasks) or [TASK]
    eval_results = [r for part in data for r in _eval_results(part, scores, task_names)]
    known_license: dict[str, Any] = {"license": license} if license else dict(base.license or {})
    widget = [dict(part.widget) for part in data if part.widget is not None and scores]
    card_data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=task_names[0],
        language=_one_or_more(_listed(language) or list(base.language)),
        **known_license,
        base_model=base.hub_id,
        tags=list(dict.fromkeys([*map(_line, tags), "generated_from_trainer", "qa_flax", "jax"])),
        datasets=list(dict.fromkeys(part.hub_id for part in data if part.hub_id)) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in eval_results)) or None,
        model_name=name if eval_results else None,
        eval_results=eval_results or None,
        widget=widget or None,
    )
    text = "\n".join(
        [
            *(f"\n# {_markdown(name)}\n", _summary(base, data, results), ""),
            *("## Training procedure\n", "### Training hyperparameters\n"),
            "The following hyperparameters were used during training:",
            *(f"- {key}: {_markdown(value)}" for key, value in _hyperparameters(args).items()),
            *(["\n### Training results\n", make_markdown_table(lines).rstrip()] if lines else []),
            *("\n### Framework versions\n", *(f"- {n} {v}" for n, v in _versions().items()), ""),
        ]
    )
    return ModelCard(f"---\n{card_data.to_yaml()}\n---\n{text}")


# ---- results -------------------------------------------------------------------------------------


def _scores(args: transformers.TrainingArguments, state: TrainerState) -> dict[str, float]:
    """The values of `eval_...` of the model that was saved.

    These are the last ones that were logged, or those of the best checkpoint, if that was loaded at
    the end of the training and not evaluated again.
    """
    numbers = [n for n, e in enumerate(state.log_history) if any("eval_" in k[:5] for k in e)]
    if not numbers:
        return {}
    ends = [n for n, e in enumerate(state.log_history) if "train_runtime" in e]
    step = state.log_history[numbers[-1]].get("step")
    best = getattr(state, "best_global_step", None)
    if ends and numbers[-1] < ends[-1] and args.load_best_model_at_end and best is not None:
        step = best
    values: dict[str, float] = {}
    for n in numbers:  # several data sets have an entry each
        entry = state.log_history[n]
        if entry.get("step") == step:
            values |= {k[5:]: v for k, v in entry.items() if k.startswith("eval_")}
    return {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}


def _eval_results(
    data: EvaluatedData, scores: Mapping[str, float], tasks: Sequence[str]
) -> list[EvalResult]:
    given = {} if data.args is None else {"dataset_args": data.args}
    return [
        EvalResult(
            task_type=task,
            task_name=TASK_TAG_TO_NAME_MAPPING.get(task),
            dataset_type=_line(data.hub_id or _OWN_DATA),
            dataset_name=_line(data.name),
            dataset_config=data.config,
            dataset_split=data.split,
            metric_type=metric,
            metric_name=METRICS[metric],
            metric_value=scores[data.prefix + metric],
            **given,
        )
        for task in tasks
        for metric in METRICS
        if data.prefix + metric in scores
    ]


# ---- text ----------------------------------------------------------------------------------------


def _summary(base: BaseCard, data: Sequence[EvaluatedData], results: Any) -> str:
    if base.is_folder:
        start = "This model was fine-tuned from a local checkpoint"
        if base.hub_id is not None:
            start += f" of [{base.hub_id}](https://huggingface.co/{base.hub_id})"
    elif base.hub_id is not None:
        link = f"[{base.hub_id}](https://huggingface.co/{base.hub_id})"
        start = f"This model is a fine-tuned version of {link}"
    else:
        start = "This model was trained from scratch"
    names = [f"the {_markdown(part.name)} data set" for part in data]
    lines = [f"{start} on {' and '.join(names) or 'an unknown data set'}."]
    if results:
        lines += ["It achieves the following results on the evaluation set:"]
        shown = {name: value for name, value in results.items() if name not in _SPEEDS}
        lines += [f"- {_markdown(name)}: {_rounded(value)}" for name, value in shown.items()]
    lines += [
        "",
        "It marks the answer to a question in a text: `AutoModelForQuestionAnswering` of "
        "transformers (PyTorch) and of qa_flax (JAX) loads it.",
    ]
    return "\n".join(lines)


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else _markdown(value)


# Line feeds would end the line, and the rest would be markup.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff\ufeff]+"
)
_MARKUP = re.compile(r"([\\`*\[\]<>|#])")


def _line(value: Any) -> str:
    """A text in one line without control characters."""
    return " ".join(_CONTROLS.sub(" ", str(value)).split())


def _markdown(value: Any) -> str:
    """A text in one line that Markdown shows as it is."""
    return _MARKUP.sub(r"\\\1", _line(value))


def _name(folder: str) -> str:
    path = storage.path(folder)
    return path.name if storage.is_remote(folder) else path.resolve().name


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _one_or_more(values: list[str]) -> str | list[str] | None:
    return None if not values else values[0] if len(values) == 1 else values


def _versions() -> dict[str, str]:
    return {
        "qa_flax": qa_flax.__version__,
        "JAX": jax.__version__,
        "Transformers": transformers.__version__,
        "Datasets": datasets.__version__,
        "Tokenizers": tokenizers.__version__,
    }


def _hyperparameters(args: transformers.TrainingArguments) -> dict[str, Any]:
    cores = parallel.core_count()
    rows = cores * args.per_device_train_batch_size * args.gradient_accumulation_steps
    values: dict[str, Any] = {
        "learning_rate": args.learning_rate,
        "train_batch_size": args.per_device_train_batch_size,
        "eval_batch_size": args.per_device_eval_batch_size,
        "seed": args.seed,
        "num_devices": cores,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "total_train_batch_size": rows,
        "optimizer": f"{plain_value(args.optim)}, betas=({args.adam_beta1}, "
        f"{args.adam_beta2}), epsilon={args.adam_epsilon}, weight_decay={args.weight_decay}, "
        f"optim_args={args.optim_args}",
        "lr_scheduler_type": plain_value(args.lr_scheduler_type),
        "lr_scheduler_warmup_steps": args.warmup_steps,
        "num_epochs": args.num_train_epochs,
        "training_steps": args.max_steps if args.max_steps > 0 else None,
        "label_smoothing_factor": args.label_smoothing_factor or None,
        "ema_decay": ema_decay_of(args) or None,
        "mixed_precision_training": "bfloat16" if trains_in_bfloat16(args) else None,
    }
    return {name: value for name, value in values.items() if value is not None}


# ---- the widget ----------------------------------------------------------------------------------

MAX_QUESTION, MIN_CONTEXT, MAX_CONTEXT = 200, 80, 500  # characters
_SEARCHED = 200  # examples


def widget_example(examples: Any) -> dict[str, str] | None:
    """A question and a short context for the Hub's widget; None: there is none that fits.

    Args:
        examples: rows with `question`, `context` and `answers`; the first 200 are looked at. A long
            context is cut around the answer, at spaces.
    """
    best: tuple[int, dict[str, str]] | None = None
    for n in range(min(len(examples), _SEARCHED)):
        row = examples[n]
        answers = row.get("answers") or {}
        if not answers.get("text") or not answers.get("answer_start"):
            continue
        start = int(answers["answer_start"][0])
        context = _around(row["context"], start, start + len(answers["text"][0]))
        question = _line(row["question"])
        if not 0 < len(question) <= MAX_QUESTION or context is None:
            continue
        # The shortest that is more than a few words.
        rank = len(context) if len(context) >= MIN_CONTEXT else 2 * MAX_CONTEXT - len(context)
        if best is None or rank < best[0]:
            best = rank, {"text": question, "context": context}
    return None if best is None else best[1]


def _around(context: str, start: int, end: int) -> str | None:
    """The part of a context around an answer; None if the answer is not in it, or too long."""
    answer = _line(context[start:end]) if 0 <= start < end <= len(context) else ""
    room = MAX_CONTEXT - (end - start)
    if not answer or room < 0:
        return None
    if len(context) > MAX_CONTEXT:
        first, last = max(0, start - room // 2), min(len(context), end + room // 2)
        before, after = context[first:start], context[end:last]
        if first:  # from the first whole word
            before = before.partition(" ")[2] if " " in before else before
        if last < len(context):
            after = after.rpartition(" ")[0] if " " in after else after
        context = f"{before}{context[start:end]}{after}"
    line = _line(context)
    return line if answer in line else None
