"""Files {id: value}: n-best lists are read one by one, with the same result as all at once."""

import gzip
import json

import pytest

from qa_flax.answers.answer_maps import iterate_lists, read_answer_map

LISTS = {"a": [{"text": "x", "probability": 0.5}], 'b"]}': [], "\u2028": [{}, {"text": "{"}]}


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("ends", ["", " \r\n\t"])
def test_lists_are_those_that_json_reads(tmp_path, indent, ends):
    path = tmp_path / "lists.json"
    for value in ({}, LISTS):
        path.write_text(ends + json.dumps(value, indent=indent) + ends)
        assert dict(iterate_lists(path)) == value
    (tmp_path / "lists.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert dict(iterate_lists(tmp_path / "lists.json.gz")) == LISTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("[]", "is not JSON: Expecting {"),
        ("{", "is not JSON"),
        ('{"a": [{}]', "is not JSON"),
        ('{"a": [{}],}', "is not JSON"),
        ('{"a" [{}]}', "is not JSON: Expecting :"),
        ('{"a": [{}]} {}', "Extra data"),
        ('{"a": ' + "[" * 100_000, "is not JSON"),
        ('{"a": 1}', "no list of objects"),
        ('{"a": [1]}', "no list of objects"),
        ("{1: [{}]}", "no list of objects"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        list(iterate_lists(path))
    assert "broken.json" in str(error.value)


def test_the_last_of_a_repeated_id_counts(tmp_path, caplog):
    path = tmp_path / "answers.json"
    path.write_text('{"a": "x", "a": "y"}')
    assert read_answer_map(path, str, "string") == {"a": "y"}
    assert "ids that occur several times" in caplog.text
