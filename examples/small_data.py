"""Train on a few hundred questions of your own without learning them by heart.

    python examples/small_data.py bert-base-uncased train-v1.1.json out-small

A fifth of the texts is kept for validation. Both sets are evaluated after each epoch, the training
stops when the validation data gets no better, and `out-small/learning_curves.svg` shows both
curves. docs/small_data.md says what each setting does; small_data.ipynb is a notebook of it.
"""

import sys

from transformers import AutoTokenizer, EvalPrediction

import qa_flax


def main(model_name: str, train_file: str, output_dir: str) -> None:
    """Train with both sets evaluated after each epoch, and draw their curves."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = qa_flax.AutoModelForQuestionAnswering.from_pretrained(model_name)
    train, validation = qa_flax.split_examples(qa_flax.load_examples(train_file), 0.2, seed=0)

    def post_process(examples, features, predictions, stage="eval"):
        answers = qa_flax.postprocess_qa_predictions(examples, features, predictions)
        return EvalPrediction(
            predictions=[{"id": id_, "prediction_text": text} for id_, text in answers.items()],
            label_ids=[{"id": row["id"], "answers": row["answers"]} for row in examples],
        )

    args = qa_flax.TrainingArguments(
        output_dir,
        num_train_epochs=10,
        learning_rate=2e-5,
        early_stopping_patience=3,  # evaluates after each epoch, and keeps the best model
        metric_for_best_model="f1",
        eval_train_samples=200,
        hidden_dropout_prob=0.15,
        label_smoothing_factor=0.1,
        layerwise_lr_decay=0.9,
        ema_decay=0.99,
        save_total_limit=1,
    )
    trainer = qa_flax.QuestionAnsweringTrainer(
        model=model,
        args=args,
        train_dataset=qa_flax.prepare_train_features(train, tokenizer),
        train_examples=train,
        eval_dataset=qa_flax.prepare_validation_features(validation, tokenizer),
        eval_examples=validation,
        processing_class=tokenizer,
        post_process_function=post_process,
        compute_metrics=lambda scored: qa_flax.squad_metric(scored.predictions, scored.label_ids),
    )
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    print(f"{len(validation)} questions that were not trained on: F1 {metrics['eval_f1']:.1f}")
    qa_flax.learning_curves(trainer.state).save(f"{output_dir}/learning_curves.svg")


if __name__ == "__main__":
    main(*sys.argv[1:])
