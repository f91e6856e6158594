"""Fine-tune, evaluate and predict with the trainer of Hugging Face's question answering scripts.

    python examples/question_answering.py bert-base-uncased train-v1.1.json dev-v1.1.json out

The parts are those of run_qa.py: features, a function that turns logits into answers, metrics,
`train`, `evaluate` and `predict`. The files are in SQuAD format; docs/data.md has further formats.
"""

import sys

from transformers import AutoTokenizer, EvalPrediction

import qa_flax


def main(model_name: str, train_file: str, validation_file: str, output_dir: str) -> None:
    """Train, evaluate, and answer new questions."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = qa_flax.AutoModelForQuestionAnswering.from_pretrained(model_name)
    train, validation = map(qa_flax.load_examples, (train_file, validation_file))

    def post_process(examples, features, predictions, stage="eval"):
        answers = qa_flax.postprocess_qa_predictions(
            examples, features, predictions, output_dir=output_dir, prefix=stage
        )
        return EvalPrediction(
            predictions=[{"id": id_, "prediction_text": text} for id_, text in answers.items()],
            label_ids=[{"id": row["id"], "answers": row["answers"]} for row in examples],
        )

    trainer = qa_flax.QuestionAnsweringTrainer(
        model=model,
        args=qa_flax.TrainingArguments(
            output_dir,
            num_train_epochs=2,
            learning_rate=3e-5,
            per_device_train_batch_size=8,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="f1",
        ),
        train_dataset=qa_flax.prepare_train_features(train, tokenizer),
        eval_dataset=qa_flax.prepare_validation_features(validation, tokenizer),
        eval_examples=validation,
        processing_class=tokenizer,
        post_process_function=post_process,
        compute_metrics=lambda scored: qa_flax.squad_metric(scored.predictions, scored.label_ids),
    )
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)

    # New questions, here the first ten of the validation file again: the answers are in
    # predict_predictions.json.
    questions = validation.select(range(min(10, len(validation))))
    windows = qa_flax.prepare_validation_features(questions, tokenizer, labels=False)
    output = trainer.predict(windows, questions, metric_key_prefix="predict")
    for prediction in output.predictions:
        print(f"{prediction['id']}: {prediction['prediction_text']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
