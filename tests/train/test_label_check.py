"""`check_labels` in Python: rows, ranks, and what it refuses."""

import numpy as np
import pytest
import tiny
from tiny_trainers import arguments

from qa_flax import check_labels, load_examples
from qa_flax.train.label_check import ranked, scores

WINDOW = {"max_seq_length": 64, "doc_stride": 16}


@pytest.mark.slow
def test_rows_have_unanswerable_questions_and_several_labels(tmp_path):
    rows = tiny.rows()
    rows[0]["answers"] = {"text": ["Ada Lovelace", "Ada"], "answer_start": [0, 0]}
    examples, args = load_examples(rows), arguments(tmp_path, max_steps=1, save_strategy="epoch")
    checked = check_labels(examples, tiny.model, tiny.tokenizer(), args, folds=3, **WINDOW)
    again = check_labels(rows, tiny.model, tiny.tokenizer(), args, folds=3, **WINDOW)
    assert checked == again
    assert [row["rank"] for row in checked] == list(range(1, 13))
    by_id = {row["id"]: row for row in checked}
    assert by_id["q11"]["gold"] is None
    assert all(0 < row["no_answer_probability"] < 1 for row in checked)
    first = by_id["q0"]
    assert [answer["text"] for answer in first["answers"]] == ["Ada Lovelace", "Ada"]
    assert first["gold"] in first["answers"]
    assert first["suspicion"] == first["gold"]["suspicion"]
    assert first["suspicion"] == pytest.approx(-np.log(first["gold"]["probability"]))
    assert args.save_strategy == "epoch", "the caller's arguments were changed"
    assert not list(tmp_path.iterdir())


def test_what_makes_no_sense_is_refused():
    none = [row | {"answers": {"text": [], "answer_start": []}} for row in tiny.rows()]
    with pytest.raises(ValueError, match="none of the 12 questions has an answer"):
        check_labels(none, tiny.model, tiny.tokenizer())
    with pytest.raises(ValueError, match="7 folds needs questions about at least 7"):
        check_labels(tiny.rows(), tiny.model, tiny.tokenizer(), folds=7)
    with pytest.raises(ValueError, match="pass the tokenizer"):
        check_labels(tiny.rows(), tiny.model, folds=2)


def test_the_most_suspicious_come_first_and_scores_are_squads():
    def row(id_, suspicion, label, said):
        gold = {"text": label}
        return {
            "id": id_,
            "suspicion": suspicion,
            "gold": gold,
            "answers": [gold],
            "prediction": {"text": said},
        }

    rows = [row("a", 0.5, "Ada", "the Ada"), row("b", 9.0, "Elbe", "Tokyo")]
    rows += [row("c", 20.0, "Elbe", "Elbe")]
    assert [(r["rank"], r["id"]) for r in ranked(rows)] == [(1, "c"), (2, "b"), (3, "a")]
    assert scores(rows) == {"exact_match": pytest.approx(200 / 3), "f1": pytest.approx(200 / 3)}
    rows[0]["answers"], rows[0]["prediction"]["text"] = [], ""
    assert scores(rows)["exact_match"] == pytest.approx(200 / 3)
