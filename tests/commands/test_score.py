"""`qa-flax score` prints the official scorers' output, and reports files that it cannot read."""

import json

import oracle
import pytest

from qa_flax.cli import main

ROWS = [
    {"id": "1", "question": "q", "context": "x y", "answers": {"text": ["x"], "answer_start": [0]}},
    {"id": "2", "question": "q", "context": "x y", "answers": {"text": ["y"], "answer_start": [2]}},
    {"id": "3", "question": "q", "context": "x y", "answers": {"text": [], "answer_start": []}},
    {"id": "4", "question": "q", "context": "x y", "answers": {"text": [], "answer_start": []}},
]
ANSWERS = {"4": "x", "3": "y", "2": "y", "1": "x y"}
ODDS = {"2": -3.5, "3": -1, "1": -1, "4": 2.5}  # with a tie, and in another order than ANSWERS


@pytest.fixture
def files(tmp_path):
    for name, content in (
        ("v1", {"data": ROWS[:2]}),
        ("v2", {"data": ROWS}),
        ("answers", ANSWERS),
        ("odds", ODDS),
        ("mixed", {"1": 3, "2": "y"}),
        ("few", {"1": 0.5}),
        ("list", []),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    return tmp_path


def score(files, *arguments):
    main(["score", *(a if a[0] == "-" else str(files / f"{a}.json") for a in arguments)])


def test_version_1_prints_one_line(files, capsys):
    score(files, "v1", "answers")
    expected = oracle.squad_v1_plain(ANSWERS, ROWS[:2])
    assert capsys.readouterr().out == json.dumps(expected) + "\n"


def test_version_2_without_odds_has_no_best_scores(files, capsys):
    score(files, "v2", "answers")
    expected = oracle.squad_v2_plain(ANSWERS, ROWS)
    without_best = {k: v for k, v in expected.items() if "best" not in k}
    assert capsys.readouterr().out == json.dumps(without_best, indent=2) + "\n"
    score(files, "v1", "answers", "--version_2_with_negative")
    assert json.loads(capsys.readouterr().out)["HasAns_total"] == 2


@pytest.mark.parametrize("threshold", [1.0, -2.0])
def test_version_2_with_null_odds(files, capsys, threshold):
    score(files, "v2", "answers", "--na-prob-file", "odds", f"--na-prob-thresh={threshold}")
    expected = oracle.squad_v2_plain(ANSWERS, ROWS, ODDS, threshold)
    assert capsys.readouterr().out == json.dumps(expected, indent=2) + "\n"
    assert expected["best_f1_thresh"] == -3.5


def test_writes_a_file_and_applies_a_languages_rules(files, capsys):
    (files / "answers.json").write_text(json.dumps({"1": "los x", "2": "-"}))
    score(files, "v1", "answers", "--language=es", "--out-file", "scores")
    assert capsys.readouterr().out == ""
    scores = json.loads((files / "scores.json").read_text())
    assert scores == {"exact_match": 50.0, "f1": 50.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["v1", "none"], "No such file"),
        (["none", "answers"], "no such file"),
        (["v1", "broken"], "is not JSON"),
        (["v1", "list"], "contains a list; it must be {id: string}"),
        (["v1", "mixed"], "values of 1 of 2 ids are not a string (first: 1)"),
        (["v2", "answers", "-n", "mixed"], "values of 1 of 2 ids are not a number (first: 2)"),
        (["v2", "answers", "-n", "few"], "no number for 3 of the 4 questions (first: 2, 3, 4)"),
        (["v2", "mixed"], "ids are not a"),
        (["v1", "answers", "--language=fr"], "'fr' is not supported; MLQA's rules exist for"),
    ],
)
def test_invalid_input_is_reported(files, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        score(files, *arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("qa-flax: error: ")
    assert message in error


def test_a_long_id_does_not_hide_the_message(tmp_path, capsys):
    ids = ["x" * 5000, "b"]
    rows = [{"id": i, "question": "Q?", "context": "c", "answers": {"text": ["c"]}} for i in ids]
    (tmp_path / "gold.json").write_text(json.dumps(rows))
    (tmp_path / "answers.json").write_text(json.dumps(dict.fromkeys(ids, "c")))
    (tmp_path / "odds.json").write_text("{}")
    files = [str(tmp_path / f"{name}.json") for name in ("gold", "answers", "odds")]
    with pytest.raises(SystemExit) as stopped:
        main(["score", *files[:2], "-n", files[2]])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "has no number for 2 of the 2 questions" in message
    assert "xxx..., b" in message
    assert len(message) < 800
