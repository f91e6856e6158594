"""Compare EM and F1 after fine-tuning with and without packed rows and attention by heads.

    export QA_FLAX_SHARED=DIR
    python tests/benchmarks/packing_quality.py [--questions 1000] [--epochs 2] [--seeds 0 1]

"on" packs several windows into a row, computes attention by heads, and works through a batch a few
rows at a time, as `qa-flax run` does on a CPU; "off" does none of it. Each pair of runs starts with
the same weights. The model answers questions of other contexts than those it was trained on.
"""

import argparse
import os
import tempfile
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

import datasets
from transformers import AutoTokenizer, EvalPrediction

import qa_flax
from qa_flax.device import step
from qa_flax.models import attention

WINDOWS: dict[str, Any] = {"max_seq_length": 384, "doc_stride": 128, "disable_tqdm": True}
NEVER = 1 << 60


def main() -> None:
    shared = Path(os.environ.get("QA_FLAX_SHARED", ""))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=str(shared / "models/all-MiniLM-L6-v2"))
    parser.add_argument("--data", default=str(shared / "data/squadshifts/reddit_v1.0.json"))
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--eval_questions", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    train, heldout = split(qa_flax.load_examples(args.data), args.questions, args.eval_questions)
    print(f"{len(train):,} questions to train on, {len(heldout):,} to answer", flush=True)
    print("\n| seed | packing, by heads | EM | F1 | minutes |\n|---|---|---|---|---|", flush=True)
    scores: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for seed in args.seeds:
        for on in (True, False):
            began = perf_counter()
            found = run(args, train, heldout, seed, on)
            scores[on].append(found)
            values = f"{found['exact_match']:.1f} | {found['f1']:.1f}"
            minutes = (perf_counter() - began) / 60
            print(f"| {seed} | {'on' if on else 'off'} | {values} | {minutes:.1f} |", flush=True)
    for on, results in scores.items():
        means = [mean(r[name] for r in results) for name in ("exact_match", "f1")]
        print(f"mean, {'on' if on else 'off'}: EM {means[0]:.1f}, F1 {means[1]:.1f}")


def split(
    rows: datasets.Dataset, train: int, heldout: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The first questions, and the last ones, as far as they have other contexts."""
    first = rows.select(range(train))
    seen = set(first["context"])
    others = [n for n, context in enumerate(rows["context"]) if context not in seen]
    return first, rows.select(others[-heldout:])


def run(
    args: argparse.Namespace,
    train: datasets.Dataset,
    heldout: datasets.Dataset,
    seed: int,
    on: bool,
) -> dict[str, float]:
    """Fine-tune and evaluate once, with the forms of `qa-flax run` on a CPU or without them."""
    kept = attention.SCORES_AT_ONCE, step.TOKENS_AT_ONCE
    if not on:
        attention.SCORES_AT_ONCE, step.TOKENS_AT_ONCE = NEVER, {}
    try:
        return fine_tuned(args, train, heldout, seed, per_device_train_batch_size=16, packing=on)
    finally:
        attention.SCORES_AT_ONCE, step.TOKENS_AT_ONCE = kept


def fine_tuned(
    args: argparse.Namespace,
    train: datasets.Dataset,
    heldout: datasets.Dataset,
    seed: int,
    **settings: Any,
) -> dict[str, float]:
    """Fine-tune and evaluate once.

    Args:
        args: model, epochs and learning rate.
        train: examples.
        heldout: examples.
        seed: of the span head, the order of the data and dropout.
        settings: further `TrainingArguments`.

    Returns:
        EM, F1 and the mean loss of the training.
    """
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = qa_flax.QuestionAnsweringTrainer(
            model=qa_flax.AutoModelForQuestionAnswering.from_pretrained(args.model, seed=seed),
            args=qa_flax.TrainingArguments(
                output_dir=output_dir,
                num_train_epochs=args.epochs,
                learning_rate=args.learning_rate,
                warmup_steps=0.1,
                seed=seed,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                log_level="error",
                **settings,
            ),
            train_dataset=qa_flax.prepare_train_features(train, tokenizer, **WINDOWS),
            eval_dataset=qa_flax.prepare_validation_features(heldout, tokenizer, **WINDOWS),
            eval_examples=heldout,
            post_process_function=post_process,
            compute_metrics=score,
        )
        loss = trainer.train().training_loss
        metrics = trainer.evaluate()
    return {name: metrics[f"eval_{name}"] for name in ("exact_match", "f1")} | {"loss": loss}


def post_process(examples: Any, windows: Any, logits: Any) -> EvalPrediction:
    answers = qa_flax.postprocess_qa_predictions(examples, windows, logits)
    predictions: Any = [{"id": id_, "prediction_text": text} for id_, text in answers.items()]
    references: Any = [{"id": row["id"], "answers": row["answers"]} for row in examples]
    return EvalPrediction(predictions, references)


def score(scored: EvalPrediction) -> dict[str, float]:
    predictions: Any = scored.predictions
    references: Any = scored.label_ids
    return qa_flax.squad_metric(predictions, references)


if __name__ == "__main__":
    main()
