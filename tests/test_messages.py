"""Values of files reach a terminal or a log without control characters, and files as they are."""

import json
import logging

import pytest
import tiny

from qa_flax import AutoModelForQuestionAnswering, load_examples
from qa_flax.cli import main
from qa_flax.messages import escaped, first_few, printable, quoted, shown

EVIL = "a\x1b[31m\r\n\x00\x9b2J\u202etxt\u2066\x07"
RAW = [c for c in EVIL if not c.isprintable()]


def assert_clean(text):
    assert not [c for c in RAW if c != "\n" and c in text], repr(text)
    assert "\x1b" not in text


def test_control_characters_are_escaped():
    assert escaped(EVIL) == r"a\x1b[31m\r\n\x00\x9b2J\u202etxt\u2066\x07"
    assert printable("one\n\ttwo\x1b") == "one\n\ttwo\\x1b"
    assert quoted("a\nb") == r'"a\nb"'
    assert first_few(["a\r", "b\n"]) == r"a\r, b\n"
    assert first_few(["a\nb\x1b"], separator="\n  - ") == "a\nb\\x1b"
    assert escaped("naïve 東京 🧑‍🚀 \\x1b") == "naïve 東京 🧑‍🚀 \\x1b"  # as it is


def test_values_of_any_kind_are_shown_in_a_short_line():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    for value in (EVIL, [EVIL] * 99, {EVIL: EVIL}, 10**5000, nested):
        assert_clean(shown(value))
        assert len(shown(value)) < 200


def odd_row(**changes):
    return {"id": EVIL, "question": "Who?", "context": "Ada.", **changes}


def test_data_are_refused_and_warned_of_in_clean_text(caplog, tmp_path):
    rows = [odd_row(answers={"text": ["Ada"], "answer_start": ["x"]})]
    with pytest.raises(ValueError, match=r"a\\u001b|a\\x1b") as refused:
        load_examples(rows)
    assert_clean(str(refused.value))
    load_examples([odd_row(answers={"text": ["Bob" + EVIL], "answer_start": [0]})])
    named = tmp_path / "rows\x1b[2J\u202e.jsonl"
    named.write_text(json.dumps(odd_row(answers={"text": ["Ada"], "answer_start": [7]})))
    examples = load_examples(str(named))
    assert examples[0]["id"] == EVIL
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) >= 2
    for message in messages:
        assert_clean(message)


def test_models_are_refused_and_warned_of_in_clean_text(caplog, tmp_path):
    folder = tmp_path / "model\x1b[31m"
    with pytest.raises(OSError, match=r"model\\x1b\[31m") as refused:
        AutoModelForQuestionAnswering.from_pretrained(folder)
    assert_clean(str(refused.value))
    tiny.model().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": EVIL}))
    with pytest.raises(ValueError, match="hidden_act=") as refused:
        AutoModelForQuestionAnswering.from_pretrained(folder)
    assert_clean(str(refused.value))


def test_the_command_line_prints_and_logs_clean_text(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "no\x1b[31m\u202e")])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert r"no\x1b[31m\u202e" in err
    assert_clean(err)
    assert logging.getLogRecordFactory() is logging.LogRecord
