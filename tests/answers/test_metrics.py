"""`squad_metric` returns the official scorers' numbers to the last digit."""

import random

import oracle
import pytest
from conftest import shared_path

from qa_flax.answers.metrics import squad_metric


def prediction(text, id_="q", **columns):
    return {"id": id_, "prediction_text": text, **columns}


def reference(*golds, id_="q"):
    return {"id": id_, "answers": {"text": list(golds), "answer_start": [0] * len(golds)}}


# ------------------------------------------------------ the official values, calculated by hand


@pytest.mark.parametrize(
    ("text", "golds", "exact", "f1"),
    [
        ("The Broncos!", ["Denver", "broncos"], 100.0, 100.0),
        ("the", ["a"], 100.0, 0.0),  # both are empty after normalisation: equal, but no common word
        ("", [""], 100.0, 0.0),
        ("10\u201312", ["10-12"], 0.0, 0.0),  # only the ASCII dash is punctuation
        ("£5", ["5"], 0.0, 0.0),
        # An article is also recognised next to a punctuation mark, not only between spaces.
        ("10\u2013the 12", ["10\u2013 12"], 100.0, 100.0),
        ("another theme", ["theme another"], 0.0, 100.0),
        ("x x x", ["x y"], 0.0, 40.0),  # one common word: precision 1/3, recall 1/2
        ("x x", ["x x y"], 0.0, 80.0),
        ("Saint\tMary\u00a0", ["saint mary"], 100.0, 100.0),
        ("ÉCOLE", ["école"], 100.0, 100.0),
        ("東京", ["東京都"], 0.0, 0.0),
    ],
)
def test_version_1_edge_cases(text, golds, exact, f1):
    scores = squad_metric([prediction(text)], [reference(*golds)])
    assert list(scores) == ["exact_match", "f1"]
    assert scores == pytest.approx({"exact_match": exact, "f1": f1}, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "golds", "exact", "f1"),
    [
        ("", [], 100.0, 100.0),
        ("the", [], 100.0, 100.0),
        ("word", [], 0.0, 0.0),
        ("", ["word"], 0.0, 0.0),
        ("the", ["a"], 100.0, 100.0),  # a gold answer that normalises to "" is ignored
        ("", ["the", "word"], 0.0, 0.0),
        ("x y", ["x"], 0.0, 200 / 3),
    ],
)
def test_version_2_edge_cases(text, golds, exact, f1):
    scores = squad_metric([prediction(text, no_answer_probability=0.0)], [reference(*golds)], True)
    assert scores["exact"] == exact
    assert scores["f1"] == pytest.approx(f1, rel=1e-15)
    assert ("NoAns_exact" in scores) == (not golds) == ("HasAns_exact" not in scores)


FOUR = [reference("x", id_="1"), reference("y", id_="2"), reference(id_="3"), reference(id_="4")]


def test_version_2_keys_and_threshold():
    predictions = [
        prediction("x", "1", no_answer_probability=0.1),
        prediction("y z", "2", no_answer_probability=0.6),
        prediction("w", "3", no_answer_probability=0.7),
        prediction("", "4", no_answer_probability=0.2),
    ]
    scores = squad_metric(predictions, FOUR, True, no_answer_threshold=0.6)
    third = 200 / 3
    assert list(scores.items()) == [
        ("exact", 75.0),
        ("f1", pytest.approx((300 + third) / 4)),
        ("total", 4),
        ("HasAns_exact", 50.0),
        ("HasAns_f1", pytest.approx((100 + third) / 2)),
        ("HasAns_total", 2),
        ("NoAns_exact", 100.0),
        ("NoAns_f1", 100.0),
        ("NoAns_total", 2),
        # Starts at 2, all answers being ""; "1" adds 1; "4" is ""; "2" adds an F1 of 2/3; "3"
        # subtracts 1.
        ("best_exact", 75.0),
        ("best_exact_thresh", 0.1),
        ("best_f1", pytest.approx((300 + third) / 4)),
        ("best_f1_thresh", 0.6),
    ]


