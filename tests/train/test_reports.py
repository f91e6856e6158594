"""`report_to`: what transformers' callbacks write to TensorBoard, Weights & Biases and Trackio."""

import sqlite3
import struct

import jax
import pytest
import tiny
from flax import nnx
from tiny_trainers import arguments

from qa_flax import Trainer, prepare_train_features

pytestmark = pytest.mark.filterwarnings("ignore")  # warnings of these libraries


@pytest.fixture(scope="module")
def windows():
    lengths = {"max_seq_length": 24, "doc_stride": 3}
    return prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **lengths)


def train(tmp_path, windows, report_to, **changes):
    settings = {"logging_steps": 1, "max_steps": 3, "eval_strategy": "steps", "eval_steps": 2}
    trainer = Trainer(
        tiny.model(),
        arguments(tmp_path / "out", report_to=report_to, **(settings | changes)),
        train_dataset=windows.select(range(24)),
        eval_dataset=windows.select(range(10)),
    )
    trainer.train()
    return trainer


def history(trainer):
    """Every logged value by (step, name)."""
    logged = {}
    for logs in trainer.state.log_history:
        for name, value in logs.items():
            logged[logs["step"], name] = value
    return logged


def test_tensorboard_has_the_logged_values(tmp_path, windows, monkeypatch):
    from tensorboardX.proto.event_pb2 import Event

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    expected = history(train(tmp_path, windows, "tensorboard"))
    (path,) = (tmp_path / "logs").glob("events*")
    data, offset, scalars, texts = path.read_bytes(), 0, {}, set()
    while offset < len(data):  # a TFRecord: length, its checksum, content, its checksum
        (size,) = struct.unpack_from("<Q", data, offset)
        event = Event.FromString(data[offset + 12 : offset + 12 + size])
        offset += 12 + size + 4
        for value in event.summary.value:
            if value.HasField("simple_value"):
                scalars[event.step, value.tag] = value.simple_value
            else:
                texts.add(value.tag.partition("/")[0])
    for step, name, tag in (
        (1, "loss", "train/loss"),
        (3, "grad_norm", "train/grad_norm"),
        (2, "eval_loss", "eval/loss"),
        (3, "train_loss", "train/train_loss"),
    ):
        assert scalars[step, tag] == pytest.approx(expected[step, name], rel=1e-6), tag
    assert texts >= {"args", "model_config"}


@pytest.mark.slow
def test_weights_and_biases_has_the_logged_values(tmp_path, windows, monkeypatch):
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    trainer = train(tmp_path, windows, "wandb", run_name="a name")
    wandb.teardown()  # waits until its background process has written everything
    (path,) = tmp_path.rglob("*.wandb")
    logged, config, names = {}, {}, set()
    for data in leveldb_log(path.read_bytes()[7:]):
        record = Record.FromString(data)
        for item in record.history.item:
            logged.setdefault("/".join(item.nested_key) or item.key, item.value_json)
        for item in record.config.update:
            config["/".join(item.nested_key) or item.key] = item.value_json
        if record.run.display_name:
            names.add(record.run.display_name)
    expected = history(trainer)
    assert float(logged["eval/loss"]) == pytest.approx(expected[2, "eval_loss"])
    assert float(logged["train/loss"]) == pytest.approx(expected[1, "loss"])
    parameters = jax.tree.leaves(nnx.split(trainer.model)[1])
    assert int(config["model/num_parameters"]) == sum(array.size for array in parameters)
    assert names == {"a name"}


def leveldb_log(data):
    """The records of a LevelDB log without its header.

    The file has blocks of 32 KiB. A record is one or several fragments, each with a header of 7
    bytes: checksum, length and kind.
    """
    offset, record = 7, b""
    data = b"\0" * 7 + data  # in place of the header, which counts in the first block
    while offset + 7 <= len(data):
        if (remaining := 32768 - offset % 32768) < 7:
            offset += remaining
            continue
        size, kind = struct.unpack_from("<HB", data, offset + 4)
        record += data[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # FULL or LAST: the record is complete
            yield record
            record = b""


def test_trackio_has_the_logged_values(tmp_path, windows, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    import trackio

    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio")
    trainer = train(tmp_path, windows, "trackio", project="spans")
    (path,) = (tmp_path / "trackio").glob("spans*.db")
    with sqlite3.connect(path) as database:
        rows = str(database.execute("select * from metrics").fetchall())
    assert str(history(trainer)[2, "eval_loss"]) in rows
