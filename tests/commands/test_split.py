"""`qa-flax run --validation_split`: which examples are trained on, and what is reported."""

import json

import numpy as np
import pytest
import tiny

from qa_flax.commands.run import parse_arguments
from qa_flax.commands.run.split import check_stages, examples_by_stage
from qa_flax.data.splits import contexts_of


def write(folder, name, sizes, titles=None):
    rng = np.random.default_rng(0)
    rows = []
    for text, size in enumerate(sizes):
        context = " ".join(rng.choice(["Ada", "Elbe", "sea", "Tokyo"], 8)) + f" {text}."
        title = {} if titles is None else {"title": titles[text]}
        rows += [
            {"id": f"{text}-{n}", "question": f"Q {n}?", "context": context, "answers": []} | title
            for n in range(size)
        ]
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def stages_of(*arguments):
    required = ["--model_name_or_path=m", "--output_dir=o", "--report_to=none"]
    model_args, data_args, training_args, _ = parse_arguments([*required, *map(str, arguments)])
    check_stages(data_args, training_args)
    return examples_by_stage(model_args, data_args, training_args), training_args


def test_a_share_of_the_training_file_is_kept_for_evaluation(tmp_path, capfd, caplog):
    file = write(tmp_path, "train.json", [1, 2, 3, 4] * 10)
    arguments = [f"--train_file={file}", "--do_train", "--validation_split=0.1"]
    examples, training_args = stages_of(*arguments)
    assert training_args.do_eval
    assert (len(examples["train"]), len(examples["eval"])) == (90, 10)
    contexts = len(set(contexts_of(examples["eval"])))
    assert capfd.readouterr().out.splitlines() == [
        "--validation_split sets --do_eval: the part that is split off is evaluated",
        f"Validation: 10 of 100 questions (10.0%), {contexts} of 40 contexts; "
        "no context is on both sides",
    ]
    assert not caplog.records
    again, _ = stages_of(*arguments, "--do_eval", "--max_train_samples=7", "--max_eval_samples=4")
    assert again["train"]["id"][:] == examples["train"]["id"][:7]
    assert again["eval"]["id"][:] == examples["eval"]["id"][:4]
    splits = [
        stages_of(*arguments, *seed)[0]["eval"]["id"][:]
        for seed in (["--seed=1"], ["--data_seed=1"], ["--seed=5", "--data_seed=1"], ["--seed=5"])
    ]
    assert splits[0] == splits[1] == splits[2] != splits[3]


def test_a_split_by_title_that_misses_the_share_names_the_other_way(tmp_path, capfd, caplog):
    file = write(tmp_path, "train.json", [5] * 20, ["a"] * 10 + ["b"] * 10)
    arguments = [f"--train_file={file}", "--do_train", "--do_eval", "--validation_split=0.1"]
    examples, _ = stages_of(*arguments)
    assert len(set(examples["eval"]["title"])) == 1
    line = "50 of 100 questions (50.0%), 10 of 20 contexts, 1 of 2 titles; no context or title is"
    assert line in capfd.readouterr().out
    assert "asked for 10.0%" in caplog.text
    assert "--split_by context" in caplog.text
    caplog.clear()
    examples, _ = stages_of(*arguments, "--split_by=context")
    assert len(examples["eval"]) == 10
    assert not caplog.records
    assert "no context is on both sides" in capfd.readouterr().out


def test_files_that_share_contexts_are_warned_of(tmp_path, caplog):
    train = write(tmp_path, "train.json", [2] * 10)
    validation = write(tmp_path, "validation.json", [3] * 10)
    stages_of(f"--train_file={train}", f"--validation_file={validation}", "--do_train", "--do_eval")
    assert "30 of 30 validation questions (ids 0-0, 0-1" in caplog.text
    assert "(20 of them are themselves in the training set)" in caplog.text
    caplog.clear()
    stages_of(f"--train_file={train}", f"--validation_file={validation}", "--do_eval")
    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--validation_split=0.1", "--do_eval"], "--validation_split needs --do_train"),
        (["--folds=3", "--do_eval"], "--folds needs --do_train"),
        (["--validation_split=10", "--do_train"], "--validation_split is 10.0; it must be a share"),
        (["--folds=1", "--do_train"], "--folds is 1; it must be at least 2 for cross-validation"),
        (["--folds=3", "--validation_split=0.1", "--do_train"], "exclude each other"),
        (["--folds=3", "--validation_file=v.json", "--do_train"], "--folds takes the evaluation"),
        (["--validation_split=0.1", "--validation_file=v.json"], "but --validation_file names"),
        (["--split_by=title", "--do_train"], "--split_by has no effect without"),
        (["--do_eval"], "--do_eval needs --validation_file or --dataset_name, or --validation_sp"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        stages_of(f"--train_file={write(tmp_path, 'train.json', [2] * 10)}", *arguments)


def test_one_context_cannot_be_split(tmp_path):
    file = tmp_path / "train.json"
    rows = [row for row in tiny.rows() if row["context"] == tiny.CONTEXTS[0]]
    file.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="at least 2 different texts, but there is only 1"):
        stages_of(f"--train_file={file}", "--do_train", "--validation_split=0.5")
