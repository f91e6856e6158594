"""Saved checkpoints: shards, what an earlier save left, interrupted saves, and keywords."""

import contextlib
import itertools
import json
import os
from pathlib import Path

import fake_gs
import numpy as np
import pytest
from loud import loud_model, parameters
from safetensors import safe_open
from safetensors.numpy import load_file

from qa_flax import AutoModelForQuestionAnswering, LoraConfig, get_peft_model, storage
from qa_flax.models import save
from qa_flax.models.files import stored_tensors
from qa_flax.models.model import _named_parameters
from qa_flax.models.weights import torch_layout

load = AutoModelForQuestionAnswering.from_pretrained
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_SIZE = 4000  # bytes; the model has 25 KB, and its largest tensor 2,560 bytes


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_model(folder, seed: int) -> bool:
    left, right = parameters(load(folder)), parameters(loud_model(seed))
    return all((np.asarray(left[path]) == np.asarray(right[path])).all() for path in right)


# ---- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SHARD_SIZE, "4KB", 1], ids=str)
def test_a_large_model_is_written_in_shards(size, tmp_path):
    loud_model(0).save_pretrained(tmp_path, max_shard_size=size)
    index = json.loads((tmp_path / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    count = len(shards)
    assert count > 5
    assert shards == [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    assert names_in(tmp_path) == sorted([CONFIG, INDEX, *shards])
    total = 0
    for shard in shards:
        tensors = load_file(tmp_path / shard)
        assert {index["weight_map"][name] for name in tensors} == {shard}
        bytes_ = sum(array.nbytes for array in tensors.values())
        assert bytes_ <= SHARD_SIZE or len(tensors) == 1
        total += bytes_
        with safe_open(tmp_path / shard, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
        assert (tmp_path / shard).stat().st_mode == (tmp_path / CONFIG).stat().st_mode
    assert index["metadata"] == {"total_parameters": total // 4, "total_size": total}
    assert is_model(tmp_path, 0)


def test_the_shards_are_those_of_transformers(tmp_path):
    pytest.importorskip("torch", reason="needs the parity extra")
    import transformers

    loud_model(0).save_pretrained(tmp_path / "ours", max_shard_size=SHARD_SIZE)
    reference, report = transformers.AutoModelForQuestionAnswering.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    reference.save_pretrained(tmp_path / "theirs", max_shard_size=SHARD_SIZE)
    ours, theirs = (json.loads((tmp_path / n / INDEX).read_text()) for n in ("ours", "theirs"))
    assert ours["metadata"] == theirs["metadata"]
    assert ours["weight_map"].keys() == theirs["weight_map"].keys()
    assert ours.keys() == theirs.keys()
    assert is_model(tmp_path / "theirs", 0)


@pytest.mark.parametrize("size", ["many", "5 apples", 0, -1, True, "5GiB"])
def test_a_size_that_is_none_is_refused_before_anything_is_written(size, tmp_path):
    with pytest.raises(ValueError, match=r"max_shard_size=.* is not a size; give bytes, or text"):
        loud_model(0).save_pretrained(tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


# ---- an earlier save in the same folder ----------------------------------------------------------

FORMS = {"single": "50GB", "few": 12000, "many": 2000}


@pytest.mark.parametrize("before", FORMS)
@pytest.mark.parametrize("after", FORMS)
def test_no_weights_of_an_earlier_save_are_left(before, after, tmp_path):
    (tmp_path / "fresh").mkdir()
    for folder, seed, form in (
        (tmp_path / "again", 1, before),
        (tmp_path / "again", 0, after),
        (tmp_path / "fresh", 0, after),
    ):
        loud_model(seed).save_pretrained(folder, max_shard_size=FORMS[form])
    assert names_in(tmp_path / "again") == names_in(tmp_path / "fresh")
    for name in names_in(tmp_path / "fresh"):
        again, fresh = (tmp_path / folder / name for folder in ("again", "fresh"))
        assert again.read_bytes() == fresh.read_bytes()


def test_other_files_stay(tmp_path):
    kept = ["pytorch_model.bin", "model-00001-of-00002.txt", "my-model-00001-of-00002.safetensors"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    loud_model(0).save_pretrained(tmp_path, max_shard_size=12000)
    loud_model(0).save_pretrained(tmp_path)
    assert names_in(tmp_path) == sorted([CONFIG, SINGLE, *kept])


class CrashError(Exception):
    """Stands for a process that ends."""


class CrashingFiles:
    """Lets the first `steps` changes of files pass and fails at all later ones."""

    def __init__(self, steps: int):
        self.left = steps

    def __call__(self, action):
        def change(*arguments, **options):
            is_cleanup = action is UNLINK and str(arguments[0]).endswith(".tmp")
            if not is_cleanup:
                if not self.left:
                    raise CrashError
                self.left -= 1
            return action(*arguments, **options)

        return change


REPLACE, UNLINK, SAVE_FILE = os.replace, Path.unlink, save.save_file


def weights_of(folder) -> str:
    """Whose weights a folder loads: those of seed 0 or 1, or of none because it is refused."""
    try:
        stored = {tensor.name: tensor.read() for tensor in stored_tensors(folder)}
    except FileNotFoundError:
        return "refused"
    for seed in (0, 1):
        named = _named_parameters(loud_model(seed))
        assert stored.keys() == named.keys()
        if all((stored[n] == torch_layout(p, x[...])).all() for n, (p, x) in named.items()):
            return f"seed {seed}"
    return "a mixture"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] if "many" in pair else [])
        for pair in itertools.product(FORMS, FORMS)
    ],
)
def test_a_save_interrupted_anywhere_never_leaves_a_mixture(before, after, tmp_path, monkeypatch):
    outcomes = []
    while not outcomes or outcomes[-1] != "finished":
        folder, crashing = tmp_path / str(len(outcomes)), CrashingFiles(len(outcomes))
        loud_model(1).save_pretrained(folder, max_shard_size=FORMS[before])
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crashing(REPLACE))
            patch.setattr(Path, "unlink", crashing(UNLINK))
            patch.setattr(save, "save_file", crashing(SAVE_FILE))
            with contextlib.suppress(CrashError):
                loud_model(0).save_pretrained(folder, max_shard_size=FORMS[after])
                outcomes.append("finished")
                continue
        outcomes.append(weights_of(folder))
    # First the old weights, then perhaps none, then the new ones.
    order = ["seed 1", "refused", "seed 0", "finished"]
    assert set(outcomes) <= set(order)
    assert outcomes == sorted(outcomes, key=order.index)
    assert outcomes[0] == "seed 1"
    assert weights_of(folder) == "seed 0"


def test_shards_in_a_bucket_replace_a_single_file_and_back(tmp_path_factory):
    root = fake_gs.register(str(tmp_path_factory.mktemp("buckets")))
    for seed, form in ((0, "single"), (1, "few"), (0, "many"), (1, "single")):
        loud_model(seed).save_pretrained("gs://saved/model", max_shard_size=FORMS[form])
        names = names_in(root / "saved" / "model")
        assert (SINGLE in names) == (form == "single")
        assert (INDEX in names) == (form != "single")
        assert len(names) == len(set(storage.path("gs://saved/model").iterdir()))
        assert is_model("gs://saved/model", seed)


# ---- keywords ------------------------------------------------------------------------------------


def test_only_the_main_process_writes(tmp_path):
    loud_model(0).save_pretrained(tmp_path / "new", is_main_process=False)
    assert not (tmp_path / "new").exists()


def test_a_given_state_dict_is_written(tmp_path):
    loud_model(1).save_pretrained(tmp_path / "one")
    state_dict = load_file(tmp_path / "one" / SINGLE)
    loud_model(0).save_pretrained(tmp_path / "two", state_dict=state_dict)
    assert is_model(tmp_path / "two", 1)
    for change, message in (
        (state_dict | {"more": np.ones(2)}, r"1 difference\(s\), first: unexpected: more"),
        ({}, r"difference\(s\), first: missing: bert.embeddings"),
        (state_dict | {"qa_outputs.bias": np.ones(3)}, r"qa_outputs.bias is \[3\], expected \[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            loud_model(0).save_pretrained(tmp_path / "three", state_dict=change)
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_the_model_s_own_state_dict_is_written(family, tmp_path):
    """BART's has several names for its table of token embeddings."""
    model = loud_model(0, family=family)
    state_dict = model.state_dict()
    model.save_pretrained(tmp_path / "one", state_dict=state_dict)
    model.save_pretrained(tmp_path / "two")
    one, two = ((tmp_path / name / SINGLE).read_bytes() for name in ("one", "two"))
    assert one == two
    if family == "bart":
        changed = dict(state_dict)
        changed["model.encoder.embed_tokens.weight"] = np.ones(changed["model.shared.weight"].shape)
        with pytest.raises(ValueError, match=r"embed_tokens.weight and model.shared.weight of the"):
            model.save_pretrained(tmp_path / "two", state_dict=changed)


def test_a_state_dict_of_tensors_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    loud_model(1).save_pretrained(tmp_path / "one")
    arrays = load_file(tmp_path / "one" / SINGLE)
    tensors = {n: torch.nn.Parameter(torch.tensor(x)) for n, x in arrays.items()}
    loud_model(0).save_pretrained(tmp_path / "two", state_dict=tensors, max_shard_size=SHARD_SIZE)
    assert is_model(tmp_path / "two", 1)


def test_keywords_that_change_nothing_are_accepted(tmp_path):
    keywords = {name: values[-1] for name, (values, _) in save.FIXED_KEYWORDS.items()}
    assert len(keywords) > 5
    keywords |= {"token": "hf_x", "save_function": print, "commit_message": "saved"}
    loud_model(0).save_pretrained(tmp_path, **keywords)
    assert names_in(tmp_path) == [CONFIG, SINGLE]
    assert is_model(tmp_path, 0)


@pytest.mark.parametrize("name", save.FIXED_KEYWORDS)
def test_other_values_are_refused_by_name(name, tmp_path):
    value = False if save.FIXED_KEYWORDS[name][0][0] is True else "other"
    message = rf"^save_pretrained: {name}={value!r} is not supported .*: \w"
    with pytest.raises(ValueError, match=message) as caught:
        loud_model(0).save_pretrained(tmp_path / "new", **{name: value})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_unknown_keywords_are_type_errors(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'shard_size'"):
        loud_model(0).save_pretrained(tmp_path, shard_size="1GB")


def test_every_keyword_of_transformers_and_peft_is_known():
    pytest.importorskip("torch", reason="needs the parity extra")
    import inspect

    import peft
    import transformers

    ours = set(inspect.signature(AutoModelForQuestionAnswering.save_pretrained).parameters)
    ours |= save.FIXED_KEYWORDS.keys() | save.UNUSED_KEYWORDS | save.UPLOAD_KEYWORDS
    for theirs in (transformers.PreTrainedModel, peft.PeftModel):
        names = inspect.signature(theirs.save_pretrained).parameters.keys()
        assert names - {"kwargs"} <= ours


def test_adapters_are_one_file(tmp_path):
    model = get_peft_model(loud_model(0), LoraConfig(r=2, target_modules=["query"]))
    model.save_pretrained(tmp_path, max_shard_size=1, selected_adapters=["default"])
    assert names_in(tmp_path) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(ValueError, match="state_dict is not supported with LoRA adapters"):
        model.save_pretrained(tmp_path, state_dict={})


def test_adapters_beside_a_sharded_model_are_refused(tmp_path):
    loud_model(0).save_pretrained(tmp_path, max_shard_size=SHARD_SIZE)
    get_peft_model(loud_model(0), LoraConfig(r=2, target_modules=["query"])).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=r"both a full model \(model.safetensors.index.json\)"):
        load(tmp_path)
