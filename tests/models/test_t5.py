"""T5 and mT5: position buckets, the names of the embedding table, and inputs that they lack."""

import logging

import numpy as np
import pytest
from loud import batch_of, loud_model
from safetensors.numpy import load_file, save_file

from qa_flax.models.families.t5 import relative_position_buckets
from qa_flax.models.model import AutoModelForQuestionAnswering


@pytest.mark.slow
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("buckets", [4, 5, 8, 9, 32, 33, 64, 320])
def test_every_relative_position_has_pytorch_s_bucket(buckets, is_causal):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = np.arange(-5000, 5001)
    for max_distance in (buckets // 2 + 1, 128, 200, 1000, 4096):
        if max_distance <= buckets // 2:
            continue
        expected = T5Attention._relative_position_bucket(
            torch.tensor(relative), not is_causal, buckets, max_distance
        )
        actual = relative_position_buckets(relative, buckets, max_distance, is_causal)
        np.testing.assert_array_equal(actual, expected.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder.embed_tokens", "decoder.embed_tokens"])
def test_the_embedding_table_is_loaded_under_any_of_its_names(name, tmp_path, caplog):
    """The output layer of T5 1.1, another table of the same size, is none of them."""
    model = loud_model(0, family="t5")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"{name}.weight"] = tensors.pop("shared.weight")
    tensors["lm_head.weight"] = tensors[f"{name}.weight"] + 1
    # As in old checkpoints.
    bias = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors[bias] = tensors["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert not caplog.records
    for actual, expected in zip(
        loaded(**batch_of("t5"))[:2], model(**batch_of("t5"))[:2], strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
    del tensors[f"{name}.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: shared.weight \[40, 16\]"):
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)


def test_position_ids_are_refused():
    ids = np.ones((1, 5), int)
    with pytest.raises(ValueError, match=r"t5 and mt5 have no position_ids: .*leave position_ids"):
        loud_model(0, family="t5")(ids, position_ids=ids)
