"""`calibration.json`: what is written is read, and what is no calibration is refused in words."""

import dataclasses
import json

import fake_gs
import pytest

from qa_flax.answers.calibration import CALIBRATION_FILE, Calibration

FULL = Calibration(
    temperature=2.5,
    no_answer_threshold=-0.75,
    fingerprint="0123abcd",
    fitted_questions=400,
    fitted_questions_without_answer=100,
    fitted_contexts=80,
    held_out_folds=5,
    held_out_ece_before=0.31,
    held_out_ece_after=0.04,
    held_out_accuracy_before=0.5,
    held_out_accuracy_after=0.525,
    held_out_coverage_at_80_before=0.2,
    held_out_coverage_at_80_after=0.25,
    held_out_confidence_at_80=0.713,
    notes=("a note",),
)


@pytest.mark.parametrize("calibration", [FULL, Calibration()])
def test_what_is_written_is_read(tmp_path, calibration):
    calibration.write(tmp_path / "new folder")
    assert Calibration.read(tmp_path / "new folder") == calibration
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == [CALIBRATION_FILE]


def test_buckets_are_written_and_read(tmp_path):
    root = fake_gs.register(str(tmp_path))
    FULL.write("gs://models/qa")
    assert (root / "models" / "qa" / CALIBRATION_FILE).is_file()
    assert Calibration.read("gs://models/qa") == FULL


def test_the_report_says_all_figures():
    assert str(FULL).splitlines() == [
        "Calibration on 400 questions about 80 contexts, measured with values fitted on other "
        "contexts (5 folds):",
        "  expected calibration error: 0.310 -> 0.040",
        "  accuracy: 50.0% -> 52.5%",
        "  coverage at 80% accuracy: 20.0% -> 25.0% (the answers with a confidence of at least "
        "0.713)",
        "  temperature 2.500, no-answer threshold -0.750",
        "  Note: a note",
    ]
    alone = dataclasses.replace(FULL, held_out_folds=0, held_out_ece_after=None)
    assert "  expected calibration error: 0.310 -> not measured" in str(alone)
    assert "measured before the fit only" in str(alone)
    assert FULL.metrics() == {
        "ece_before": 0.31,
        "ece_after": 0.04,
        "accuracy_before": 0.5,
        "accuracy_after": 0.525,
        "coverage_at_80_before": 0.2,
        "coverage_at_80_after": 0.25,
        "confidence_at_80": 0.713,
        "temperature": 2.5,
        "no_answer_threshold": -0.75,
    }
    assert Calibration().metrics() == {"temperature": 1.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 0),
        ("temperature", "2"),
        ("no_answer_threshold", float("nan")),
        ("no_answer_threshold", float("-inf")),
        ("held_out_ece_after", 1.5),
        ("held_out_confidence_at_80", float("nan")),
        ("fitted_questions", -1),
        ("fitted_questions", 1.5),
    ],
)
def test_values_out_of_range_are_neither_made_nor_read(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        dataclasses.replace(FULL, **{name: value})
    write_with(tmp_path, **{name: value})
    with pytest.raises(ValueError, match=rf"calibration\.json has a wrong value: {name}=.*again"):
        Calibration.read(tmp_path)


def write_with(folder, **changes):
    FULL.write(folder)
    values = json.loads((folder / CALIBRATION_FILE).read_text()) | changes
    (folder / CALIBRATION_FILE).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slope": 1, "new": 2}, "does not know: new, slope"),
        ({"format": "platt"}, 'not of this program or version: "format"'),
        ({"notes": "text"}, '"notes" is no list'),
        ({"notes": [3]}, "notes a list of texts"),
        ({"fingerprint": 3}, "fingerprint must be text or null"),
    ],
)
def test_other_fields_are_refused(tmp_path, changes, message):
    write_with(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        Calibration.read(tmp_path)
    assert str(error.value).endswith("; calibrate the model again, or delete the file")


def test_a_missing_field_is_refused(tmp_path):
    values = {"format": "qa_flax calibration 1", "temperature": 2.0}
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"lacks fields: fingerprint, fitted_contexts, .*\.\.\."):
        Calibration.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON .it is empty"),
        (b'{"temperature": 1.', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "not of this program"),
        (b"<html>", "it is a web page"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    (tmp_path / CALIBRATION_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Calibration.read(tmp_path)


def test_a_folder_without_the_file_is_named_with_the_next_step(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not calibrated; make one with"):
        Calibration.read(tmp_path)


def test_an_existing_file_stays_if_writing_fails(tmp_path, monkeypatch):
    FULL.write(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Calibration().write(tmp_path)
    monkeypatch.undo()
    assert Calibration.read(tmp_path) == FULL
    assert len(list(tmp_path.iterdir())) == 1