def test_with_equal_probabilities_the_best_scores_depend_on_the_order():
    def best(order):
        texts = {"1": "x", "2": "y", "3": "w", "4": "w"}
        rows = [prediction(texts[id_], id_, no_answer_probability=0.0) for id_ in order]
        scores = squad_metric(rows, FOUR, True)
        assert (scores["exact"], scores["best_exact_thresh"]) == (50.0, 0.0)
        return scores["best_exact"]

    assert [best(order) for order in ("1234", "1324", "3412")] == [100.0, 75.0, 50.0]


def test_the_best_scores_use_the_raw_prediction():
    rows = [prediction("the", no_answer_probability=-1.0)]
    scores = squad_metric(rows, [reference()], True)
    assert (scores["exact"], scores["best_exact"], scores["best_exact_thresh"]) == (100, 100, 0)
    rows = [prediction("the", "3", no_answer_probability=-2.0)]
    rows += [prediction("x", "1", no_answer_probability=-1.0)]
    scores = squad_metric(rows, [FOUR[0], FOUR[2]], True)
    assert (scores["exact"], scores["best_exact"]) == (100.0, 50.0)


# ------------------------------------------------------------------- real questions, random answers


WORDS = ["a", "an", "The", "theme", "x", "it's", "a-b", "...", "_a_", "the\x00a", "an\x7f", "\x1ca"]
WORDS += ["a\tthe", "\n", "é", "the\u2013a", "\u2019the", "İ", "the\u00a0a", "1,000", "x x", ""]


@pytest.mark.parametrize("version_2", [False, True])
def test_articles_and_repeated_words_beside_control_characters_and_other_letters(version_2):
    rng = random.Random(version_2)

    def text():
        return rng.choice(["", " ", "  ", "-"]).join(rng.choices(WORDS, k=rng.randint(0, 5)))

    official = oracle.squad_v2_plain if version_2 else oracle.squad_v1_plain
    for _ in range(1500):
        rows = [reference(*(text() for _ in range(rng.randint(1, 3))))]
        answer = rng.choice([text(), rows[0]["answers"]["text"][0]])
        assert squad_metric([prediction(answer)], rows, version_2) == official({"q": answer}, rows)


def guesses(rows, seed):
    """Random answers as a model gives: gold or altered answers, words of the context, no text."""
    rng = random.Random(seed)
    answers = {}
    for row in rows:
        words, golds = row["context"].split(), row["answers"]["text"] or ["the"]
        first = rng.randrange(len(words))
        excerpt = " ".join(words[first : first + rng.randint(1, 12)])
        gold = rng.choice(golds)
        longer = f"the {gold}, {words[first]} {gold}"
        answers[row["id"]] = rng.choice([gold, gold[1:], gold.upper(), excerpt, longer, "", "The!"])
    return answers


REAL = [("xquad", f"xquad.{code}.json") for code in ("en", "de", "es", "zh", "ar")]
REAL += [("squadshifts", f"{name}_v1.0.json") for name in ("reddit", "amazon_reviews")]
# The same English rules apply to all files. By default the tests use two other scripts and a file
# with many questions; the rest is marked slow.
DEFAULT = ("xquad.zh.json", "xquad.ar.json", "reddit_v1.0.json")
real_files = pytest.mark.parametrize(
    "file",
    [pytest.param(f, marks=[] if f[1] in DEFAULT else [pytest.mark.slow]) for f in REAL],
    ids=lambda file: file[1],
)


@real_files
def test_real_questions_version_1(file):
    rows = oracle.nested_to_rows(shared_path("data", *file))
    rows = [row for row in rows if row["answers"]["text"]][:2000]
    answers = guesses(rows, len(rows))
    predictions = [prediction(text, id_) for id_, text in answers.items()]
    scores = squad_metric(predictions, rows)
    assert scores == oracle.squad_v1_plain(answers, rows)
    assert 10 < scores["exact_match"] < scores["f1"] < 90


@real_files
@pytest.mark.parametrize("threshold", [1.0, 0.4])
def test_real_questions_version_2(file, threshold):
    rows = oracle.nested_to_rows(shared_path("data", *file))[:2000]
    for row in rows[::3]:
        row["answers"] = {"text": [], "answer_start": []}
    answers, rng = guesses(rows, len(rows)), random.Random(1)
    no_answer = {id_: round(rng.random(), 2) for id_ in answers}
    predictions = [
        prediction(text, id_, no_answer_probability=no_answer[id_]) for id_, text in answers.items()
    ]
    scores = squad_metric(predictions, rows, True, threshold)
    expected = oracle.squad_v2_plain(answers, rows, no_answer, threshold)
    assert list(scores.items()) == list(expected.items())


