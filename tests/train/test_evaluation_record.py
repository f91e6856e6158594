"""Evaluations of scripts leave what `qa-flax report` needs, wherever their examples come from."""

import json
import shutil

import datasets
import pytest
import tiny
from tiny_trainers import WINDOW, arguments
from transformers.trainer_utils import EvalPrediction

from qa_flax import (
    QuestionAnsweringTrainer,
    load_examples,
    postprocess_qa_predictions,
    prepare_validation_features,
    squad_metric,
)
from qa_flax.answers.record import read_record
from qa_flax.cli import main
from qa_flax.train.evaluation_record import gold_texts


def rows_of(examples):
    return [dict(row) for row in examples]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "dev.json"
    path.write_text(json.dumps({"data": rows_of(tiny.examples(answerable=True))}))
    return path


def evaluated(folder, examples, stage="eval", *, version_2=False, **search):
    """Evaluate as run_qa.py does, and return the metrics."""

    def post_process(examples, features, predictions, stage="eval"):
        texts = postprocess_qa_predictions(
            examples, features, predictions, version_2, output_dir=folder, prefix=stage, **search
        )
        rows = [{"id": k, "prediction_text": v} for k, v in texts.items()]
        if version_2:
            rows = [row | {"no_answer_probability": 0.0} for row in rows]
        golds = [{"id": row["id"], "answers": row["answers"]} for row in examples]
        return EvalPrediction(predictions=rows, label_ids=golds)

    windows = prepare_validation_features(examples, tiny.tokenizer(), **WINDOW)
    trainer = QuestionAnsweringTrainer(
        tiny.model(),
        arguments(folder),
        post_process_function=post_process,
        compute_metrics=lambda scored: squad_metric(
            scored.predictions, scored.label_ids, version_2
        ),
    )
    if stage == "predict":
        return trainer.predict(windows, examples, metric_key_prefix=stage).metrics, windows
    return trainer.evaluate(windows, examples), windows


def test_the_report_needs_nothing_but_the_folder(file, tmp_path, capsys):
    examples = load_examples(file).select([3, 1, 7])
    metrics, windows = evaluated(tmp_path, examples, n_best_size=5)
    record = read_record(tmp_path, "eval")
    assert record["source"]["file"] == str(file)
    assert record["source"]["bytes"] == file.stat().st_size
    assert record["settings"]["n_best_size"] == 5
    assert record["metrics"]["total"] == 3
    assert record["metrics"]["exact"] == pytest.approx(metrics["eval_exact_match"])
    assert record["metrics"]["f1"] == pytest.approx(metrics["eval_f1"])
    assert list(record["questions"]) == examples["id"][:]
    for id_, question in record["questions"].items():
        assert question["windows"] == windows["example_id"][:].count(id_)
    main(["report", str(tmp_path)])
    page = (tmp_path / "eval_report.html").read_text()
    assert "treasure" not in page
    assert str(file.name) in page
    # Written again by the next evaluation; the page has new scores.
    evaluated(tmp_path, load_examples(file).select([0]))
    assert list(read_record(tmp_path, "eval")["questions"]) == [load_examples(file)["id"][0]]


def test_a_data_set_of_the_library_is_found_in_its_cache(file, tmp_path, capsys):
    cache = tmp_path / "cache"
    raw = datasets.load_dataset("json", data_files=str(file), field="data", cache_dir=str(cache))
    evaluated(tmp_path, raw["train"].select(range(4)))
    main(["report", str(tmp_path)])
    assert (tmp_path / "eval_report.html").stat().st_size > 10_000
    shutil.rmtree(cache)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    error = capsys.readouterr().err
    assert "not in the cache of the library datasets any more" in error
    assert "--data FILE" in error
    main(["report", str(tmp_path), "--data", str(file)])


def test_rows_in_memory_need_the_file(file, tmp_path, capsys):
    evaluated(tmp_path, datasets.Dataset.from_list(rows_of(load_examples(file))))
    assert read_record(tmp_path, "eval")["source"] == {"part": None}
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "does not say where its data is" in capsys.readouterr().err
    main(["report", str(tmp_path), "--data", str(file)])


def test_unanswerable_questions_and_predictions(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": rows_of(tiny.examples())}))
    metrics, _ = evaluated(tmp_path / "out", load_examples(path), "predict", version_2=True)
    record = read_record(tmp_path / "out", "predict")
    assert record["settings"]["version_2_with_negative"] is True
    assert record["metrics"]["f1"] == pytest.approx(metrics["predict_f1"])
    main(["report", str(tmp_path / "out"), "--prefix", "predict"])


def test_a_record_that_cannot_be_written_loses_no_metrics(file, tmp_path, caplog):
    (tmp_path / "eval_report.json").mkdir()
    metrics, _ = evaluated(tmp_path, load_examples(file))
    assert "eval_f1" in metrics
    assert "cannot be noted for qa-flax report" in caplog.text


def test_references_of_another_form_give_no_gold_answers():
    assert gold_texts([{"id": 7, "answers": {"text": ("Elbe",)}}]) == {"7": ["Elbe"]}
    for references in (None, [1, 2], [{"id": "a"}], [{"id": "a", "answers": ["Elbe"]}]):
        assert gold_texts(references) == {}
