"""What an evaluation leaves beside its answers: the metric's scores, and a complete file."""

import json

import numpy as np
import pytest

from qa_flax.answers.metrics import question_scores, squad_metric
from qa_flax.answers.record import file_source, question_records, read_record, write_record

TEXTS = ["Elbe", "the river Elbe", "Oder", "", "the", "Elbe."]
GOLDS = [["Elbe"], ["Elbe", "Oder"], ["Weser", "the Rhine"], ["Elbe"], ["a", "Elbe"], ["the Elbe"]]


@pytest.mark.parametrize("version_2", [False, True])
@pytest.mark.parametrize("language", [None, "en", "zh"])
def test_the_scores_of_questions_are_those_of_the_metric(version_2, language):
    golds = [*GOLDS[:-1], []] if version_2 else GOLDS
    scores = question_scores(TEXTS, golds, version_2_with_negative=version_2, language=language)
    for i, (text, gold) in enumerate(zip(TEXTS, golds, strict=True)):
        metric = squad_metric(
            [{"id": "0", "prediction_text": text}],
            [{"id": "0", "answers": {"text": gold}}],
            version_2,
            language=language,
        )
        expected = [metric["exact" if version_2 else "exact_match"], metric["f1"]]
        np.testing.assert_allclose([100 * part[i] for part in scores], expected)


def test_what_was_written_is_read(tmp_path):
    data = tmp_path / "data.json"
    data.write_text("[]")
    golds = dict(zip("abcdef", GOLDS, strict=True))
    records = question_records(
        dict(zip("abcdef", TEXTS, strict=True)),
        golds,
        {"a": 2},
        version_2_with_negative=False,
        language=None,
    )
    assert records["a"] == {"answers": ["Elbe"], "windows": 2, "exact": 1, "f1": 1.0}
    assert records["b"]["windows"] == 0
    records["\ud800\0</script>"] = records["a"]
    write_record(tmp_path, "eval", file_source(data), {"model": "m", "language": None}, records)
    record = read_record(tmp_path, "eval")
    assert record["questions"] == records
    assert record["source"]["file"] == str(data)
    assert record["source"]["bytes"] == 2
    assert record["metrics"]["total"] == 7
    assert record["metrics"]["exact"] == pytest.approx(100 * 4 / 7)
    assert json.loads((tmp_path / "eval_report.json").read_text()) == record
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["data.json", "eval_report.json"]


def test_data_without_gold_answers_has_no_scores(tmp_path):
    records = question_records(
        {"a": "x"}, {"a": []}, {}, version_2_with_negative=True, language=None
    )
    assert records == {"a": {"answers": [], "windows": 0}}
    write_record(tmp_path, "", {"file": "gs://b/x.json"}, {}, records)
    assert read_record(tmp_path, "")["metrics"] == {"total": 1}
    assert file_source("gs://b/x.json") == {"file": "gs://b/x.json"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", 'no "format"'),
        ('{"format": "other"}', 'no "format"'),
        ('{"format": "qa_flax evaluation 1", "source": {}}', "settings, metrics, questions"),
        (
            '{"format": "qa_flax evaluation 1", "source": {}, "settings": {}, "metrics": {}, '
            '"questions": {"q7": {"windows": 1}}}',
            "wrong value: q7",
        ),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, text, message):
    (tmp_path / "eval_report.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_record(tmp_path, "eval")
    assert "--data FILE" in str(error.value)
    assert read_record(tmp_path, "test") is None
