"""`qa-flax run` with changed training texts and an extra training file."""

import json

import pytest
import tiny
from tiny_run import run

CSV = "question,paraphrase\nWho wrote the first program?,By whom is the first program?\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny.model().save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Own data with other names of columns than the extra data's."""
    folder = tmp_path_factory.mktemp("data")
    own = [row for row in tiny.rows() if row["answers"]["text"]]
    renamed = [
        {("Frage" if name == "question" else name): value for name, value in row.items()}
        for row in own
    ]
    (folder / "own.json").write_text(json.dumps(renamed))
    extra = [{**row, "id": f"x{row['id']}"} for row in tiny.rows()[:11] if row["id"] != "q3"]
    (folder / "extra.json").write_text(json.dumps(extra))
    (folder / "table.csv").write_text(CSV)
    return folder


def arguments(files):
    return [f"--train_file={files / 'own.json'}", "--question_column=Frage", "--do_train"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--augment=nois"], "'nois' is unknown; it must be one of shuffle, distract, noise, que"),
        (["--augment=noise:2"], "the strength of noise is '2'; it must be a number above 0 and"),
        (["--augment_preview=2"], "add --augment or --paraphrases"),
        (["--extra_train_ratio=0.2"], "--extra_train_ratio 0.2 is the share of the batches"),
        (["--extra_train_file={}/extra.json"], "--extra_train_file needs --extra_train_ratio"),
        (
            ["--extra_train_file={}/extra.json", "--extra_train_ratio=1"],
            "extra_train_ratio=1.0: it must be at least 0 and below 1",
        ),
        (
            ["--extra_train_file={}/../{name}/own.json", "--extra_train_ratio=0.2"],
            "--extra_train_file and --train_file are the same file",
        ),
        (["--extra_train_file={}/no.json", "--extra_train_ratio=0.2"], "no.json: no such file"),
        (["--paraphrases={}/no.csv"], "no.csv: no such file"),
        (["--paraphrases={}/own.json"], "there are no paraphrases; it must be a CSV table"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    tmp_path, files, capfd, changed, message
):
    changed = [text.format(files, name=files.name) for text in changed]
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "no-model", tmp_path / "out", *arguments(files), *changed)
    assert exit_.value.code == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out/checkpoint-1").exists()


def test_training_data_is_not_changed_without_a_training(tmp_path, files, capfd):
    file = f"--validation_file={files / 'extra.json'}"
    with pytest.raises(SystemExit):
        run(tmp_path / "no-model", tmp_path / "out", file, "--do_eval", "--augment=noise")
    assert "--augment: only training data is changed, but nothing" in capfd.readouterr().err


def test_a_run_says_and_counts_what_it_does(tmp_path, files, checkpoint, capfd, caplog):
    run(
        checkpoint,
        tmp_path / "out",
        *arguments(files),
        "--validation_split=0.2",
        "--split_by=context",
        "--augment=shuffle:1,noise:0.2",
        f"--paraphrases={files / 'table.csv'}",
        "--augment_preview=2",
        f"--extra_train_file={files / 'extra.json'}",
        "--extra_train_ratio=0.5",
        "--num_train_epochs=2",
        "--report_to=none",
    )
    output = capfd.readouterr()
    preview = [line for line in output.out.splitlines() if line.startswith("Augmented question ")]
    assert len(preview) == 2
    assert "  context: " in output.out
    assert "[[" in output.out
    assert "Augmentation: each epoch has the " in output.err
    assert "(shuffle 1, noise 0.2, paraphrases of 1 questions)" in output.err
    assert "Extra training data: 3 of 6 updates of each epoch come from its " in output.err
    assert json.loads((tmp_path / "out/train_results.json").read_text())["train_extra_batches"] == 6
    leaks = [r.getMessage() for r in caplog.records if "--extra_train_file: " in r.getMessage()]
    assert len(leaks) == 1
    assert leaks[0].endswith("leave these contexts out of one of the two")


@pytest.mark.slow
def test_every_fold_has_the_extra_data(tmp_path, files, checkpoint, capfd):
    common = [*arguments(files), "--folds=2", "--num_train_epochs=1", "--report_to=none"]
    common += ["--augment=noise", f"--extra_train_file={files / 'extra.json'}"]
    run(checkpoint, tmp_path / "out", *common, "--extra_train_ratio=0.5")
    folds = json.loads((tmp_path / "out/folds.json").read_text())["folds"]
    assert [fold["train_extra_batches"] > 0 for fold in folds] == [True, True]
    with pytest.raises(SystemExit):
        run(checkpoint, tmp_path / "out", *common, "--extra_train_ratio=0.4")
    assert "extra_train_ratio was 0.5 and is 0.4" in capfd.readouterr().err
