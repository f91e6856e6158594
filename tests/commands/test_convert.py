"""Pickles are converted by `qa-flax convert` and rejected elsewhere; their code never runs."""

import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from loud import loud_batch, loud_model, relative_error
from loud_adapters import adapted

from qa_flax import cli
from qa_flax.commands.convert import convert
from qa_flax.models.model import AutoModelForQuestionAnswering

torch = pytest.importorskip("torch", reason="needs the parity extra")
from safetensors.torch import load_file  # noqa: E402

load = AutoModelForQuestionAnswering.from_pretrained


@pytest.fixture
def pickled(tmp_path):
    """A checkpoint whose only weights are in pytorch_model.bin."""
    loud_model(0).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    return tmp_path


def test_the_advice_for_a_pickle_works(pickled, capsys):
    with pytest.raises(OSError, match=r"qa-flax convert DIRECTORY") as error:
        load(pickled)
    assert "because a pickle file can run any code" in str(error.value)
    cli.main(["convert", str(pickled)])
    assert capsys.readouterr().out == f"{pickled / 'model.safetensors'} written\n"
    assert (
        relative_error(load(pickled)(**loud_batch()).start, loud_model(0)(**loud_batch()).start)
        == 0
    )


def test_shards_half_precision_and_shared_tensors(pickled):
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    (pickled / "pytorch_model.bin").unlink()
    names = sorted(weights)
    shards = {"pytorch_model-1.bin": names[:20], "pytorch_model-2.bin": names[20:]}
    for file, shard in shards.items():
        torch.save({n: weights[n].bfloat16() for n in shard}, pickled / file)
    shared = weights["bert.embeddings.word_embeddings.weight"]
    torch.save({"cls.one": shared, "cls.two": shared.T}, pickled / "pytorch_model-3.bin")
    weight_map = {n: f for f, shard in shards.items() for n in shard}
    weight_map |= dict.fromkeys(("cls.one", "cls.two"), "pytorch_model-3.bin")
    index = pickled / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    written = load_file(convert(pickled))
    assert written.keys() == weights.keys() | {"cls.one", "cls.two"}
    assert {t.dtype for n, t in written.items() if n in weights} == {torch.bfloat16}
    assert torch.equal(written["cls.two"], shared.T)
    assert np.isfinite(np.asarray(load(pickled)(**loud_batch()).start)).all()


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Harmful(), 2), "is not a pickle of plain tensors"),
        (b"not a pickle", "is not a pickle of plain tensors"),
    ],
    ids=["code", "text"],
)
def test_an_invalid_pickle_is_rejected(pickled, content, message, monkeypatch, capsys):
    monkeypatch.chdir(pickled)
    (pickled / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["convert", str(pickled)])
    assert message in capsys.readouterr().err
    assert not (pickled / "made_by_a_pickle").exists()
    assert not (pickled / "model.safetensors").exists()


def test_other_contents_are_rejected(pickled):
    torch.save([torch.ones(1)], pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="contains a list, not tensors by name"):
        convert(pickled)
    torch.save({"a": 1, "b": torch.ones(1)}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"a \(1 in all\) are not tensors"):
        convert(pickled)


def test_missing_or_existing_files_are_reported(pickled, tmp_path):
    convert(pickled)
    with pytest.raises(FileExistsError, match="already exists"):
        convert(pickled)
    shutil.rmtree(pickled)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        convert(pickled)


WRAPPERS = {
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {"a": [1]}},
    "model_state_dict": lambda weights: {"model_state_dict": weights, "loss": 0.5},
    "model": lambda weights: {"model": {f"module.{n}": t for n, t in weights.items()}},
}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c != "model")) for c in WRAPPERS]
)
def test_a_state_dict_inside_a_checkpoint_is_converted(pickled, case):
    file = pickled / "pytorch_model.bin"
    torch.save(WRAPPERS[case](torch.load(file, weights_only=True)), file)
    convert(pickled)
    logits = load(pickled)(**loud_batch()).start
    assert relative_error(logits, loud_model(0)(**loud_batch()).start) == 0


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "contains no tensors"),
        ({"other": {"a": 1}}, "other .* are not tensors; .* one inside the file as state_dict, mo"),
        ([1], "contains a list, not tensors by name"),
    ],
)
def test_pickles_without_a_state_dict_are_refused(pickled, contents, message):
    torch.save(contents, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=message):
        convert(pickled)


def test_what_took_the_place_of_a_pickle_is_named(pickled):
    file = pickled / "pytorch_model.bin"
    loud_model(0).save_pretrained(pickled / "other")
    (pickled / "other" / "model.safetensors").rename(file)
    with pytest.raises(ValueError, match=r"it is a safetensors file; name it model\.safe"):
        convert(pickled)
    file.write_text("<html>")
    with pytest.raises(ValueError, match="it is a web page"):
        convert(pickled)


def test_the_adapters_of_old_versions_of_peft_are_converted(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    loud_model(3).save_pretrained(base)
    adapted(base=load(base)).save_pretrained(adapter)
    expected = load(adapter)(**loud_batch()).start
    weights = load_file(adapter / "adapter_model.safetensors")
    torch.save(weights, adapter / "adapter_model.bin")
    with pytest.raises(OSError, match=r"adapter_model.safetensors already exists"):
        convert(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match=r"adapter_model.bin is not read.*qa-flax convert DIRECTORY"):
        load(adapter)
    assert convert(adapter) == adapter / "adapter_model.safetensors"
    assert relative_error(load(adapter)(**loud_batch()).start, expected) == 0


ODD_TENSORS = {
    "a name that is a number": lambda t: {1: t},
    "a name that is a tuple": lambda t: {("a", 1): t, "b": t},
    "a name that is not Unicode": lambda t: {"\ud800": t},
    "the name of the header": lambda t: {"__metadata__": t},
    "a sparse tensor": lambda t: {"a": t.to_sparse()},
    "a tensor without values": lambda t: {"a": t.to("meta")},
    "complex numbers": lambda t: {"a": t.to(dtype=(1j * t).dtype)},
    "one value as a million million": lambda t: {"a": t[0, 0].expand(10**6, 10**6)},
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_odd_tensors_are_refused_in_a_line(kind, tmp_path, capsys):

    torch.save(ODD_TENSORS[kind](torch.ones(2, 2)), tmp_path / "pytorch_model.bin")
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", str(tmp_path)])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("qa-flax: error: ")
    assert "pytorch_model.bin: " in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_a_compressed_archive_is_refused_before_it_is_read(tmp_path):

    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**6))
    with pytest.raises(ValueError, match="is compressed"):
        convert(tmp_path)


def test_parameters_of_flax_that_are_none_are_refused(tmp_path):
    loud_model(0).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for tree, problem in (({"params": [1]}, "contains a list"), ({"a": 1j}, "not an array")):
        (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
        with pytest.raises(ValueError, match=problem):
            convert(tmp_path)
