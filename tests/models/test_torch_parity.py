"""The same numbers as PyTorch transformers: logits, loss, gradients, files."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shared_path
from flax import nnx
from loud import loud_batch, loud_model, relative_error

from qa_flax.models.families import FAMILIES
from qa_flax.models.hf import AutoModelForQuestionAnswering, weight_name
from qa_flax.models.qa import span_losses

torch = pytest.importorskip("torch", reason="needs the parity extra")
import transformers  # noqa: E402


def in_torch(directory):
    """Hugging Face's own model of a directory we saved; it must find every key, and no other."""
    model, report = transformers.AutoModelForQuestionAnswering.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def tensors(batch):
    return {name: torch.tensor(values) for name, values in batch.items()}


def assert_same_logits(ours, theirs, tolerance):
    for name in ("start_logits", "end_logits"):
        error = relative_error(getattr(ours, name), getattr(theirs, name).detach().numpy())
        assert error < tolerance, (name, error)


@pytest.fixture(scope="module")
def mini_lm(tmp_path_factory):
    """The real weights with one span head, here and in PyTorch."""
    directory = tmp_path_factory.mktemp("mini_lm")
    ours = AutoModelForQuestionAnswering.from_pretrained(
        shared_path("models", "all-MiniLM-L6-v2"), seed=3
    )
    ours.save_pretrained(directory)
    return nnx.jit(ours), in_torch(directory)


@pytest.mark.parametrize("length", [5, 64, 384])
def test_real_weights_give_pytorch_s_logits(mini_lm, length):
    random = np.random.default_rng(length)
    mask = np.ones((2, length), np.int64)
    mask[1, length // 2 :] = 0
    batch = {
        "input_ids": random.integers(1000, 30000, (2, length)) * mask,
        "attention_mask": mask,
        "token_type_ids": (np.arange(length) >= length // 3) * mask,
    }
    ours, theirs = mini_lm
    assert_same_logits(ours(**batch), theirs(**tensors(batch)), 2e-5)


VARIATIONS = [
    {},
    {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    {"hidden_act": "relu", "type_vocab_size": 3, "num_hidden_layers": 1},
    {"hidden_act": "silu", "hidden_size": 24, "num_attention_heads": 3},
    {"hidden_act": "gelu_pytorch_tanh", "intermediate_size": 20, "vocab_size": 57},
    {"hidden_act": "tanh", "type_vocab_size": 1, "num_attention_heads": 1},
    {"hidden_act": "swish", "pad_token_id": None, "max_position_embeddings": 12},
]


@pytest.mark.parametrize("changes", VARIATIONS, ids=lambda c: c.get("hidden_act", "gelu"))
def test_loud_weights_give_pytorch_s_logits(changes, tmp_path):
    ours = loud_model(4, **changes)
    ours.save_pretrained(tmp_path)
    theirs = in_torch(tmp_path)
    for length in (12, 7):
        batch = loud_batch(length, types=changes.get("type_vocab_size", 2))
        assert_same_logits(ours(**batch), theirs(**tensors(batch)), 1e-5)


def test_every_gradient_is_pytorch_s(tmp_path):
    """With positions outside the row, negative ones, and padding in the batch."""
    model, batch = loud_model(5), loud_batch(12, 5)
    model.save_pretrained(tmp_path)
    theirs = in_torch(tmp_path)
    # HF divides by the rows that are inside, so all or none are: row 4 is not in this batch's loss.
    start, end = np.array([3, 0, -2, 1, 99]), np.array([5, 9, 4, 0, 99])
    loss = theirs(
        **tensors(batch), start_positions=torch.tensor(start), end_positions=torch.tensor(end)
    ).loss
    loss.backward()

    @jax.jit
    def ours(state):
        rows = span_losses(nnx.merge(graph, state)(**batch), jnp.array(start), jnp.array(end))
        return rows.sum() / 4

    graph, state = nnx.split(model)
    value, gradients = jax.value_and_grad(ours)(state)
    assert abs(float(value) - loss.item()) < 1e-5
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    largest = max(np.abs(g).max() for g in expected.values())
    for path, param in nnx.to_flat_state(gradients):
        name = weight_name(path, FAMILIES["bert"], prefix="bert.")
        gradient = np.asarray(param[...]).T if path[-1] == "kernel" else np.asarray(param[...])
        wanted = expected.pop(name)
        # Zero but for rounding: the biases of the keys and of the head, which the softmax ignores.
        allowed = 1e-4 * np.abs(wanted).max() + 1e-6 * largest
        assert np.abs(gradient - wanted).max() < allowed, name
    assert not expected


def test_weights_saved_from_a_half_precision_checkpoint_load_as_float32(tmp_path):
    loud_model(0).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"dtype": "float16"}))
    AutoModelForQuestionAnswering.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert in_torch(tmp_path).dtype == torch.float32


def test_the_advice_for_a_pickle_works(tmp_path, monkeypatch):
    loud_model(0).save_pretrained(tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    weights = in_torch(tmp_path / "good").state_dict()
    torch.save(weights, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"pytorch_model\.bin is not read") as caught:
        AutoModelForQuestionAnswering.from_pretrained(tmp_path / "old")
    command = re.search(r'python -c "(.*)"', str(caught.value))
    assert command is not None
    monkeypatch.chdir(tmp_path / "old")
    exec(command[1], {})
    ours = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "old")(**loud_batch())
    assert relative_error(ours.start, loud_model(0)(**loud_batch()).start) == 0
    in_torch(tmp_path / "old")
