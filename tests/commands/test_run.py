"""`qa-flax run` on the command line: the files it writes, and its message for invalid input."""

import json
import shutil

import numpy as np
import pytest
import tiny
from oracle import squad_v1_plain, squad_v2_plain
from safetensors.numpy import load_file, save_file
from tiny_run import run

from qa_flax.cli import main
from qa_flax.commands.run import parse_arguments

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny.model(initializer_range=0.05, hidden_dropout_prob=0.1).save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """v1.json: examples with an answer; v2.jsonl: all examples; test.json: all, without answers."""
    directory = tmp_path_factory.mktemp("data")
    rows = tiny.rows()
    answerable = [row for row in rows if row["answers"]["text"]]
    (directory / "v1.json").write_text(json.dumps({"data": answerable}))
    (directory / "v2.jsonl").write_text("\n".join(map(json.dumps, rows)))
    unanswered = [{k: v for k, v in row.items() if k != "answers"} for row in rows]
    (directory / "test.json").write_text(json.dumps(unanswered))
    return directory


def read(path):
    return json.loads(path.read_text())


def test_train_evaluate_and_predict_write_the_files_of_run_qa(checkpoint, data, tmp_path, capfd):
    run(
        checkpoint,
        tmp_path,
        f"--train_file={data / 'v1.json'}",
        f"--validation_file={data / 'v1.json'}",
        f"--test_file={data / 'test.json'}",
        "--do_train",
        "--do_eval",
        "--do_predict",
        "--save_spans",
        "--num_train_epochs=20",
        "--learning_rate=1e-2",
    )
    names = {path.name for path in tmp_path.iterdir()}
    for name in [
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "train_results.json",
        "eval_results.json",
        "predict_results.json",
        "all_results.json",
        "trainer_state.json",
        "eval_predictions.json",
        "eval_nbest_predictions.json",
        "predict_predictions.json",
        "predict_nbest_predictions.json",
        "eval_spans.json",
        "predict_spans.json",
        "eval_report.json",
        "predict_report.json",
    ]:
        assert name in names
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert f"- F1: {read(tmp_path / 'eval_results.json')['eval_f1']:.4f}".rstrip("0") in card
    assert "- num_devices: 8\n" in card
    assert "was fine-tuned from a local checkpoint on" in card
    assert "- JAX " in card
    assert str(tmp_path.parent) not in card, "the model card names a folder of this machine"
    assert not any("null_odds" in name or name.endswith(".tmp") for name in names)
    results = read(tmp_path / "all_results.json")
    rows = read(data / "v1.json")["data"]
    expected = squad_v1_plain(read(tmp_path / "eval_predictions.json"), rows)
    assert results["eval_exact_match"] == expected["exact_match"]
    assert results["eval_f1"] == expected["f1"]
    assert results["eval_exact_match"] > 60
    assert results["train_loss"] > 0
    assert read(tmp_path / "predict_predictions.json").keys() == {f"q{n}" for n in range(12)}
    answers, spans = (read(tmp_path / f"eval_{n}.json") for n in ("predictions", "spans"))
    assert spans.keys() == answers.keys()
    for row in rows:
        best = spans[row["id"]][0]
        assert best["text"] == answers[row["id"]] == row["context"][best["start"] : best["end"]]

    report = read(tmp_path / "eval_report.json")
    assert report["source"]["file"] == str(data / "v1.json")
    assert report["questions"].keys() == answers.keys()
    assert report["metrics"]["f1"] == pytest.approx(results["eval_f1"])
    for row in rows:
        question = report["questions"][row["id"]]
        assert question["answers"] == row["answers"]["text"]
        one = squad_v1_plain({row["id"]: answers[row["id"]]}, [row])
        assert 100 * question["f1"] == pytest.approx(one["f1"])
        assert 100 * question["exact"] == one["exact_match"]
    windows = sum(question["windows"] for question in report["questions"].values())
    assert windows == results["eval_samples"]
    assert "f1" not in read(tmp_path / "predict_report.json")["questions"]["q0"]

    captured = capfd.readouterr()
    assert "eval_exact_match" in captured.out
    assert "train_loss " in captured.out  # the tables, which no further line repeats
    for text in ("Tokenizing", "Training: ", "step 60: loss "):
        assert text in captured.err
    for text in ("train_runtime", "eval_exact_match", "predict_exact_match"):
        assert text not in captured.err


