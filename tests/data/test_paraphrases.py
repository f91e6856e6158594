"""Tables of paraphrases in every form, and the messages about wrong ones."""

import gzip
import json

import pytest
import tiny

from qa_flax.data.paraphrases import check_paraphrases, paraphrases_of, read_paraphrases
from qa_flax.data.rejected import ExampleError

EXPECTED = {"q1": ["When?", "In what year?"], "Who did it?": ["By whom, then?"]}
ROWS = [
    {"id": "q1", "paraphrases": ["When?", " In what year? "]},
    {"question": "Who  did it?", "paraphrases": ["By whom, then?", "", None]},
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", json.dumps(EXPECTED)),
        ("p.json", json.dumps(ROWS)),
        ("p.jsonl", "\n".join(map(json.dumps, ROWS))),
        (
            "p.csv",
            'Question,Paraphrase\nq1,When?\nq1,In what year?\nWho did it?,"By whom, then?"\n',
        ),
        (
            "p.csv",
            "id;paraphrase 1;paraphrase_2\nq1;When?;In what year?\nWho did it?;By whom, then?;",
        ),
        ("p.tsv", 'id\tother\nq1\t["When?", "In what year?"]\nWho did it?\tBy whom, then?\n'),
        (
            "p.csv",
            "id,question,paraphrase\nq1,not a paraphrase,When?\nq1,x,In what year?\n"
            'Who did it?,x,"By whom, then?"\n',
        ),
    ],
)
def test_tables_of_all_forms(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_paraphrases(tmp_path / name) == EXPECTED
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + content.encode()))
    assert read_paraphrases(str(tmp_path / f"{name}.gz")) == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", "{", "cannot parse JSON"),
        ("p.json", "[1]", "no table of paraphrases: it must be a CSV table"),
        ("p.json", "{}", "there are no paraphrases"),
        ("p.json", '{"q1": 3}', "q1.*3 is no text"),
        ("p.csv", "who,paraphrase\nq1,When?\n", "(?s)no column says which question.*who"),
        ("p.csv", "id,paraphrase\nq1,When?,x\n", "line 2"),
        ("p.csv", "id,paraphrase\nq1,\n", "there are no paraphrases"),
    ],
)
def test_other_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ExampleError, match=message):
        read_paraphrases(tmp_path / name)


def test_a_missing_file_and_another_type_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_paraphrases(tmp_path / "none.csv")
    with pytest.raises(ExampleError, match="paraphrases is a int"):
        read_paraphrases(3)


def test_questions_are_found_by_id_and_by_text():
    table = read_paraphrases({"q0": ["Who?", "What is short?"], "What  is short?": "And short?"})
    found = paraphrases_of(table, ["q0", "q1", "x"], ["What is short?", "When?", "What is short? "])
    assert found == [["Who?", "And short?"], [], ["And short?"]]
    check_paraphrases(table, tiny.examples())
    with pytest.raises(ExampleError, match="none of the 1 ids or questions of the table"):
        check_paraphrases(read_paraphrases({"z": "Who?"}), tiny.examples())
