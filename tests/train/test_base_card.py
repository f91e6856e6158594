"""What a base model's folder, or its downloaded files, say about it; without a request."""

import json
from pathlib import Path

import pytest
import tiny

from qa_flax import AutoModelForQuestionAnswering
from qa_flax.train.base_card import BaseCard, languages_of_dataset, read_base, read_front_matter

CARD = "---\nlanguage:\n- de\n- no\nlicense: other\nlicense_name: mine\n---\n# Base\n"


def test_a_folder_with_a_card(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    license_ = {"license": "other", "license_name": "mine"}
    assert read_base(tmp_path) == BaseCard(None, True, ("de", "no"), license_)


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("google/electra-small", "google/electra-small"),
        ("bert-base-uncased", "bert-base-uncased"),
        ("xlm-roberta-large", "xlm-roberta-large"),
        ("out", None),
        ("/home/ada/model", None),
        ("../model", None),
        ("runs/checkpoint-500", None),
        ("my-model", None),
        ("a/b/c", None),
        (7, None),
        (None, None),
    ],
)
def test_the_hub_id_that_a_folders_config_names(tmp_path, name, hub_id):
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": name}))
    assert read_base(tmp_path).hub_id == hub_id
    (tmp_path / "config.json").unlink()
    (tmp_path / "README.md").write_text(f"---\nbase_model: {json.dumps(name)}\n---\n")
    assert read_base(tmp_path).hub_id == hub_id


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no front matter", b"---\n[\n---\n", b"---\n- a\n---\n", b"\xff\xfe---\n---"),
        *(b"---\nlicense: [mit]\nlanguage: 3\n---\n", b'---\nlicense: "a\\nb"\n---\n'),
        b"---\nlicense: !!python/object/apply:os.system [ls]\n---\n",
    ],
)
def test_a_card_that_says_nothing_or_is_damaged(tmp_path, content):
    (tmp_path / "README.md").write_bytes(content)
    assert read_base(tmp_path) == BaseCard(is_folder=True)


def test_other_sources():
    assert read_base(None) == read_base("") == BaseCard()
    assert read_base("gs://bucket/model") == BaseCard(is_folder=True)
    assert read_base("someone/never-downloaded") == BaseCard("someone/never-downloaded")
    assert read_base("no name at all!") == BaseCard()
    assert languages_of_dataset(None) == languages_of_dataset("someone/nothing") == ()
    assert read_front_matter(Path("/nothing")) == {}


def test_the_card_is_downloaded_with_the_model(hub):
    tiny.model().push_to_hub("ada/base")
    hub.repos["ada/base"].branches["main"]["README.md"] = CARD.encode()
    AutoModelForQuestionAnswering.from_pretrained("ada/base")
    count = len(hub.requests)
    license_ = {"license": "other", "license_name": "mine"}
    assert read_base("ada/base") == BaseCard("ada/base", False, ("de", "no"), license_)
    assert len(hub.requests) == count, "it made a request"
