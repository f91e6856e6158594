"""`qa-flax report`: what is on the page, hostile texts, and its message for what does not fit."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import report_cases
from report_cases import HOSTILE, LONE, OUTCOMES

from qa_flax.answers.record import file_source, question_records, write_record
from qa_flax.answers.report.data import load_data
from qa_flax.answers.report.questions import make_questions
from qa_flax.answers.report.reading import read_evaluation
from qa_flax.answers.report.rows import page_rows
from qa_flax.cli import main


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and the text of each."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in ("meta", "link", "input", "img"):
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [
            e
            for e in self.elements
            if e["tag"] == tag and all(e.get(k) == v for k, v in attributes.items())
        ]

    def rows(self):
        """Every row of the page by id, as a dict, and the contexts by number."""
        (settings,) = self.all("script", id="settings")
        (first,) = self.all("script", id="first")
        fields = json.loads(settings["text"])["fields"]
        blocks = [json.loads(first["text"])]
        for block in self.all("script", type="application/octet-stream"):
            blocks.append(json.loads(gzip.decompress(base64.b64decode(block["text"]))))
        contexts = dict(pair for block in blocks for pair in block["contexts"])
        rows = [dict(zip(fields, row, strict=True)) for block in blocks for row in block["rows"]]
        return rows, contexts


def report(*arguments):
    main(["report", *map(str, arguments)])


def page(folder, *arguments, name="eval_report.html"):
    report(folder, *arguments)
    return Parsed((folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / f"out {HOSTILE[:38].replace('/', '')}"
    data = report_cases.write(folder)
    return page(folder, "--data", data)


@pytest.fixture
def folder(tmp_path):
    report_cases.write(tmp_path / "out")
    return tmp_path / "out"


def failing(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        report(*arguments)
    assert error.value.code == 2
    return capsys.readouterr().err


def test_the_page_can_ask_for_nothing_and_runs_only_its_own_script(parsed):
    (policy,) = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})
    scripts = [e for e in parsed.all("script") if "type" not in e]
    (style,) = parsed.all("style")
    assert len(scripts) == 1
    for text in (scripts[0]["text"], style["text"]):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy["content"]
    assert policy["content"].startswith("default-src 'none'; script-src 'sha256-")
    for element in parsed.elements:
        assert not any(name.startswith("on") or name == "style" for name in element)
        for name in ("src", "href"):
            assert re.match(r"#|data:", element.get(name) or "#"), element
    assert "innerHTML" not in scripts[0]["text"]


def test_the_parts_of_the_page(parsed):
    headings = [e["text"] for e in parsed.all("h2")]
    assert headings == [
        "Scores",
        "Where it fails",
        "No-answer threshold",
        "Confidence",
        "Questions",
    ]
    assert {e["href"] for e in parsed.all("a")} == {
        "#scores",
        "#slices",
        "#no-answer",
        "#calibration",
        "#questions",
    }
    ids = [e["id"] for e in parsed.elements if "id" in e]
    assert len(set(ids)) == len(ids)
    legends = [e["text"] for e in parsed.all("ul", **{"class": "legend"})]
    assert legends == [
        "right 3partly right 1wrong 3should have been empty 1should have been answered 1"
    ]
    slices = [e["text"].split(" ")[0] for e in parsed.all("h3") if "slice" in e.get("id", "")]
    assert slices == ["Question", "Answer", "Answer", "Title"]
    (same,) = (e["text"] for e in parsed.all("p") if e["text"].startswith("The same for all"))
    assert same == "The same for all questions: context length: 1–50."  # noqa: RUF001
    assert all(e.get("aria-label") or e.get("aria-hidden") for e in parsed.all("svg"))
    values = [e["text"] for e in parsed.all("span", **{"class": "value"})]
    assert values[:2] == ["33.3", "38.9"], "EM and F1"


def test_every_question_has_its_outcome_and_its_places(parsed):
    rows, contexts = parsed.rows()
    (settings,) = parsed.all("script", id="settings")
    names = json.loads(settings["text"])["outcomes"]
    assert {row["id"]: names[str(row["outcome"])] for row in rows} == OUTCOMES
    assert rows[-3:] == [row for row in rows if row["outcome"] == 0], "right answers come last"

    def marked(id_, name):
        row = next(row for row in rows if row["id"] == id_)
        places = [row[name]] if name == "answerPlace" else row[name]
        units = contexts[row["context"]].encode("utf-16-le", "surrogatepass")
        return [units[2 * a : 2 * b].decode("utf-16-le", "surrogatepass") for a, b in places]

    assert marked("right", "answerPlace") == ["Elbe"]
    assert marked("right", "goldPlaces") == ["The Elbe 🌊", "Elbe"]
    assert marked("partly", "answerPlace") == ["Hamburg"], "after a character of two units"
    assert marked("arabic", "answerPlace") == ["1815"]
    twice = next(row for row in rows if row["id"] == "twice")
    assert (twice["occurrences"], twice["answerPlace"]) == (2, twice["goldPlaces"][0])
    assert twice["answerPlace"][0] > 20, "of two places the one with the gold answer"
    hostile = next(row for row in rows if row["id"] == f"id {HOSTILE}")
    assert hostile["question"] == f"When? {HOSTILE}"
    assert [text for text, _ in hostile["nBest"]] == ["Ada", "Elbe", LONE, ""]


def test_hostile_texts_are_text(parsed):
    assert len(parsed.all("b")) == 5, "the counts of the outcomes"
    assert "alert(1)" in parsed.all("table")[-1]["text"], "in a title"
    for element in parsed.all("bdi"):
        assert element["dir"] == "auto"
    text = "".join(e["text"] for e in parsed.all("body"))
    assert "\0" not in text
    assert "\ud800" not in text


def test_the_scores_are_those_of_the_scorer(folder, capsys):
    report(folder, "--data", folder / "data.json")
    printed = capsys.readouterr().out
    main(["score", str(folder / "data.json"), str(folder / "eval_predictions.json")])
    scores = json.loads(capsys.readouterr().out)
    assert f"EM {scores['exact']:.1f} (95%:" in printed
    assert f"F1 {scores['f1']:.1f} (95%:" in printed
    assert f"The report is {folder / 'eval_report.html'}" in printed


def write_own_record(folder, data):
    """What an evaluation of qa-flax leaves."""
    answers = json.loads((folder / "eval_predictions.json").read_text())
    golds = {row["id"]: row["answers"]["text"] for row in report_cases.rows()}
    records = question_records(
        answers, golds, dict.fromkeys(answers, 2), version_2_with_negative=True, language=None
    )
    settings = {"model": "m", "version_2_with_negative": True, "null_score_diff_threshold": -3.5}
    write_record(folder, "eval", file_source(data) | {"part": None}, settings, records)


def test_the_data_is_found_again_and_changes_are_told(folder, tmp_path, capsys):
    data = folder / "data.json"
    write_own_record(folder, data)
    parsed = page(folder)
    assert "note:" not in capsys.readouterr().out
    (description,) = parsed.all("dl", **{"class": "description"})
    assert f"Data{data}" in description["text"]
    assert "Modelm" in description["text"]
    (windows,) = [
        e["text"] for e in parsed.all("p", **{"class": "muted"}) if "windows" in e["text"]
    ]
    assert "2" in windows
    values = json.loads(data.read_text())
    values["data"][0]["answers"] = {"text": ["Dresden"], "answer_start": [26]}
    data.write_text(json.dumps(values))
    report(folder)
    printed = capsys.readouterr().out
    assert "not the one that was evaluated, or has changed since" in printed
    assert "gold answers of 1 of 9 questions are not those of the evaluation (right)" in printed
    data.rename(tmp_path / "moved.json")
    error = failing(capsys, folder)
    assert f"{data}, is not there any more; give the data" in error
    assert f"qa-flax report {folder} --data FILE" in error
    report(folder, "--data", tmp_path / "moved.json")
    (tmp_path / "moved.json").write_text(json.dumps({"data": values["data"][2:]}))
    error = failing(capsys, folder, "--data", tmp_path / "moved.json")
    assert "lacks 2 of the 9 questions that were evaluated (ids right, partly)" in error
    values["data"][2]["question"] = None
    (tmp_path / "moved.json").write_text(json.dumps(values))
    error = failing(capsys, folder, "--data", tmp_path / "moved.json")
    assert "lacks 1 of the 9 questions that were evaluated (ids arabic)" in error
    assert "the row of arabic cannot be used: question is missing" in error


def test_two_evaluations_are_compared(folder, tmp_path, capsys):
    changes = {"right": "Dresden", "empty": "Ada Lovelace", "arabic": "آدا"}
    report_cases.write(tmp_path / "other", changes=changes)
    parsed = page(folder, "--data", folder / "data.json", "--compare", tmp_path / "other")
    printed = capsys.readouterr().out
    assert "difference in EM +0.0 (95%:" in printed
    assert ", p = 1.000" in printed
    legend = parsed.all("ul", **{"class": "legend"})[1]["text"]
    assert legend == "right in both 2mended 1broken 1wrong in both 5"
    rows, _ = parsed.rows()
    changed = {row["id"]: (row["otherAnswer"], row["change"]) for row in rows}
    assert changed["right"] == ("Dresden", 1)
    assert changed["empty"] == ("Ada Lovelace", 2)
    parsed = page(folder, "--data", folder / "data.json", "--compare", folder)
    assert "difference in EM +0.0\n" in capsys.readouterr().out, "no interval: nothing differs"
    assert "nan" not in "".join(e["text"] for e in parsed.all("main"))
    answers = json.loads((tmp_path / "other/eval_predictions.json").read_text())
    del answers["right"], answers["none"]
    answers["x"] = "y"
    (tmp_path / "other/eval_predictions.json").write_text(json.dumps(answers))
    for name in ("nbest_predictions", "null_odds"):
        (tmp_path / f"other/eval_{name}.json").unlink()
    report(folder, "--data", folder / "data.json", "--compare", tmp_path / "other")
    printed = capsys.readouterr().out
    assert "lacks 2 of the questions; they are not compared" in printed
    assert "has 1 questions more" in printed
    (tmp_path / "other/eval_predictions.json").write_text('{"x": "y"}')
    error = failing(capsys, folder, "--data", folder / "data.json", "--compare", tmp_path / "other")
    assert "none of its 1 questions (ids x)" in error


def test_a_page_lists_as_many_rows_as_it_may(tmp_path):
    data = report_cases.write(tmp_path / "out", copies=125)
    parsed = page(tmp_path / "out", "--data", data, "--max_rows", 1060)
    rows, contexts = parsed.rows()
    assert len(parsed.all("script", type="application/octet-stream")) == 2
    assert len({row["id"] for row in rows}) == len(rows) == 1060
    assert {row["context"] for row in rows} == contexts.keys()
    costs = [row["confidence"] * (1 - row["f1"]) for row in rows if row["outcome"]]
    assert costs == sorted(costs, reverse=True), "the most confident mistakes come first"
    (footer,) = parsed.all("footer")
    assert "lists 1,060 of 1,125 questions" in footer["text"]
    assert "750 of the 750 mistakes" in footer["text"]
    assert "a random sample of 310 right answers" in footer["text"]


def test_a_page_does_not_get_too_large(tmp_path):
    answered = read_evaluation_of(tmp_path, copies=12)
    rows = page_rows(*answered, [], None, seed=0, most_rows=None, most_bytes=10)
    assert (rows.count, rows.packed) == (50, [])
    assert rows.mistakes == 50


def read_evaluation_of(tmp_path, copies):
    data = report_cases.write(tmp_path / "out", copies=copies)
    answered = read_evaluation(tmp_path / "out")
    return make_questions(answered, load_data(answered, data), None), answered


def test_other_prefixes_and_data_without_gold_answers(folder, tmp_path, capsys):
    unlabelled = [{k: v for k, v in r.items() if k != "answers"} for r in report_cases.rows()]
    (tmp_path / "test.json").write_text(json.dumps(unlabelled))
    report_cases.write(folder, prefix="predict_")
    name = "predict_report.html"
    parsed = page(folder, "--prefix", "predict", "--data", tmp_path / "test.json", name=name)
    assert "no gold answers, so there are no scores" in capsys.readouterr().out
    assert [e["text"] for e in parsed.all("h2")] == ["Scores", "Questions"]
    assert {row["outcome"] for row in parsed.rows()[0]} == {5, 6}
    error = failing(
        *(capsys, folder, "--prefix", "predict", "--data", tmp_path / "test.json"),
        *("--compare", folder),
    )
    assert "--compare needs gold answers" in error
    report_cases.write(tmp_path / "plain", prefix="")
    report(tmp_path / "plain", "--data", tmp_path / "plain/data.json")
    assert (tmp_path / "plain/report.html").is_file()


def test_without_n_best_lists_there_are_no_confidences(folder, capsys):
    (folder / "eval_nbest_predictions.json").unlink()
    parsed = page(folder, "--data", folder / "data.json")
    assert "no n-best file" in capsys.readouterr().out
    assert [e["text"] for e in parsed.all("h2")] == ["Scores", "Where it fails", "Questions"]


def test_learning_curves_are_on_the_page(folder, capsys):
    history = [{"step": 5, "loss": 2.0}, {"step": 10, "loss": 1.0}, {"step": 10, "eval_f1": 30.0}]
    state = folder / "trainer_state.json"
    state.write_text(json.dumps({"log_history": history}))
    parsed = page(folder, "--data", folder / "data.json")
    assert "Training" in [e["text"] for e in parsed.all("h2")]
    (image,) = parsed.all("img")
    assert base64.b64decode(image["src"].split(",")[1]).startswith(b"<svg")
    state.write_text("{}")
    assert "has no log of a training" in failing(capsys, folder, "--data", folder / "data.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("eval_predictions.json", "{", "eval_predictions.json is not JSON"),
        ("eval_predictions.json", "{}", "has no questions"),
        ("eval_predictions.json", '{"right": 1}', "are not a string"),
        ("eval_nbest_predictions.json", '{"right": []}', "has nothing for 8 of the 9 questions"),
        ("eval_nbest_predictions.json", '{"right": [{"text": 1}]}', "has no text and probability"),
        ("eval_null_odds.json", '{"right": 1}', "has nothing for 8 of the 9 questions"),
        ("eval_report.json", "[]", 'has no "format"'),
        ("eval_spans.json", "[]", "eval_spans.json is not JSON"),
    ],
)
def test_a_damaged_file_is_named(folder, capsys, name, content, message):
    (folder / name).write_text(content)
    assert message in failing(capsys, folder, "--data", folder / "data.json")


def test_what_is_there_is_said_where_answers_are_missing(folder, tmp_path, capsys):
    assert "has no eval_report.json, which says where the data is" in failing(capsys, folder)
    error = failing(capsys, folder, "--prefix", "predict")
    assert "has no predict_predictions.json; it has other answers: give --prefix eval" in error
    assert "is there no such folder" not in error
    assert "there is no such folder; evaluate a model first" in failing(capsys, tmp_path / "x")
    assert "it is a file" in failing(capsys, folder / "data.json")
    error = failing(capsys, tmp_path)
    assert f"but its folders out have answers: qa-flax report {tmp_path / 'out'}" in error
    (tmp_path / "empty").mkdir()
    assert "it has no files; evaluate a model first" in failing(capsys, tmp_path / "empty")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_rows=0"], "--max_rows is 0; it must be a whole number of at least 1"),
        (["--seed=-1"], "--seed is -1"),
        (["--output=eval_predictions.json"], "give a name that ends in .html"),
        (["--language=xx"], "language 'xx' is not supported"),
        (["--outputs=x"], "did you mean --output"),
    ],
)
def test_a_wrong_argument_is_refused(folder, capsys, arguments, message):
    assert message in failing(capsys, folder, "--data", folder / "data.json", *arguments)


def test_the_page_can_be_written_elsewhere(folder, tmp_path, capsys):
    target = tmp_path / "new/page.html"
    report(folder, "--data", folder / "data.json", "--output", target)
    assert target.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
    wrong = target / "page.html"
    assert "page.html" in failing(capsys, folder, "--output", wrong)


def test_the_same_command_writes_the_same_page(folder, tmp_path):
    for name in ("a", "b"):
        report(folder, "--data", folder / "data.json", "--output", tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
