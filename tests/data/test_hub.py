"""A data set on the Hub that cannot be reached is reported at once, in one message."""

import socket
import subprocess
import sys
import time
import warnings

import datasets
import pytest
from huggingface_hub import constants

from qa_flax.data import hub
from qa_flax.data.rejected import ExampleError

SCRIPT = """
import sys
from qa_flax import load_examples
try:
    load_examples("some/where", split="train")
except ValueError as error:
    sys.exit(f"one message: {error}")
"""


@pytest.fixture
def online(monkeypatch):
    """As outside of the tests, which run offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS_TO_ANSWER", 0.3)


@pytest.mark.parametrize("kind", ["refuses", "is silent"])
def test_a_hub_that_does_not_answer_is_reported_at_once(online, monkeypatch, kind):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if kind == "is silent":
            server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        begin = time.monotonic()
        with pytest.raises(ExampleError, match=rf"some/where: could not be loaded.*{address}"):
            hub.load_hub("some/where", "train", None, {})
        assert time.monotonic() - begin < 5
    assert not constants.HF_HUB_OFFLINE, "the setting is restored"
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.slow
def test_nothing_but_the_message_is_printed():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"HF_ENDPOINT": endpoint, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("one message: some/where: could not be loaded")


def test_saved_data_sets_and_folders_of_tables_are_read(tmp_path):
    rows = {"context": ["c", "d"], "question": ["NA", "q"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    assert hub.load_hub(str(tmp_path / "saved"), None, None, {})["question"][:] == ["NA", "q"]
    (tmp_path / "tables").mkdir()
    datasets.Dataset.from_dict(rows).to_csv(tmp_path / "tables" / "train.csv")
    cache = {"cache_dir": str(tmp_path / "cache")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = hub.load_hub(str(tmp_path / "tables"), None, None, cache)
    assert loaded["question"][:] == ["NA", "q"]


def test_a_folder_that_holds_no_data_is_named(tmp_path):
    (tmp_path / "notes.md").write_text("none")
    with pytest.raises(ExampleError, match=r"is a folder that .* could not load"):
        hub.load_hub(str(tmp_path), None, None, {"cache_dir": str(tmp_path / "cache")})
