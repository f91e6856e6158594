"""Reports of a run, by transformers' own callbacks and the libraries they write through."""

import sqlite3
import struct

import jax
import pytest
import tiny
from flax import nnx
from tiny_trainers import arguments

from qa_flax import Trainer, prepare_train_features

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries warn of is theirs


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
    """(step, number of the log) -> value, as logged."""
    found = {}
    for logs in trainer.state.log_history:
        for name, value in logs.items():
            found[logs["step"], name] = value
    return found


def test_tensorboard(tmp_path, windows, monkeypatch):
    from tensorboardX.proto.event_pb2 import Event

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    wanted = history(train(tmp_path, windows, "tensorboard"))
    (path,) = (tmp_path / "logs").glob("events*")
    data, at, scalars, texts = path.read_bytes(), 0, {}, set()
    while at < len(data):  # a TFRecord: length, its checksum, content, its checksum
        (size,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + size])
        at += 12 + size + 4
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
        assert scalars[step, tag] == pytest.approx(wanted[step, name], rel=1e-6), tag
    assert texts >= {"args", "model_config"}


def test_weights_and_biases_offline(tmp_path, windows, monkeypatch):
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    trainer = train(tmp_path, windows, "wandb", run_name="a name")
    wandb.teardown()  # the process that writes ends, so that all is written
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
    wanted = history(trainer)
    assert float(logged["eval/loss"]) == pytest.approx(wanted[2, "eval_loss"])
    assert float(logged["train/loss"]) == pytest.approx(wanted[1, "loss"])
    parameters = jax.tree.leaves(nnx.split(trainer.model)[1])
    assert int(config["model/num_parameters"]) == sum(array.size for array in parameters)
    assert names == {"a name"}


def leveldb_log(data):
    """The records of a log: in blocks of 32 KiB, each part with checksum, length and kind."""
    at, whole = 7, b""  # the file's own head has taken the place of so many bytes
    data = b"\0" * 7 + data
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_trackio(tmp_path, windows, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    import trackio

    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "trackio")
    trainer = train(tmp_path, windows, "trackio", project="spans")
    (path,) = (tmp_path / "trackio").glob("spans*.db")
    with sqlite3.connect(path) as base:
        rows = str(base.execute("select * from metrics").fetchall())
    assert str(history(trainer)[2, "eval_loss"]) in rows