@pytest.mark.parametrize("compatible", [True, False])
def test_v2_writes_null_odds_and_scores_the_best_threshold(checkpoint, data, tmp_path, compatible):
    run(
        checkpoint,
        tmp_path,
        f"--validation_file={data / 'v2.jsonl'}",
        "--do_eval",
        "--version_2_with_negative",
        "--null_score_diff_threshold=-0.5",
        "--n_best_size=5",
        "--disable_tqdm=True",
        f"--hf_compatible={compatible}",
    )
    rows = tiny.rows()
    answers = read(tmp_path / "eval_predictions.json")
    odds = read(tmp_path / "eval_null_odds.json")
    assert odds.keys() == answers.keys() == {row["id"] for row in rows}
    assert all((answers[id_] == "") == (odds[id_] > -0.5) for id_ in odds)
    assert len(set(answers.values()) - {""}) > 1
    results = read(tmp_path / "eval_results.json")
    expected = squad_v2_plain(answers, rows)
    if not compatible:  # the best threshold is searched over all null odds, with the best spans
        best = read(tmp_path / "eval_nbest_predictions.json")
        # "" if none of the 5 x 5 best starts and ends form a span.
        texts = {id_: next((e["text"] for e in best[id_] if e["text"]), "") for id_ in best}
        with_odds = squad_v2_plain(texts, rows, odds, threshold=-0.5)
        assert {k: with_odds[k] for k in expected if "best" not in k} == {
            k: v for k, v in expected.items() if "best" not in k
        }
        assert with_odds["best_f1"] >= with_odds["f1"]
        assert with_odds["best_f1_thresh"] != expected["best_f1_thresh"]
        expected = with_odds
    for name, value in expected.items():
        assert results[f"eval_{name}"] == value
    assert not (tmp_path / "eval_spans.json").exists()


def test_pytorch_loads_the_saved_model_and_tokenizer(checkpoint, data, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    run(
        checkpoint,
        tmp_path,
        f"--train_file={data / 'v1.json'}",
        "--do_train",
        "--max_steps=1",
        "--disable_tqdm=True",
    )
    _, info = transformers.AutoModelForQuestionAnswering.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).cls_token == "[CLS]"


@pytest.mark.slow
def test_adapters_are_trained_saved_resumed_and_loaded(capfd, checkpoint, data, tmp_path):
    files = [f"--train_file={data / 'v1.json'}", f"--validation_file={data / 'v1.json'}"]
    arguments = [*files, "--lora_r=4", "--lora_alpha=8", "--lora_dropout=0.05", "--save_steps=30"]
    arguments += ["--lora_target_modules=query, value,dense", "--learning_rate=2e-2"]
    arguments += ["--num_train_epochs=30", "--disable_tqdm=True"]
    run(checkpoint, tmp_path, *arguments, "--do_train", "--do_eval")
    out = capfd.readouterr().out
    adapters = 4 * (2 * (32 + 32) + (32 + 32) + 2 * (32 + 48))
    trained, total = adapters + 66, adapters + tiny.model().num_parameters()
    assert (
        f"Training {trained:,} of {total:,} parameters ({trained / total:.2%}); "
        f"the optimizer state takes {4 * (2 * trained + 1):,} bytes on each core\n"
    ) in out
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert not names & {"config.json", "model.safetensors"}
    config = read(tmp_path / "adapter_config.json")
    assert config["base_model_name_or_path"] == str(checkpoint)
    assert config["target_modules"] == ["query", "value", "dense"]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.05)
    results = read(tmp_path / "all_results.json")
    assert results["eval_exact_match"] > 60
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()

    shutil.rmtree(tmp_path / "checkpoint-60")
    run(checkpoint, tmp_path, *arguments, "--do_train")
    assert "Resuming from" in capfd.readouterr().err
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == weights

    run(tmp_path, tmp_path / "evaluation", *files, "--do_eval", "--disable_tqdm=True")
    for name, value in read(tmp_path / "evaluation" / "eval_results.json").items():
        if name in ("eval_exact_match", "eval_f1", "eval_loss"):
            assert value == results[name], name


