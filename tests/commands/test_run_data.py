"""`qa-flax run` says what is wrong with the data before any work, in the words of its arguments."""

import json

import pytest
import tiny
from tiny_run import run

from qa_flax.commands.arguments import DataArguments
from qa_flax.commands.wording import in_flags

CONTEXT = "Ada Lovelace wrote the first program in 1843. Orla Fenn built the mill."


def row(id_, text=None, start=None, **changes):
    """Return a row; without a text it has no answer, with `...` it says nothing about answers."""
    answers = {"text": [], "answer_start": []}
    if text is not None and text is not ...:
        start = CONTEXT.find(text) if start is None else start
        answers = {"text": [text], "answer_start": [start]}
    result = {"id": id_, "question": "Who?", "context": CONTEXT, "answers": answers} | changes
    return {k: v for k, v in result.items() if not (k == "answers" and text is ...)}


ANSWERED = [row(f"q{n}", "Ada Lovelace") for n in range(3)]
MIXED = [*ANSWERED, row("none")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny.model().save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
        path.write_text("\n".join(lines))
        return path

    return write


def refused(capfd, tmp_path, *arguments):
    """The message of a run that is refused before the model is loaded: there is none."""
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "no-model", tmp_path / "out", *arguments)
    assert exit_.value.code == 2
    message = capfd.readouterr().err
    assert message.count("qa-flax: error: ") == 1
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()
    return message


@pytest.mark.parametrize("rows", [
    MIXED,
    [*ANSWERED, row("none", ...)],
    [*ANSWERED, row("none", " ", 0)],
    [*ANSWERED, row("none", answers=None)],
    [row("none", is_impossible=True)],
])  # fmt: skip
@pytest.mark.parametrize("stage", ["eval", "predict"])
def test_v2_data_needs_the_flag(capfd, tmp_path, write, rows, stage):
    file = write("data.jsonl", rows)
    name = {"eval": "validation", "predict": "test"}[stage]
    message = refused(capfd, tmp_path, f"--{name}_file={file}", f"--do_{stage}")
    assert f"1 of {len(rows)} questions" in message
    assert 'ids "none"' in message
    assert "--version_2_with_negative" in message


@pytest.mark.parametrize(
    ("train", "arguments", "expected"),
    [
        ([row("a"), row("b")], [], "2 of 2 questions"),
        (MIXED, ["--eval_train_samples=2", "--do_eval"], "--eval_train_samples"),
        (MIXED, ["--folds=2"], "validation data"),
    ],
)
def test_training_data_without_answers_needs_the_flag(
    capfd, tmp_path, write, train, arguments, expected
):
    if "--do_eval" in arguments:
        arguments = [*arguments, f"--validation_file={write('v.jsonl', ANSWERED)}"]
    train = [r | {"context": f"{CONTEXT} {n}"} for n, r in enumerate(train)]
    file = write("train.jsonl", train)
    message = refused(capfd, tmp_path, f"--train_file={file}", "--do_train", *arguments)
    assert expected in message
    assert "--version_2_with_negative" in message


def test_messages_name_the_arguments_of_the_command_line(capfd, tmp_path, write):
    file = write("data.jsonl", [row("a", "Orla Fenn", 3), row("a", "Orla Fenn"), "{broken"])
    arguments = [f"--validation_file={file}", "--do_eval"]
    assert "--bad_rows skip" in refused(capfd, tmp_path, *arguments)
    file = write("data.jsonl", [row("a", "Orla Fenn", 3)])
    message = refused(capfd, tmp_path, *arguments, "--misaligned_answers=refuse")
    assert "--misaligned_answers repair" in message
    assert "misaligned=" not in message


def test_only_arguments_are_translated():
    text = 'misaligned="repair" of bad_rows="skip", version_2_with_negative=True'
    assert in_flags(text) == (
        "--misaligned_answers repair of --bad_rows skip, --version_2_with_negative"
    )
    assert (
        in_flags("Raise max_seq_length or doc_stride") == "Raise --max_seq_length or --doc_stride"
    )
    assert in_flags("windows of max_seq_length=64") == "windows of --max_seq_length 64"
    for text in ("windows of my_max_seq_length=64", "--max_seq_length 64", "my-misaligned='x'"):
        assert in_flags(text) == text


def test_the_languages_are_those_of_score():
    from dataclasses import fields

    from qa_flax.answers.metrics import LANGUAGES

    field = next(field for field in fields(DataArguments) if field.name == "language")
    assert tuple(field.metadata["choices"]) == LANGUAGES


@pytest.mark.slow
def test_data_without_labels_is_answered_and_the_flag_alone_is_a_warning(
    capfd, caplog, checkpoint, tmp_path, write
):
    file = write("data.jsonl", [row("a", ...), row("b", ...)])
    run(checkpoint, tmp_path / "1", f"--validation_file={file}", "--do_eval")
    assert "answered, but not scored" in caplog.text
    assert len(json.loads((tmp_path / "1" / "eval_predictions.json").read_text())) == 2
    run(checkpoint, tmp_path / "2", f"--test_file={file}", "--do_predict")
    file = write("data.jsonl", ANSWERED)
    flag = "--version_2_with_negative"
    run(checkpoint, tmp_path / "3", f"--validation_file={file}", "--do_eval", flag)
    assert f"{flag} is given, but every question has an answer" in caplog.text
    file = write("data.jsonl", MIXED)
    run(checkpoint, tmp_path / "4", f"--train_file={file}", "--do_train", "--max_steps=1")
    assert '1 of 4 questions (ids "none") of the training data have no answer' in caplog.text


@pytest.mark.slow
def test_rows_are_counted_and_skipped(capfd, checkpoint, tmp_path, write):
    rows = [*ANSWERED, row("moved", "Orla Fenn", 3), row("q0", "Orla Fenn"), "{broken"]
    file = write("data.jsonl", rows)
    out = tmp_path / "out"
    arguments = [f"--validation_file={file}", "--do_eval", "--misaligned_answers=repair"]
    run(checkpoint, out, *arguments, "--bad_rows=skip")
    line = f"{file}: 6 read = 3 used + 1 repaired + 2 rejected\n"
    assert line in capfd.readouterr().out
    lines = (out / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == [6, None]
    assert json.loads(lines[1])["reasons"] == ["id was already used by an earlier row"]
    write("data.jsonl", ANSWERED)
    run(checkpoint, out, *arguments, "--bad_rows=skip")
    assert "3 read = 3 used + 0 repaired + 0 rejected\n" in capfd.readouterr().out
    assert not (out / "rejected.jsonl").exists(), "the rows of another run"


@pytest.mark.slow
def test_answers_that_cannot_be_learnt_are_counted(caplog, checkpoint, tmp_path, write):
    rows = [*ANSWERED, row("minus", "Orla Fenn", -1), row("nowhere", "Danube", 3)]
    rows += [row("long", "Orla Fenn built the mill", 46)]
    file = write("data.jsonl", rows)
    files = [f"--train_file={file}", f"--validation_file={file}"]
    settings = ["--max_answer_length=15", "--max_steps=1"]
    run(checkpoint, tmp_path / "out", *files, *settings, "--do_train", "--do_eval")
    assert "2 of 6 (33%); rows: 2 (ids " in caplog.text
    assert 'The text of 1 (ids "nowhere") occurs nowhere' in caplog.text
    assert 'more than 15 tokens and can never be given: ids "long"' in caplog.text
    assert "outside their windows" not in caplog.text, "reported twice"
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["train_samples"] == 5 < results["eval_samples"]
