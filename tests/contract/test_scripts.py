"""Two scripts for transformers' Trainer run after a change of their imports and paths only."""

import json

import numpy as np
import pytest
import tiny
from datasets import Dataset
from transformers import AutoTokenizer
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from qa_flax import (
    AutoModelForQuestionAnswering,
    EarlyStoppingCallback,
    QuestionAnsweringTrainer,
    Trainer,
    TrainingArguments,
    postprocess_qa_predictions,
    prepare_train_features,
    prepare_validation_features,
    squad_metric,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a small BERT and its tokenizer, which both scripts load."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_the_trainer_of_transformers_question_answering_examples(tmp_path, checkpoint):
    """It has raw and tokenised evaluation sets, post-processing of the logits, and a test set."""
    raw_train = raw_eval = tiny.examples(answerable=True)
    raw_test = raw_eval.select(range(5))

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint)
    train_dataset = prepare_train_features(raw_train, tokenizer, 64, 16)
    eval_dataset = prepare_validation_features(raw_eval, tokenizer, 64, 16)
    test_dataset = prepare_validation_features(raw_test, tokenizer, 64, 16)
    columns, form = eval_dataset.column_names, eval_dataset.format

    def post_processing_function(examples, features, predictions, stage="eval"):
        predictions = postprocess_qa_predictions(
            examples=examples,
            features=features,
            predictions=predictions,
            version_2_with_negative=False,
            n_best_size=20,
            max_answer_length=30,
            output_dir=str(tmp_path),
            prefix=stage,
        )
        formatted = [{"id": k, "prediction_text": v} for k, v in predictions.items()]
        references = [{"id": ex["id"], "answers": ex["answers"]} for ex in examples]
        return EvalPrediction(predictions=formatted, label_ids=references)

    def compute_metrics(p: EvalPrediction):
        return squad_metric(p.predictions, p.label_ids)

    trainer = QuestionAnsweringTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=1,
            per_device_train_batch_size=1,
            save_strategy="no",
        ),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        eval_examples=raw_eval,
        tokenizer=tokenizer,
        post_process_function=post_processing_function,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    metrics = trainer.evaluate()
    results = trainer.predict(test_dataset=test_dataset, test_examples=raw_test)

    assert {
        "eval_exact_match",
        "eval_f1",
        "eval_loss",
        "eval_runtime",
        "eval_samples_per_second",
    } <= set(metrics)
    assert {"eval_post_processing_time", "eval_examples_per_second", "epoch"} <= set(metrics)
    assert isinstance(results, PredictionOutput)
    assert [row["id"] for row in results.predictions] == raw_test["id"][:]
    assert {"test_exact_match", "test_f1"} <= set(results.metrics)
    for stage in ("eval", "predict"):
        answers = json.loads((tmp_path / f"{stage}_predictions.json").read_text())
        assert set(answers) == set((raw_eval if stage == "eval" else raw_test)["id"])
    assert (eval_dataset.column_names, eval_dataset.format) == (columns, form)


@pytest.mark.filterwarnings("ignore:.* is deprecated; use .* instead:FutureWarning")
@pytest.mark.parametrize(
    "with_types",
    [
        pytest.param(True, id="token types"),
        pytest.param(False, id="no token types", marks=pytest.mark.slow),
    ],
)
def test_a_custom_fine_tuning_script(tmp_path, checkpoint, with_types):
    """It has its own preprocessing function, dropout, early stopping and best model selection."""
    rows = list(tiny.examples(answerable=True))
    dataset = Dataset.from_list(rows)

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint)
    model.config.hidden_dropout_prob = 0.3
    model.config.attention_probs_dropout_prob = 0.3

    def preprocess_function(examples):
        inputs = tokenizer(
            [question.strip() for question in examples["question"]],
            examples["context"],
            max_length=64,
            truncation="only_second",
            return_offsets_mapping=True,
            return_token_type_ids=with_types,
            padding="max_length",
        )
        start_positions, end_positions = [], []
        for i, offset in enumerate(inputs.pop("offset_mapping")):
            answer = examples["answers"][i]
            begin = answer["answer_start"][0]
            end = begin + len(answer["text"][0])
            tokens = [
                k
                for k, (s, e) in enumerate(offset)
                if inputs.sequence_ids(i)[k] == 1 and s < end and e > begin
            ]
            start_positions.append(tokens[0] if tokens else 0)
            end_positions.append(tokens[-1] if tokens else 0)
        inputs["start_positions"] = start_positions
        inputs["end_positions"] = end_positions
        return inputs

    tokenized = dataset.map(preprocess_function, batched=True, remove_columns=dataset.column_names)

    def compute_metrics(eval_pred):
        (start_logits, end_logits), (start_labels, end_labels) = eval_pred
        return {
            "accuracy_start": float((np.argmax(start_logits, axis=1) == start_labels).mean()),
            "accuracy_end": float((np.argmax(end_logits, axis=1) == end_labels).mean()),
        }

    training_args = TrainingArguments(
        output_dir=str(tmp_path / "results"),
        evaluation_strategy="epoch",
        save_strategy="epoch",
        learning_rate=1e-3,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        num_train_epochs=5,
        weight_decay=0.01,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_dir=str(tmp_path / "logs"),
        save_total_limit=2,
    )
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=tokenized,
        eval_dataset=tokenized,
        tokenizer=tokenizer,
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()

    assert {"eval_loss", "eval_accuracy_start", "eval_accuracy_end"} <= set(after)
    assert after["eval_loss"] < before["eval_loss"]
    losses = [logs["eval_loss"] for logs in trainer.state.log_history if "eval_loss" in logs]
    assert after["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert trainer.state.best_metric == min(losses)
    assert len(list((tmp_path / "results").glob("checkpoint-*"))) == 2


def test_a_missing_column_is_named_in_the_error(tmp_path, checkpoint):
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint)
    data = Dataset.from_dict({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]]})
    trainer = Trainer(model, TrainingArguments(output_dir=str(tmp_path)), train_dataset=data)
    with pytest.raises(ValueError, match="no start_positions and end_positions"):
        trainer.train()
    with pytest.raises(ValueError, match="column input_ids; columns found: tokens"):
        trainer.predict(Dataset.from_dict({"tokens": [[1]]}))
