"""The work of `qa-flax demo`: generate data, fine-tune a tiny BERT, print scores and answers."""

import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoTokenizer
from transformers.trainer_utils import EvalPrediction

from qa_flax import storage
from qa_flax.answers.metrics import squad_metric
from qa_flax.answers.postprocess import postprocess_qa_predictions
from qa_flax.commands.demo.data import Story, make_stories, squad_json
from qa_flax.data.examples import load_examples
from qa_flax.data.features import prepare_train_features, prepare_validation_features
from qa_flax.device import parallel
from qa_flax.models import weights
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.progress import TrainingLines, TrainingProgress, progress_callback
from qa_flax.train.qa_trainer import QuestionAnsweringTrainer
from qa_flax.train.training_arguments import TrainingArguments

ENCODER = Path(__file__).with_name("encoder")
"""The pre-trained encoder and its tokenizer, created by `make_encoder.py`."""

# A question and its story have about 90 tokens; the longest stories need two windows.
WINDOWS: dict[str, Any] = {"max_seq_length": 112, "doc_stride": 32, "disable_tqdm": True}
GLOBAL_BATCH = 32
MAX_ANSWER_LENGTH = 16  # tokens
PRINTED_ANSWERS = 5


class _TrainingOnly:
    """Mixin: report the progress of training only, as the demo prints the scores itself."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print nothing."""

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Show no progress of the prediction."""


class DemoProgressBar(_TrainingOnly, TrainingProgress):
    """A progress bar for terminals."""


class DemoProgressLines(_TrainingOnly, TrainingLines):
    """Progress lines for output that is not a terminal."""


@dataclass(frozen=True)
class Scores:
    """Exact match and F1 (percent) on the held-out questions, and the answers by question id."""

    exact: float
    f1: float
    answers: dict[str, str]


def run_demo(seed: int = 0, output_dir: str | Path = "qa_flax_demo") -> dict[str, float]:
    """Fine-tune the tiny encoder on generated data; print its scores before and after.

    Args:
        seed: random seed of the data and the training.
        output_dir: folder for the data, the answers, the model and its tokenizer.

    Returns:
        `exact_before`, `f1_before`, `exact_after`, `f1_after` (percent) and `seconds`.
    """
    started, output = time.perf_counter(), storage.path(output_dir)
    print(f"qa-flax demo: reading comprehension of harbour stories, seed {seed}\n")
    train, heldout = _examples(seed, output)
    trainer = _trainer(seed, output, train, heldout)
    before = _score(trainer)
    trainer.train()
    after = _score(trainer)
    trainer.save_model(output)
    _print_scores(before, after)
    _print_answers(heldout, after.answers)
    seconds = time.perf_counter() - started
    _print_files(output, seconds)
    return {
        "exact_before": before.exact,
        "f1_before": before.f1,
        "exact_after": after.exact,
        "f1_after": after.f1,
        "seconds": seconds,
    }


def _trainer(
    seed: int, output: Path, train: datasets.Dataset, heldout: datasets.Dataset
) -> QuestionAnsweringTrainer:
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    # Hide the warning that the span head is newly initialized; the line below mentions it.
    logging.getLogger(weights.__name__).setLevel(logging.ERROR)
    model = AutoModelForQuestionAnswering.from_pretrained(ENCODER, seed=seed)
    print(
        f"  model     BERT with {model.config.num_hidden_layers} layers, "
        f"{model.num_parameters():,} parameters and a new span head, on "
        f"{parallel.describe_cores()}\n"
    )
    trainer = QuestionAnsweringTrainer(
        model=model,
        args=_training_arguments(seed, output),
        train_dataset=prepare_train_features(train, tokenizer, **WINDOWS),
        eval_dataset=prepare_validation_features(heldout, tokenizer, **WINDOWS),
        eval_examples=heldout,
        processing_class=tokenizer,
        post_process_function=partial(_post_process, output),
        compute_metrics=_compute_metrics,
    )
    trainer.remove_callback(callback := progress_callback())
    trainer.add_callback(DemoProgressBar if callback is TrainingProgress else DemoProgressLines)
    return trainer


def _training_arguments(seed: int, output: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(output),
        seed=seed,
        per_device_train_batch_size=max(1, GLOBAL_BATCH // parallel.core_count()),
        per_device_eval_batch_size=max(1, 4 * GLOBAL_BATCH // parallel.core_count()),
        num_train_epochs=1,
        learning_rate=2e-3,
        warmup_steps=30,
        weight_decay=0.01,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )


# ---- data -------------------------------------------------------------------------------------


def _examples(seed: int, output: Path) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Write the generated data to `output` and load the files with `load_examples`."""
    training, heldout = make_stories(seed)
    output.mkdir(parents=True, exist_ok=True)
    for name, stories in (("train", training), ("heldout", heldout)):
        (output / f"{name}.json").write_text(json.dumps(squad_json(stories, name), indent=1))
    _print_data(training, heldout)
    train = load_examples(output / "train.json", misaligned="refuse")
    return train, load_examples(output / "heldout.json", misaligned="refuse")


