"""Where rows come from: files, the Hub, and the cache of the library datasets."""

import json

import datasets
import pytest

from qa_flax import load_examples, split_examples
from qa_flax.data.origin import note_origin, origin_of, source_of

ROWS = [
    {
        "id": f"q{n}",
        "question": "Who?",
        "context": f"Ada {n} did.",
        "answers": {"text": ["Ada"], "answer_start": [0]},
    }
    for n in range(6)
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"data": ROWS}))
    return path


def test_examples_of_a_file_know_it_whatever_is_selected_from_them(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = {
        "misaligned": "keep",
        "bad_rows": "skip",
        "columns": {"question": None, "context": None, "answers": None, "id": "id"},
    }
    for name in ("data.json", file, f"file://{file}"):
        examples = load_examples(name, misaligned="keep", bad_rows="skip", id_column="id")
        expected = {"file": str(file), "read": read}
        assert origin_of(examples) == expected
    assert origin_of(examples.select([2, 4])) == expected
    assert origin_of(examples.filter(lambda row: row["id"] != "q1")) == expected
    assert origin_of(split_examples(examples, 0.5, seed=0)[1]) == expected
    assert origin_of(load_examples(examples)) == expected
    examples.save_to_disk("saved")
    assert origin_of(datasets.load_from_disk("saved")) == expected
    both = datasets.concatenate_datasets([examples, load_examples(ROWS)])
    assert origin_of(both) == {}


def test_data_sets_of_the_library_know_their_files(file, tmp_path):
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("json", data_files=str(file), field="data", cache_dir=cache)
    (path,) = origin_of(loaded["train"])["arrow_files"]
    assert datasets.Dataset.from_file(path)["id"][:] == [row["id"] for row in ROWS]
    assert origin_of(load_examples(loaded["train"].select([1])))["arrow_files"] == [path]
    assert "read" in origin_of(load_examples(loaded["train"]))


def test_nothing_is_known_of_rows_in_memory():
    for source in (ROWS, datasets.Dataset.from_list(ROWS), None):
        assert origin_of(source) == {}
        assert source_of(source, None, None) == {}
    assert origin_of(load_examples(ROWS)) == {}
    unchanged = datasets.Dataset.from_list(ROWS)
    note_origin(unchanged, {})
    assert unchanged.info.download_checksums is None


def test_names_of_buckets_and_of_the_hub(tmp_path):
    assert source_of("gs://bucket/data.json", None, None) == {"file": "gs://bucket/data.json"}
    hub = {"dataset_name": "squad", "dataset_config_name": "plain", "split": "validation"}
    assert source_of("squad", "validation", "plain", {"token": "t", "revision": "r"}) == hub
    # Other arguments choose other rows, which cannot be found again.
    assert source_of("json", "train", None, {"data_files": "x.json"}) == {}
    assert source_of(tmp_path, None, None)["dataset_name"] == str(tmp_path)