def test_repeating_a_command_resumes_the_run(capfd, checkpoint, data, tmp_path):
    arguments = [f"--train_file={data / 'v1.json'}", "--do_train", "--max_steps=3"]
    arguments += ["--save_steps=1", "--logging_steps=1", "--learning_rate=1e-3"]
    run(checkpoint, tmp_path, *arguments)
    uninterrupted = read(tmp_path / "trainer_state.json")["log_history"]
    shutil.rmtree(tmp_path / "checkpoint-2")
    shutil.rmtree(tmp_path / "checkpoint-3")
    capfd.readouterr()
    run(checkpoint, tmp_path, *arguments)
    assert "Resuming from" in (err := capfd.readouterr().err)
    assert "Training: 3 steps from step 1" in err
    resumed = read(tmp_path / "trainer_state.json")["log_history"]
    assert [logs.get("loss") for logs in resumed] == [logs.get("loss") for logs in uninterrupted]

    with pytest.raises(SystemExit) as exit_:
        run(checkpoint, tmp_path, *arguments, "--seed=5")
    assert exit_.value.code == 2
    assert "seed: 42 in the checkpoint, 5 now" in capfd.readouterr().err
    run(checkpoint, tmp_path, *arguments, "--seed=5", "--accept_changes")
    assert "Training: 3 steps from step 3" in capfd.readouterr().err
    run(checkpoint, tmp_path, *arguments, "--seed=5", "--overwrite_output_dir")
    assert "Training: 3 steps\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--hidden_dropout_prob=1.5", "hidden_dropout_prob=1.5: it must be at least 0 and below 1"),
        ("--layerwise_lr_decay=0", "layerwise_lr_decay=0.0: it must be above 0 and at most 1"),
        ("--freeze_layers=3-1", "freeze_layers='3-1': it must have numbers of layers from 0"),
        ("--freeze_layers=0-1", "freeze_layers='0-1': this bert model has 1 layers"),
        ("--reinit_layers=2", "reinit_layers=2: this bert model has 1 layers"),
        ("--classifier_dropout=0.1", "classifier_dropout=0.1: BertForQuestionAnswering has no"),
    ],
)
def test_arguments_that_do_not_fit_are_reported_in_a_line(
    checkpoint, data, tmp_path, capfd, argument, message
):
    with pytest.raises(SystemExit) as exit_:
        run(checkpoint, tmp_path, f"--train_file={data / 'v1.json'}", "--do_train", argument)
    assert exit_.value.code == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"qa-flax: error: {message}")


@pytest.mark.slow
def test_the_number_of_trained_parameters_is_that_after_freezing(checkpoint, data, tmp_path, capfd):
    settings = (f"--train_file={data / 'v1.json'}", "--do_train", "--max_steps=1")
    run(checkpoint, tmp_path, *settings, "--freeze_layers=0", "--freeze_embeddings")
    assert "Training 66 of " in capfd.readouterr().out


def test_the_arguments_have_the_defaults_of_run_qa():
    """The defaults of the newest PyTorch and Flax scripts; `max_val_samples` is an older name."""
    required = ["--model_name_or_path=m", "--output_dir=o", "--dataset_name=d"]
    values = {k: v for group in parse_arguments(required) for k, v in vars(group).items()}
    for name in ("config_name", "tokenizer_name", "cache_dir", "token"):
        assert values[name] is None, name
    for name in ("dataset_config_name", "train_file", "validation_file", "test_file"):
        assert values[name] is None, name
    for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
        assert values[name] is None, name
    for name in ("trust_remote_code", "overwrite_cache", "version_2_with_negative"):
        assert values[name] is False, name
    expected = {"model_revision": "main", "dtype": "float32", "max_seq_length": 384}
    expected |= {"preprocessing_num_workers": None, "pad_to_max_length": True, "doc_stride": 128}
    expected |= {"null_score_diff_threshold": 0.0, "n_best_size": 20, "max_answer_length": 30}
    assert {name: values[name] for name in expected} == expected
    assert parse_arguments([*required, "--max_val_samples=3"])[1].max_eval_samples == 3


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_arguments_are_read_from_a_json_or_yaml_file(checkpoint, data, tmp_path, kind):
    settings = {
        "model_name_or_path": str(checkpoint),
        "validation_file": str(data / "v1.json"),
        "do_eval": True,
        "max_seq_length": 64,
        "doc_stride": 16,
        "output_dir": str(tmp_path / "out"),
        "disable_tqdm": True,
        "max_eval_samples": 3,
    }
    (tmp_path / f"run.{kind}").write_text(json.dumps(settings))  # JSON is valid YAML
    main(["run", str(tmp_path / f"run.{kind}")])
    assert len(read(tmp_path / "out" / "eval_predictions.json")) == 3


