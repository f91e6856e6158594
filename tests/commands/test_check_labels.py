"""`qa-flax check`: the command from start to end, resuming, its report and what it refuses."""

import json

import numpy as np
import pytest
import tiny

from qa_flax.cli import main
from qa_flax.commands.check.report import lines_of, mending, passage


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny.model(initializer_range=0.05).save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return directory


def rows():
    """24 questions about 12 contexts; the answer of one does not occur in its context."""
    rng = np.random.default_rng(0)
    result = []
    for text in range(12):
        words = rng.choice(["Ada", "Charles", "Elbe", "Dresden", "Tokyo", "Kyoto"], 6)
        context = " ".join(words) + f" {text}."
        for n, word in enumerate(words[:2]):
            answers = {"text": [str(word)], "answer_start": [context.index(word)]}
            row = {"id": f"{text}-{n}", "question": f"Where is {word}?", "context": context}
            result.append(row | {"answers": answers})
    result[3]["answers"] = {"text": ["nowhere"], "answer_start": [3]}
    return result


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "own.json"
    file.write_text(json.dumps(rows()))
    return file


def check(file, checkpoint, out, *arguments):
    main(
        [
            "check",
            str(file),
            f"--model_name_or_path={checkpoint}",
            "--max_seq_length=64",
            "--doc_stride=16",
            "--folds=2",
            "--num_train_epochs=1",
            "--disable_tqdm=True",
            f"--output_dir={out}",
            *map(str, arguments),
        ]
    )


def error_of(capfd, *arguments):
    with pytest.raises(SystemExit) as exit_:
        check(*arguments)
    assert exit_.value.code == 2
    message = capfd.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.slow
def test_every_question_is_judged_once_by_a_model_that_has_not_seen_it(
    data, checkpoint, tmp_path, capfd
):
    before = data.read_bytes()
    out, other = tmp_path / "out", tmp_path / "rows.jsonl"
    check(data, checkpoint, out, "--show=2")
    printed = capfd.readouterr().out
    assert "1. id 1-1, suspicion 100.0" in printed
    assert "does not occur in the context" in printed
    assert "3. id" not in printed
    assert str(data) in printed, "which file to mend"
    found = json.loads((out / "label_check.json").read_text())
    assert [row["rank"] for row in found] == list(range(1, 25))
    assert sorted(row["id"] for row in found) == sorted(row["id"] for row in rows())
    suspicions = [row["suspicion"] for row in found]
    assert suspicions == sorted(suspicions, reverse=True)
    assert 0 <= suspicions[-1] < suspicions[1] < 100
    folds = {row["context"]: row["fold"] for row in found}
    assert all(folds[row["context"]] == row["fold"] for row in found), "a text is in two folds"
    assert set(folds.values()) == {1, 2}
    for row in found:
        prediction = row["prediction"]
        begin = prediction["answer_start"]
        assert row["context"][begin : begin + len(prediction["text"])] == prediction["text"]
        assert 0 < prediction["probability"] <= 1
    assert found[0]["gold"]["text"] == "nowhere"
    text = (out / "label_check.txt").read_text()
    assert all(f"id {row['id']}, " in text for row in found)
    assert not list(out.rglob("checkpoint-*")), "checkpoints were left"
    assert not list(out.rglob("*.safetensors")), "models were left"
    assert data.read_bytes() == before

    check(data, checkpoint, out, f"--output={other}")
    assert capfd.readouterr().out.count("already finished") == 2
    assert [json.loads(line) for line in other.read_text().splitlines()] == found
    (out / "fold-2" / "fold.json").unlink()
    check(data, checkpoint, out, f"--output={other}")
    assert capfd.readouterr().out.count("already finished") == 1
    assert [json.loads(line) for line in other.read_text().splitlines()] == found
    message = error_of(capfd, data, checkpoint, out, "--learning_rate=1e-3")
    assert "learning_rate was 5e-05 and is 0.001" in message


def test_what_makes_no_sense_is_refused(data, checkpoint, tmp_path, capfd):
    out = tmp_path / "out"
    message = error_of(capfd, data, checkpoint, out, "--folds=13")
    assert "13 folds needs questions about at least 13 different texts" in message
    none = tmp_path / "none.json"
    none.write_text(
        json.dumps([row | {"answers": {"text": [], "answer_start": []}} for row in rows()])
    )
    assert "none of the 24 questions has an answer" in error_of(capfd, none, checkpoint, out)
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps([{k: v for k, v in r.items() if k != "answers"} for r in rows()]))
    assert "answers" in error_of(capfd, bare, checkpoint, out)
    assert "no such file" in error_of(capfd, tmp_path / "missing.json", checkpoint, out).lower()
    message = error_of(capfd, data, checkpoint, out, f"--output={data}")
    assert "would overwrite the file that is checked" in message
    message = error_of(capfd, data, checkpoint, out, f"--output={none}")
    assert "is not of a label check" in message
    assert "ends in .json" in error_of(capfd, data, checkpoint, out, "--output=rows.csv")
    message = error_of(capfd, data, checkpoint, out, "--validation_file=x.json")
    assert "instead of --validation_file, leave it out" in message
    message = error_of(capfd, data, checkpoint, out, "--eval_strategy=epoch")
    assert "must not see the labels that it judges" in message
    with pytest.raises(SystemExit):
        main(["check", f"--train_file={data}", f"--model_name_or_path={checkpoint}"])
    assert "FILE" in capfd.readouterr().err


def row_of(context, gold, prediction, **changes):
    def answer(text):
        return {"text": text, "answer_start": context.index(text), "probability": 0.25}

    row = {"rank": 1, "id": "q\x1b1", "question": "Who?", "context": context, "suspicion": 0.9}
    row |= {"gold": answer(gold), "prediction": answer(prediction)}
    return row | {"answers": [row["gold"]], "no_answer_probability": None, "note": None} | changes


def test_the_passage_marks_label_and_prediction_wherever_they_are():
    assert passage(row_of("a b c d", "b", "d")) == "a [[b]] c {{d}}"
    assert passage(row_of("a b c d", "b c", "b c")) == "a [[{{b c}}]] d"
    assert passage(row_of("a b c d", "a b c", "b")) == "[[a {{b}} c]] d"
    assert passage(row_of("a b c d", "b c", "c d")) == "a [[b {{c]] d}}"
    far = "x" * 300 + " one " + "y" * 500 + " two\nlines " + "z" * 200
    shown = passage(row_of(far, "one", "two\nlines"))
    assert shown.startswith("... xxx")
    assert "[[one]]" in shown
    assert "y ... y" in shown
    assert r"{{two\nlines}}" in shown
    assert len(shown) < 420
    none = row_of("a b c", "b", "c")
    none["prediction"] = {"text": "", "answer_start": None, "probability": 0.5}
    assert passage(none) == "a [[b]] c"


def test_the_report_has_what_a_person_needs():
    row = row_of("Ada and Charles.", "Ada", "Charles", note="it is odd")
    text = "\n".join([*lines_of([row]), *mending("own.json")])
    for part in (
        r"1. id q\x1b1, suspicion 0.9",
        "question: Who?",
        "label:    'Ada' at 0, probability 0.250",
        "model:    'Charles' at 8, probability 0.250",
        "note:     it is odd",
        "[[Ada]] and {{Charles}}.",
        "To mend own.json",
        "answer_start",
    ):
        assert part in text
    unanswerable = row_of("Ada.", "Ada", "Ada", answers=[], no_answer_probability=1e-5)
    unanswerable["gold"] = None
    assert "label:    no answer, probability 1e-05" in "\n".join(lines_of([unanswerable]))
