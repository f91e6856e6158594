"""The manifest of a saved model: damaged weights are refused, and edited files are warned of."""

import json
import os
import shutil
from pathlib import Path

import fake_gs
import numpy as np
import pytest
import tiny
from loud import loud_model
from safetensors.numpy import load_file, save_file

from qa_flax import (
    AutoModelForQuestionAnswering,
    LoraConfig,
    QuestionAnswerer,
    get_peft_model,
    storage,
)
from qa_flax.models.manifest import (
    MODEL_MANIFEST,
    DamagedError,
    Entry,
    ManifestError,
    add_files,
    check_model,
    entry_of,
    manifest_text,
    read_manifest,
)
from qa_flax.models.save import save_tokenizer, write_manifest

load = AutoModelForQuestionAnswering.from_pretrained
WEIGHTS = "model.safetensors"
SUM = "0" * 64
GOOD = {"size": 1, "sha256": SUM}


def save(model, location, **settings):
    """As a trainer does."""
    with storage.output_folder(location) as folder:
        model.save_pretrained(folder, **settings)
        write_manifest(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(tiny.model(), folder)
    save_tokenizer(tiny.tokenizer(), folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_saved_model_has_a_manifest_of_all_its_files(saved, caplog):
    entries = read_manifest(saved / MODEL_MANIFEST)
    assert entries == {
        file.name: entry_of(file) for file in saved.iterdir() if file.name != MODEL_MANIFEST
    }
    assert entries.keys() >= {WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"}
    load(saved)
    assert not caplog.text


def test_every_flipped_bit_of_the_weights_is_noticed(copy):
    size = (copy / WEIGHTS).stat().st_size
    for bit in np.random.default_rng(0).integers(8 * size, size=40):
        flip(copy / WEIGHTS, bit)
        with pytest.raises(DamagedError, match=r"model.safetensors has changed since it was saved"):
            check_model(copy, {WEIGHTS})
        flip(copy / WEIGHTS, bit)
    check_model(copy, {WEIGHTS})


LOADERS = {
    "from_pretrained": load,
    "QuestionAnswerer": QuestionAnswerer,
    "folds": lambda folder: load_folds(Path(folder)),
}


def load_folds(folder):
    """Load the average of one model, as of a cross-validation with one fold."""
    (folder.parent / "folds.json").write_text('{"folds": [{"fold": 1}]}')
    shutil.copytree(folder, folder.parent / "fold-1", dirs_exist_ok=True)
    load(folder.parent)


@pytest.mark.parametrize("how", LOADERS)
def test_damaged_weights_are_refused_in_one_line_with_the_next_step(how, copy):
    flip(copy / WEIGHTS, 8 * (copy / WEIGHTS).stat().st_size - 1)
    with pytest.raises(DamagedError) as refused:
        LOADERS[how](str(copy))
    message = str(refused.value)
    assert "\n" not in message
    assert f"/{WEIGHTS} has changed since it was saved" in message
    assert f"If you changed the weights yourself, delete {MODEL_MANIFEST}" in message
    for file in (copy.parent).glob(f"*/{MODEL_MANIFEST}"):
        file.unlink()
    LOADERS[how](str(copy))


def test_weights_that_another_tool_has_saved_there_are_refused(copy):
    save_file(load_file(copy / WEIGHTS), copy / WEIGHTS, {"format": "pt", "by": "another tool"})
    with pytest.raises(DamagedError, match=r"model.safetensors has \d+ bytes, expected \d+"):
        load(copy)
    (copy / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DamagedError, match=r"model.safetensors is a pointer of Git LFS; run"):
        check_model(copy, {WEIGHTS})
    tiny.model().save_pretrained(copy)  # it removes the manifest, and writes none
    load(copy)
    assert not (copy / MODEL_MANIFEST).exists()


def test_shards_and_their_index_are_checked(tmp_path):
    save(loud_model(0), tmp_path, max_shard_size=12000)
    load(tmp_path)
    names = read_manifest(tmp_path / MODEL_MANIFEST).keys() - {"config.json"}
    assert len(names) > 2
    for name in sorted(names):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises((OSError, ValueError), match=name):
            load(tmp_path)
        (tmp_path / name).write_bytes(content)
    shutil.copy(tmp_path / sorted(names)[0], tmp_path / WEIGHTS)
    with pytest.raises(DamagedError, match=r"model.safetensors was not saved with the model"):
        load(tmp_path)


def test_adapters_are_checked(tmp_path):
    base, config = loud_model(0), LoraConfig(r=2, target_modules=["query"])
    save(get_peft_model(base, config), tmp_path)
    base.with_adapter(tmp_path)
    flip(tmp_path / "adapter_model.safetensors", -9)
    with pytest.raises(DamagedError, match=r"adapter_model.safetensors has changed since"):
        base.with_adapter(tmp_path)


def test_an_edited_config_or_tokenizer_is_warned_of(copy, caplog):
    for name in ("config.json", "tokenizer.json"):
        values = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(values))
    (copy / "tokenizer_config.json").unlink()  # the loader knows whether it needs it
    load(copy)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"{copy}: config.json, tokenizer.json changed since the model was saved" in warning
    assert f"delete {MODEL_MANIFEST}, or save the model again" in warning


def test_a_tokenizer_beside_a_model_without_manifest_adds_none(copy):
    (copy / MODEL_MANIFEST).unlink()
    save_tokenizer(tiny.tokenizer(), copy)
    assert not (copy / MODEL_MANIFEST).exists()
    (copy / MODEL_MANIFEST).write_text("[]")
    add_files(copy, ["tokenizer.json"])
    assert (copy / MODEL_MANIFEST).read_text() == "[]"


def test_a_model_in_a_bucket_is_checked(tmp_path_factory):
    root = fake_gs.register(str(tmp_path_factory.mktemp("buckets"))) / "checked"
    for seed in (0, 1):
        save(loud_model(seed), "gs://checked/model")
    load("gs://checked/model")
    flip(root / "model" / WEIGHTS, 8 * 5000)
    with pytest.raises(DamagedError, match="has changed since it was saved"):
        load("gs://checked/model")


# ---- damaged manifests ---------------------------------------------------------------------------

NAMES = ["/etc/passwd", "../config.json", "a/../../b", "a//b", ".", "", "a\0b", "a\nb", "\ud800"]
NAMES += ["x" * 256, "é" * 128, "a/" * 16 + "a"]
DAMAGED = {
    "empty": "",
    "text": "manifest",
    "cut": '{"files": {"a": {"size": 1',
    "list": "[]",
    "number": "3",
    "no files": "{}",
    "files are a list": '{"files": ["a"]}',
    "files are empty": '{"files": {}}',
    "nested": "[" * 100_000,
    "nested objects": '{"files":' * 100_000,
    "large number": '{"files": {"a": {"size": ' + "9" * 5000 + "}}}",
    "no UTF-8": b'{"files": {"\xff": 1}}',
}
ENTRIES = [None, [], 1, {}, {"size": 1}, {"sha256": SUM}, [1, SUM], "x", {"a": GOOD}]
ENTRIES += [GOOD | {"size": size} for size in ("1", 1.0, True, -1, None, [1])]
ENTRIES += [GOOD | {"sha256": sum_} for sum_ in (1, None, "", SUM[1:], "G" * 64, [SUM], SUM + "\n")]


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_manifest_is_reported_in_one_line(damage, tmp_path):
    content = DAMAGED[damage]
    file = tmp_path / MODEL_MANIFEST
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ManifestError) as refused:
        read_manifest(file)
    assert "\n" not in str(refused.value)
    with pytest.raises(DamagedError, match=r"qa_flax_manifest.json is damaged \(it .*delete this"):
        check_model(tmp_path, {WEIGHTS})


def test_entries_of_wrong_types_are_damage(tmp_path):
    for entry in ENTRIES:
        (tmp_path / "m").write_text(json.dumps({"files": {"good": GOOD, "bad": entry}}))
        with pytest.raises(ManifestError, match=r"^the (size|sha256) of 'bad' is "):
            read_manifest(tmp_path / "m")


def test_names_that_lead_out_of_the_folder_are_damage(tmp_path):
    for name in NAMES:
        (tmp_path / "m").write_text(json.dumps({"files": {name: GOOD}}))
        with pytest.raises(ManifestError, match=r"^a name in it \w") as refused:
            read_manifest(tmp_path / "m")
        assert len(str(refused.value)) < 150
        assert str(refused.value).isprintable()


def test_what_is_no_file_is_not_read(tmp_path):
    for make in (os.mkdir, os.mkfifo):  # opening a pipe would wait for ever
        make(tmp_path / "m")
        with pytest.raises(ManifestError, match="it is no file"):
            read_manifest(tmp_path / "m")
        shutil.rmtree(tmp_path / "m") if make is os.mkdir else (tmp_path / "m").unlink()
    with (tmp_path / "m").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ManifestError, match="it has more than 16777216 bytes"):
        read_manifest(tmp_path / "m")
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "none")


def test_files_that_a_link_leads_to_outside_are_not_opened(copy, tmp_path, caplog):
    entries = read_manifest(copy / MODEL_MANIFEST) | {
        "secret": Entry(1, SUM),
        "gone": Entry(1, SUM),
    }
    (tmp_path / "secret").write_text("secret")
    (copy / "secret").symlink_to(tmp_path / "secret")
    (copy / "gone").symlink_to("gone")
    (copy / MODEL_MANIFEST).write_text(manifest_text(entries))
    load(copy)
    assert not caplog.text