# ---- invalid input -------------------------------------------------------------------------------


def error_message(capfd, checkpoint, tmp_path, *arguments):
    """The message of a run that fails with exit status 2, checked to be one and no traceback."""
    with pytest.raises(SystemExit) as exit_:
        run(checkpoint, tmp_path / "out", *arguments)
    assert exit_.value.code == 2
    message = capfd.readouterr().err
    assert "Traceback" not in message
    assert message.count("qa-flax: error: ") == 1
    return message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        ("{not json", "not valid JSON"),
        (
            '[{"question": "Q?", "text": "c"}]',
            "missing column context. Columns found: question, text",
        ),
        ('[{"id": "a", "question": " ", "context": "c", "answers": []}]', "question is empty"),
        ('[{"id": "a", "question": "q", "context": "", "answers": []}]', "context is empty"),
        (
            json.dumps([{"id": "a", "question": "q", "context": "c", "answers": []}] * 2),
            "id was already used",
        ),
    ],
)
def test_invalid_data_is_refused(capfd, checkpoint, tmp_path, content, expected):
    file = tmp_path / "data.json"
    if content is not None:
        file.write_text(content)
    message = error_message(capfd, checkpoint, tmp_path, f"--validation_file={file}", "--do_eval")
    assert expected in message
    assert not (tmp_path / "out").exists()


def test_long_questions_are_truncated_or_refused(capfd, caplog, checkpoint, tmp_path):
    file = tmp_path / "data.json"
    row = {"id": "a", "question": "q " * 80, "context": "c " * 99, "answers": []}
    file.write_text(json.dumps([row]))
    arguments = [f"--validation_file={file}", "--do_eval", "--disable_tqdm=True"]
    message = error_message(capfd, checkpoint, tmp_path, *arguments, "--long_questions=refuse")
    assert "too long for windows of --max_seq_length 64" in message
    assert not (tmp_path / "out").exists()
    run(checkpoint, tmp_path / "out", *arguments)
    warning = "1 of 1 questions are too long for the window and are truncated to 22 tokens"
    assert warning in caplog.text


def test_misaligned_answers_are_kept_repaired_or_refused(capfd, checkpoint, tmp_path):
    row = {"id": "a", "question": "q", "context": "The sea is blue."}
    row["answers"] = {"text": ["blue"], "answer_start": [3]}
    file = tmp_path / "data.json"
    file.write_text(json.dumps([row]))
    arguments = [f"--validation_file={file}", "--do_eval", "--disable_tqdm=True"]
    message = error_message(capfd, checkpoint, tmp_path, *arguments, "--misaligned_answers=refuse")
    assert "not in the context at its answer_start" in message
    assert '1 (ids "a")' in message
    run(checkpoint, tmp_path / "out", *arguments, "--misaligned_answers=keep")
    run(checkpoint, tmp_path / "out", *arguments, "--misaligned_answers=repair")


def test_invalid_checkpoints_are_refused(capfd, checkpoint, data, tmp_path):
    arguments = [f"--validation_file={data / 'v1.json'}", "--do_eval"]
    assert "does not exist" in error_message(capfd, tmp_path / "nothing", tmp_path, *arguments)

    config = read(checkpoint / "config.json")
    for name, change, expected in [
        (
            "type",
            {"model_type": "llama"},
            "model_type='llama' is not supported; supported",
        ),
        ("shape", {"intermediate_size": 40}, "wrong shape"),
        ("layers", {"num_hidden_layers": 2}, "missing: encoder.layer.1"),
        ("act", {"hidden_act": "snake"}, "hidden_act='snake' is not supported; supported: gelu"),
    ]:
        broken = tmp_path / name
        broken.mkdir()
        for file in checkpoint.iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        (broken / "config.json").write_text(json.dumps(config | change))
        assert expected in error_message(capfd, broken, tmp_path, *arguments)


