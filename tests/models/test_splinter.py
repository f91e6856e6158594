"""Splinter: the question token of its tokenizer's windows, and its head in training and answers."""

import json

import numpy as np
import pytest
import tiny
from loud import batch_of, loud_model
from tiny_families import family_model
from tiny_trainers import arguments
from transformers import AutoTokenizer, EvalPrediction

from qa_flax import (
    QuestionAnswerer,
    QuestionAnsweringTrainer,
    average_models,
    postprocess_qa_predictions,
    prepare_train_features,
    prepare_validation_features,
    squad_metric,
)
from qa_flax.train.tokenizer_fit import check_tokenizer

LENGTHS = {"max_seq_length": 48, "doc_stride": 12, "disable_tqdm": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with the files of Splinter's own on the Hub: vocab.txt, no tokenizer.json."""
    folder = tmp_path_factory.mktemp("splinter")
    vocabulary = sorted(tiny.tokenizer().get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary] + ["[QUESTION]"]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    settings = {"do_lower_case": True, "tokenizer_class": "SplinterTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    family_model("splinter", question_token_id=len(tokens) - 1).save_pretrained(folder)
    return folder


def test_the_windows_are_transformers_own_with_the_question_token(folder):
    tokenizer, rows = AutoTokenizer.from_pretrained(folder), tiny.rows()
    windows = prepare_train_features(tiny.examples(), tokenizer, **LENGTHS)
    expected = tokenizer(
        [row["question"].lstrip() for row in rows],
        [row["context"] for row in rows],
        truncation="only_second",
        max_length=48,
        stride=12,
        return_overflowing_tokens=True,
        padding="max_length",
    )
    assert windows["input_ids"] == expected["input_ids"]
    assert "token_type_ids" not in windows.column_names
    places = np.argwhere(np.array(windows["input_ids"]) == tokenizer.question_token_id)
    assert places[:, 0].tolist() == list(range(len(windows)))


def test_a_tokenizer_without_the_question_token_is_reported(folder, caplog):
    check_tokenizer(tiny.model(), tiny.tokenizer())
    assert not caplog.text
    check_tokenizer(family_model("splinter"), tiny.tokenizer())
    assert "no token with the model's question_token_id (20) beside the question" in caplog.text
    caplog.clear()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # transformers 5 leaves token types out, which another warning says.
    tokenizer.model_input_names = ["input_ids", "attention_mask", "token_type_ids"]
    model = family_model("splinter", question_token_id=tokenizer.question_token_id, vocab_size=241)
    check_tokenizer(model, tokenizer)
    assert not caplog.text


def post_process(examples, windows, logits, output_dir=None):
    answers = postprocess_qa_predictions(
        examples, windows, logits, version_2_with_negative=True, output_dir=output_dir
    )
    predictions = [
        {"id": name, "prediction_text": text, "no_answer_probability": 0.0}
        for name, text in answers.items()
    ]
    labels = [{"id": row["id"], "answers": row["answers"]} for row in examples]
    return EvalPrediction(predictions=predictions, label_ids=labels)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_training_and_answers(folder, tmp_path, packing):
    """Logits of the padding are the lowest float32 numbers; nothing of them reaches a file."""
    examples, tokenizer = tiny.examples(), AutoTokenizer.from_pretrained(folder)
    size = {"question_token_id": tokenizer.question_token_id, "vocab_size": 241}
    trainer = QuestionAnsweringTrainer(
        family_model("splinter", **size),
        arguments(
            tmp_path, max_steps=30, learning_rate=3e-3, packing=packing, label_smoothing_factor=0.1
        ),
        train_dataset=prepare_train_features(examples, tokenizer, **LENGTHS),
        eval_dataset=prepare_validation_features(examples, tokenizer, **LENGTHS),
        eval_examples=examples,
        processing_class=tokenizer,
        post_process_function=post_process,
        compute_metrics=lambda p: squad_metric(p.predictions, p.label_ids, True),
    )
    losses = trainer.train().training_loss
    metrics = trainer.evaluate()
    assert np.isfinite([losses, metrics["eval_f1"]]).all()
    trainer.save_model()
    rows = [{name: row[name] for name in ("question", "context")} for row in examples]
    answers = QuestionAnswerer(str(tmp_path))(rows, handle_impossible_answer=True)
    assert all(0 <= answer["score"] <= 1 for answer in answers)
    for file in tmp_path.glob("*.json"):
        assert "Infinity" not in file.read_text()


@pytest.mark.slow
def test_an_average_of_models_has_the_logarithms_of_mean_probabilities():
    batch = batch_of("splinter")
    models = [loud_model(seed, family="splinter") for seed in (0, 1)]
    real = batch["attention_mask"] > 0

    def probabilities(logits):
        exponentials = np.exp(np.where(real, logits, -np.inf))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    expected = sum(probabilities(np.asarray(m.span_logits(**batch).start)) for m in models) / 2
    averaged = np.asarray(average_models(models).span_logits(**batch).start)
    np.testing.assert_allclose(np.exp(averaged)[real], expected[real], rtol=1e-4)
