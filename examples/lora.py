"""Train LoRA adapters instead of all weights, save them, and ask the model.

    python examples/lora.py bert-base-uncased train-v1.1.json dev-v1.1.json out-lora

The folder has a few megabytes, in PEFT's format. With `merge_and_unload` the adapters become part
of the weights, for programs that know no adapters.
"""

import sys

from transformers import AutoTokenizer, EvalPrediction

import qa_flax


def main(model_name: str, train_file: str, validation_file: str, output_dir: str) -> None:
    """Train the adapters, evaluate, and ask the saved model."""
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = qa_flax.AutoModelForQuestionAnswering.from_pretrained(model_name)
    config = qa_flax.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
    model = qa_flax.get_peft_model(model, config)
    model.print_trainable_parameters()
    train, validation = map(qa_flax.load_examples, (train_file, validation_file))

    def post_process(examples, features, predictions, stage="eval"):
        answers = qa_flax.postprocess_qa_predictions(examples, features, predictions)
        return EvalPrediction(
            predictions=[{"id": id_, "prediction_text": text} for id_, text in answers.items()],
            label_ids=[{"id": row["id"], "answers": row["answers"]} for row in examples],
        )

    trainer = qa_flax.QuestionAnsweringTrainer(
        model=model,
        args=qa_flax.TrainingArguments(output_dir, num_train_epochs=2, learning_rate=1e-3),
        train_dataset=qa_flax.prepare_train_features(train, tokenizer),
        eval_dataset=qa_flax.prepare_validation_features(validation, tokenizer),
        eval_examples=validation,
        processing_class=tokenizer,
        post_process_function=post_process,
        compute_metrics=lambda scored: qa_flax.squad_metric(scored.predictions, scored.label_ids),
    )
    trainer.train()
    print(trainer.evaluate())
    trainer.save_model()

    answerer = qa_flax.QuestionAnswerer(output_dir, base_model=model_name)
    first = validation[0]
    print(answerer(question=first["question"], context=first["context"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