def test_invalid_adapter_targets_are_refused(capfd, checkpoint, data, tmp_path):
    arguments = [f"--train_file={data / 'v1.json'}", "--do_train", "--lora_r=4"]
    layers = "which are: bert.encoder.layer.*.attention.output.dense, bert.encoder.layer.*.att"
    assert layers in error_message(capfd, checkpoint, tmp_path, *arguments)
    arguments += ["--lora_target_modules=q_lin,v_lin"]
    message = error_message(capfd, checkpoint, tmp_path, *arguments)
    assert "target_modules=('q_lin', 'v_lin') matches none of this model's dense layers" in message
    assert layers in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--do_eval"], "no data"),
        (["--learning_rate=fast"], "invalid float value: 'fast'"),
        (["--validation_file=x.json"], "nothing to do"),
        (
            ["--train_file=x.json", "--lora_r=-1"],
            "--lora_r is -1; it must be a whole number of at least 0",
        ),
        (
            ["--train_file=x.json", "--lora_target_modules=query"],
            "--lora_target_modules has no effect without --lora_r",
        ),
        (["--validation_file=x.json", "--do_eval", "--n_best_size=0"], "--n_best_size is 0"),
        (["--validation_file=x.json", "--do_train"], "--do_train needs --train_file"),
        (
            ["--train_file=x.json", "--do_train", "--early_stopping_patience=3"],
            "--early_stopping_patience 3 needs --validation_file",
        ),
        (
            [
                "--train_file=x.json",
                "--do_train",
                "--torch_empty_cache_steps=3",
                "--fsdp=full_shard",
            ],
            "fsdp=",
        ),
        (
            ["--train_file=x.json", "--do_train", "--save_spans"],
            "--save_spans writes the spans of evaluated questions, but nothing is evaluated",
        ),
        (["--train_file=x.json", "--do_train", "--no_such_flag=1"], "--no_such_flag=1"),
    ],
)
def test_invalid_arguments_are_refused(capfd, checkpoint, tmp_path, arguments, expected):
    assert expected in error_message(capfd, checkpoint, tmp_path, *arguments)


# ---- numbers -------------------------------------------------------------------------------------


def test_logits_that_are_not_numbers_end_in_status_1_and_valid_json(
    checkpoint, data, tmp_path, capfd
):
    broken, output = tmp_path / "broken", tmp_path / "output"
    shutil.copytree(checkpoint, broken)
    tensors = load_file(broken / "model.safetensors")
    save_file(tensors | {"qa_outputs.bias": np.full(2, np.nan, np.float32)}, broken / WEIGHTS)
    with pytest.raises(SystemExit) as stopped:
        run(broken, output, "--do_eval", f"--validation_file={data / 'v1.json'}")
    assert stopped.value.code == 1
    error = capfd.readouterr().err
    assert "qa-flax: the logits of 20 windows (eval) are NaN or infinite" in error
    assert "Traceback" not in error
    for path in output.glob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read(output / "eval_results.json")["eval_loss"] is None
    assert set(read(output / "eval_predictions.json").values()) == {""}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["f1_score"], "metric_for_best_model='f1_score': evaluation returns only eval_loss, "),
        (["exact"], "eval_exact_match, eval_f1; did you mean 'exact_match'?"),
        (["HasAns_f2", "--version_2_with_negative"], "did you mean 'HasAns_f1'?"),
        (["accuracy"], "evaluation returns only eval_loss"),
    ],
)
def test_a_wrong_metric_is_found_before_the_training(
    checkpoint, data, tmp_path, capfd, flags, message
):
    file = data / ("v2.jsonl" if "--version_2_with_negative" in flags else "v1.json")
    files = [f"--{name}_file={file}" for name in ("train", "validation")]
    steps = ["--do_train", "--do_eval", "--eval_strategy=epoch", "--save_strategy=epoch"]
    metric = ["--load_best_model_at_end", "--metric_for_best_model", *flags]
    with pytest.raises(SystemExit) as stopped:
        run(checkpoint, tmp_path, *files, *steps, *metric)
    assert stopped.value.code == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "checkpoint-1").exists()
