"""ModernBERT: both forms of config.json, checkpoints without a head, new weights, positions."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from loud import loud_batch, loud_config, loud_model, parameters, relative_error
from safetensors.numpy import load_file, save_file

from qa_flax.models.families import FAMILIES
from qa_flax.models.families.modernbert import ModernBertConfig
from qa_flax.models.model import AutoModelForQuestionAnswering, load_config

FAMILY = FAMILIES["modernbert"]


@pytest.fixture
def checkpoint(tmp_path):
    loud_model(0, family="modernbert").save_pretrained(tmp_path)
    return tmp_path


def rename_tensors(directory, rename):
    """Rename the checkpoint's tensors; those for which `rename` returns "" are removed."""
    file = directory / "model.safetensors"
    weights = {new: w for name, w in load_file(file).items() if (new := rename(name))}
    save_file(weights, file, {"format": "pt"})


def test_both_forms_of_config_json_are_read(checkpoint):
    path = checkpoint / "config.json"
    values = json.loads(path.read_text())
    assert values["layer_types"] == ["full_attention", "sliding_attention", "full_attention"]
    ropes = values["rope_parameters"]
    ropes["full_attention"]["rope_theta"], ropes["sliding_attention"]["rope_theta"] = 500.0, 50.0
    values.pop("global_attn_every_n_layers")
    path.write_text(json.dumps(values))
    new = load_config(checkpoint), AutoModelForQuestionAnswering.from_pretrained(checkpoint)

    del values["layer_types"], values["rope_parameters"]
    # The form of the authors' checkpoint, which also has fields that nothing reads.
    older = {"global_attn_every_n_layers": 2, "global_rope_theta": 500.0, "local_rope_theta": 50}
    unread = {"position_embedding_type": "absolute", "layer_norm_eps": 1.0, "repad_logits": False}
    path.write_text(json.dumps(values | older | unread))
    old = load_config(checkpoint), AutoModelForQuestionAnswering.from_pretrained(checkpoint)

    read = [ModernBertConfig.from_hf(config.to_dict()) for config, _ in (new, old)]
    assert read[0] == read[1]
    assert (read[0].global_rope_theta, read[0].local_rope_theta) == (500.0, 50.0)
    batch = loud_batch(types=0)
    assert (np.asarray(new[1](**batch).start) == np.asarray(old[1](**batch).start)).all()
    # The thetas do affect the logits.
    changed = relative_error(new[1](**batch).start, loud_model(0, family="modernbert")(**batch)[0])
    assert changed > 1e-3


def test_the_head_is_loaded_from_a_masked_language_model(checkpoint, caplog):
    rename_tensors(checkpoint, lambda name: name.replace("classifier.", "decoder."))
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint, seed=1)
    assert "no span head: classifier.bias and classifier.weight are newly" in caplog.text
    expected = parameters(loud_model(0, family="modernbert"))
    for path, array in parameters(model).items():
        is_equal = bool((array == expected[path]).all())
        assert is_equal == (path[:2] != ("head", "outputs")), path


def test_a_base_model_has_no_prefix_and_no_head(checkpoint, caplog):
    rename_tensors(checkpoint, lambda name: name.partition("model.")[2])
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint, seed=1)
    assert "classifier.bias and classifier.weight and head.dense.weight and head" in caplog.text
    expected = parameters(loud_model(0, family="modernbert"))
    for path, array in parameters(model).items():
        assert path[0] == "head" or bool((array == expected[path]).all()), path


def test_new_weights_have_the_deviations_of_pytorch():
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    from transformers import AutoModelForQuestionAnswering as InTorch

    torch.manual_seed(0)
    config = loud_config(
        "modernbert", hidden_size=128, intermediate_size=64, initializer_cutoff_factor=1.5
    )
    ours = AutoModelForQuestionAnswering.from_config(config)
    theirs = InTorch.from_config(ours.config)
    ratios = []
    for path, array in parameters(ours).items():
        expected = theirs.get_parameter(torch_name(path)).detach().numpy()
        if array.size < 1000:  # norms, biases, the 256 weights of the span outputs
            assert 0.8 * expected.std() <= np.asarray(array).std() <= 1.25 * expected.std(), path
            assert np.abs(array).max() <= 1.01 * max(np.abs(expected).max(), 1.5 * 128**-0.5)
            continue
        ratios.append(float(np.std(array[1:]) / expected[1:].std()))
        assert relative_error(np.abs(array).max(), np.abs(expected).max()) < 0.01, path
    assert len(ratios) == 14
    assert np.abs(np.array(ratios) - 1).max() < 0.03


def torch_name(path):
    from qa_flax.models.weights import weight_name

    return weight_name(path, FAMILY, prefix=FAMILY.prefix)


@pytest.mark.slow
def test_rows_longer_than_the_published_window_have_pytorch_s_logits(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    from transformers import AutoModelForQuestionAnswering as InTorch

    ours = loud_model(1, family="modernbert", local_attention=128, num_hidden_layers=4)
    ours.save_pretrained(tmp_path)
    theirs = InTorch.from_pretrained(tmp_path).eval()
    for length in (200, 701):  # one block, and 11 blocks of 64 tokens
        batch = loud_batch(length, types=0)
        expected = theirs(**{name: torch.tensor(values) for name, values in batch.items()})
        assert relative_error(ours(**batch).start, expected.start_logits.detach()) < 2e-5


def test_position_ids_set_the_rotary_angles():
    model, batch = loud_model(0, family="modernbert"), loud_batch(types=0)
    positions = np.tile(np.arange(12), (3, 1))
    plain = model(**batch)
    assert (model(**batch, position_ids=positions).start == plain.start).all()
    # Rotary attention depends on relative positions: not on a shift, but on a factor.
    shifted = model(**batch, position_ids=positions + 9)
    assert relative_error(shifted.start, plain.start) < 1e-5
    stretched = model(**batch, position_ids=positions * 2)
    assert float(jnp.abs(stretched.start - plain.start).max()) > 0.01
