"""`qa-flax run --calibrate`: the file, the report and the figures, and what it cannot go with."""

import json
import logging

import pytest
import tiny
from tiny_run import run

from qa_flax import QuestionAnswerer
from qa_flax.answers.calibration import CALIBRATION_FILE, Calibration

FLAGS = ("--do_eval", "--version_2_with_negative", "--calibrate", "--disable_tqdm=True")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a checkpoint and data: v2.jsonl has all questions, none.jsonl no answers."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.model(initializer_range=0.05).save_pretrained(folder / "checkpoint")
    tiny.tokenizer().save_pretrained(folder / "checkpoint")
    rows = tiny.rows()
    (folder / "v2.jsonl").write_text("\n".join(map(json.dumps, rows)))
    none = [row | {"answers": {"text": [], "answer_start": []}} for row in rows]
    (folder / "none.jsonl").write_text("\n".join(map(json.dumps, none)))
    return folder


def results_of(folder, name="all_results.json"):
    return json.loads((folder / name).read_text())


def test_a_run_leaves_a_calibration_that_a_later_training_makes_stale(
    inputs, tmp_path, capfd, caplog
):
    data = inputs / "v2.jsonl"
    training = [f"--train_file={data}", "--do_train", "--learning_rate=5e-3", "--save_strategy=no"]
    files = [f"--validation_file={data}", f"--test_file={data}", "--do_predict"]
    run(inputs / "checkpoint", tmp_path, *training, *files, *FLAGS, "--max_steps=20")
    answerer = QuestionAnswerer(tmp_path)
    calibration = answerer.calibration
    assert calibration == Calibration.read(tmp_path)
    assert calibration is not None
    assert calibration.fitted_questions == 12
    assert calibration.fitted_questions_without_answer == 1
    assert calibration.temperature != 1
    out = capfd.readouterr().out
    assert str(calibration) in out
    assert "12 questions that were not used for the fit" in out

    results = results_of(tmp_path)
    for name, value in calibration.metrics().items():
        assert results[f"eval_{name}"] == value
        assert results_of(tmp_path, "eval_results.json")[f"eval_{name}"] == value
    assert {"epoch", "eval_exact", "eval_ece_after"} <= results_of(
        tmp_path, "eval_results.json"
    ).keys()
    # The test data are here the validation data: before the fit the same figures, after it those of
    # the final values.
    assert results["predict_ece_before"] == results["eval_ece_before"]
    assert results["predict_coverage_at_80_after"] >= 0
    assert "predict_exact" in results_of(tmp_path, "predict_results.json")

    # A new answerer calibrates to the same.
    other = answerer.calibrate(data)
    assert other.temperature == pytest.approx(calibration.temperature, rel=1e-4)
    assert other.fingerprint == calibration.fingerprint

    again = ["--overwrite_output_dir", "--max_steps=1"]
    run(inputs / "checkpoint", tmp_path, *training, *again, "--disable_tqdm=True")
    assert (tmp_path / CALIBRATION_FILE).exists()
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        answerer = QuestionAnswerer(tmp_path)
        answer = answerer(question="Who?", context=tiny.CONTEXTS[0])
    assert answerer.calibration is None
    assert "confidence" not in answer
    assert len(caplog.records) == 1
    assert "was fitted with other weights" in caplog.text
    assert "qa-flax run --calibrate" in caplog.text


def test_an_evaluation_says_where_the_file_is(inputs, tmp_path, capfd):
    arguments = [f"--validation_file={inputs / 'v2.jsonl'}", f"--test_file={inputs / 'none.jsonl'}"]
    run(inputs / "checkpoint", tmp_path, *arguments, "--do_predict", *FLAGS)
    out = capfd.readouterr().out
    source = str(inputs / "checkpoint")
    assert f"QuestionAnswerer({source!r}, calibration={str(tmp_path)!r})" in out
    assert not any(name.startswith("predict_ece") for name in results_of(tmp_path))
    answerer = QuestionAnswerer(source, calibration=str(tmp_path))
    assert answerer.calibration == Calibration.read(tmp_path)
    assert QuestionAnswerer(source).calibration is None


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--do_predict", "--test_file={v2}"], ["add --do_eval", "--validation_file"]),
        (
            ["--do_train", "--train_file={v2}", "--folds=2"],
            ["cannot be used with --folds", "out/fold-1 --do_eval"],
        ),
        (
            ["--do_train", "--train_file={v2}", "--shard_params"],
            ["cannot be used with --shard_params", "qa-flax run --model_name_or_path"],
        ),
        (
            ["--do_eval", "--validation_file={none}"],
            ["--calibrate, validation data: none of the 12 questions has an answer"],
        ),
    ],
)
def test_what_it_cannot_go_with_is_refused_before_any_work(
    inputs, tmp_path, capfd, arguments, messages
):
    arguments = [a.format(v2=inputs / "v2.jsonl", none=inputs / "none.jsonl") for a in arguments]
    with pytest.raises(SystemExit) as exit_:
        run(
            tmp_path / "no-model",
            tmp_path / "out",
            *arguments,
            "--calibrate",
            "--version_2_with_negative",
        )
    assert exit_.value.code == 2
    error = capfd.readouterr().err
    assert error.count("qa-flax: error: ") == 1
    assert "Traceback" not in error
    for message in messages:
        assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_with_nan_fails_after_all_files_are_written(inputs, tmp_path, caplog):
    model = tiny.model()
    model.head.outputs.bias[...] = float("nan")
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    arguments = [f"--{name}_file={inputs / 'v2.jsonl'}" for name in ("validation", "test")]
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "model", tmp_path / "out", *arguments, "--do_predict", *FLAGS)
    assert exit_.value.code == 1
    assert "it was not calibrated" in caplog.text
    assert (tmp_path / "out" / "predict_predictions.json").exists()
    assert not (tmp_path / "out" / CALIBRATION_FILE).exists()