def _print_data(training: list[Story], heldout: list[Story]) -> None:
    names = {name for story in heldout for name in story.names}
    new = len(names - {name for story in training for name in story.names})
    for title, stories in (("training", training), ("held out", heldout)):
        questions = [question for story in stories for question in story.questions]
        unanswerable = sum(not question.answer for question in questions) / len(questions)
        print(
            f"  {title}  {len(questions):,} questions on {len(stories):,} stories, "
            f"{unanswerable:.0%} without an answer"
        )
    print(f"  names     {new} of the {len(names)} held-out names never occur in training")


# ---- scores -----------------------------------------------------------------------------------


def _post_process(output: Path, examples, windows, logits) -> EvalPrediction:
    answers = postprocess_qa_predictions(
        examples,
        windows,
        logits,
        version_2_with_negative=True,
        output_dir=output,
        max_answer_length=MAX_ANSWER_LENGTH,
        prefix="heldout",
        hf_compatible=False,
    )
    return _scorer_input(examples, answers)


def _scorer_input(examples: Iterable[Any], answers: Mapping[str, str]) -> EvalPrediction:
    """Answers and gold answers in the form that `squad_metric` takes."""
    # Lists, as in run_qa.py; EvalPrediction is annotated for arrays only.
    predictions: Any = [
        {"id": id_, "prediction_text": text, "no_answer_probability": 0.0}
        for id_, text in answers.items()
    ]
    references: Any = [{"id": row["id"], "answers": row["answers"]} for row in examples]
    return EvalPrediction(predictions=predictions, label_ids=references)


def _compute_metrics(prediction: EvalPrediction) -> dict[str, Any]:
    return squad_metric(prediction.predictions, prediction.label_ids, version_2_with_negative=True)


def _score(trainer: QuestionAnsweringTrainer) -> Scores:
    windows: Any = trainer.eval_dataset
    output = trainer.predict(windows, trainer.eval_examples)
    rows: Any = output.predictions
    metrics = output.metrics or {}
    answers = {row["id"]: row["prediction_text"] for row in rows}
    return Scores(metrics["test_exact"], metrics["test_f1"], answers)


def _print_scores(before: Scores, after: Scores) -> None:
    print("\nScores on the held-out questions   EM      F1")
    for title, scores in (("before fine-tuning", before), ("after fine-tuning", after)):
        print(f"  {title:29} {scores.exact:5.1f}   {scores.f1:5.1f}")


# ---- answers ----------------------------------------------------------------------------------


def _print_answers(heldout: datasets.Dataset, answers: dict[str, str]) -> None:
    """Print the answers to the first questions of the first stories, whether right or wrong."""
    print(f"\nThe first question of each of the first {PRINTED_ANSWERS} held-out stories")
    rows: list[dict[str, Any]] = heldout.to_list()
    selected = [row for row in rows if row["id"].endswith("-0")][:PRINTED_ANSWERS]
    for row in selected:
        gold, answer = row["answers"]["text"][:1], answers[row["id"]]
        right = _compute_metrics(_scorer_input([row], {row["id"]: answer}))["exact"] == 100.0
        print(f"\n  {row['question']}")
        print(f"    story   {_excerpt(row)}")
        print(f"    gold    {gold[0] if gold else '(no answer)'}")
        print(f"    answer  {answer or '(no answer)'}   {'right' if right else 'wrong'}")


def _excerpt(row: dict[str, Any], width: int = 84) -> str:
    """At most `width` characters of the context, around the gold answer if there is one."""
    context, starts = row["context"], row["answers"]["answer_start"]
    start = max(0, (starts[0] if starts else 0) - width // 2)
    end = start + width
    return ("..." if start else "") + context[start:end] + ("..." if end < len(context) else "")


def _print_files(output: Path, seconds: float) -> None:
    rows = [
        ("train.json, heldout.json", "the data in SQuAD v2.0 format"),
        ("heldout_predictions.json", "the answer to every held-out question"),
        ("heldout_nbest_predictions.json", "the 20 best answers to each, with scores"),
        ("heldout_null_odds.json", 'the score of "no answer" minus that of the best answer'),
        (
            "model.safetensors, config.json",
            "the fine-tuned model, which PyTorch transformers can load",
        ),
        ("tokenizer.json, ...", "its tokenizer"),
    ]
    print(f"\nFiles in {output}/")
    for names, meaning in rows:
        print(f"  {names:32} {meaning}")
    print(
        f"\nTo evaluate the model again:\n  qa-flax run --model_name_or_path {output} --do_eval "
        f"--version_2_with_negative \\\n    --validation_file {output}/heldout.json "
        f"--max_seq_length {WINDOWS['max_seq_length']} --doc_stride {WINDOWS['doc_stride']} \\\n"
        f"    --max_answer_length {MAX_ANSWER_LENGTH} --output_dir {output}/evaluation"
    )
    print(f"\nDone in {seconds:.0f} s.")