@pytest.mark.parametrize("language", ["en", "de", "es", "zh", "ar"])
def test_real_questions_with_mlqas_rules(language):
    rows = oracle.nested_to_rows(shared_path("data", "xquad", f"xquad.{language}.json"))
    answers = guesses(rows, len(rows))
    predictions = [prediction(text, id_) for id_, text in answers.items()]
    scores = squad_metric(predictions, rows, language=language)
    assert scores == oracle.mlqa_plain(answers, rows, language)
    if language != "en":
        assert scores != squad_metric(predictions, rows)


@pytest.mark.parametrize(
    ("language", "text", "gold", "exact", "f1"),
    [
        ("zh", "東京", "東京都", 0.0, 80.0),  # each character is a word
        ("zh", "iPhone手机。", "手机 iPhone", 0.0, 100.0),
        ("en", "10\u201312", "1012", 100.0, 100.0),  # every dash of Unicode is punctuation
        ("de", "Die Elbe", "Elbe", 100.0, 100.0),
        ("es", "los ríos", "Ríos", 100.0, 100.0),
        ("vi", "những con sông", "con sông", 100.0, 100.0),
        ("hi", "the x", "x", 0.0, 200 / 3),
        ("ar", "القاهرة", "قاهرة", 100.0, 100.0),
    ],
)
def test_languages(language, text, gold, exact, f1):
    scores = squad_metric([prediction(text)], [reference(gold)], language=language)
    assert scores == pytest.approx({"exact_match": exact, "f1": f1}, rel=1e-15)


def test_an_unsupported_language_is_rejected():
    message = "'fr' is not supported; MLQA's rules exist for ar, de, en, es, hi, vi, zh"
    with pytest.raises(ValueError, match=message):
        squad_metric([prediction("x")], [reference("x")], language="fr")


# ------------------------------------------------------------------------------- invalid input


def test_a_missing_prediction_counts_as_wrong_in_version_1(caplog):
    scores = squad_metric([prediction("x", "1")], FOUR[:2])
    assert scores == {"exact_match": 50.0, "f1": 50.0}
    assert "1 of 2 questions have no prediction and count as wrong: 2" in caplog.text


def test_repeated_and_unrelated_ids():
    rows = [prediction("wrong", "1"), prediction("x", "1"), prediction("x", "elsewhere")]
    assert squad_metric(rows, [FOUR[0]]) == {"exact_match": 100.0, "f1": 100.0}
    repeated = [FOUR[0], reference("other", id_="1")]
    assert squad_metric(rows, repeated) == {"exact_match": 50.0, "f1": 50.0}
    assert squad_metric(rows, repeated, True)["total"] == 1
    assert squad_metric(rows, repeated, True)["exact"] == 0.0


@pytest.mark.parametrize(
    ("predictions", "references", "version_2", "message"),
    [
        ([prediction("x", "1")], FOUR, False, r"2 of 4 .*\(3, 4\).*version_2_with_negative=True"),
        ([prediction("x", "1")], FOUR, True, r"3 of 4 questions have no prediction \(2, 3, 4\)"),
        ([], [], False, "references is empty"),
        ([prediction(None, "1"), prediction(3, "2")], FOUR, True, '2 x no string.*text": 1, 2'),
        (["x"], FOUR, True, "1 x not a dict .*row 0"),
        ([prediction("x", no_answer_probability=None)], FOUR, True, "is not a number: q"),
        ([prediction("x", no_answer_probability=float("nan"))], FOUR, True, "is not a number: q"),
        ([], [{"id": "q"}], False, r"references cannot be scored:\n.*under \"answers\": q"),
        ([], [{"id": "q", "answers": {"text": "x"}}], False, "is not a list of strings: q"),
        ([], [{"id": "q", "answers": {"text": None}}], False, "is not a list of strings: q"),
        ([], [{"answers": {"text": ["x"]}}] * 7, False, "7 x .*row 0, .*row 4, [.][.][.]"),
    ],
)
def test_invalid_rows_are_rejected(predictions, references, version_2, message):
    with pytest.raises(ValueError, match=message):
        squad_metric(predictions, references, version_2)
