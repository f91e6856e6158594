"""The check that attention keeps the windows of a row apart on this device."""

import logging

import pytest
import tiny

from qa_flax import Trainer, TrainingArguments, prepare_train_features
from qa_flax.device import packed_check
from qa_flax.device.packed_check import describe_packed_error, packed_error


def test_rounding_is_far_below_the_limit():
    assert packed_error("float32") < 1e-5
    assert packed_error("bfloat16") < 0.02
    assert describe_packed_error("float32") is None
    assert describe_packed_error("bfloat16") is None


@pytest.fixture
def mixing(monkeypatch):
    """Attention that ignores segments."""

    def ignoring(query, key, value, mask):
        return attention(query, key, value, mask.any(axis=2, keepdims=True))

    attention = packed_check.attention
    monkeypatch.setattr(packed_check, "attention", ignoring)
    packed_error.cache_clear()
    yield
    packed_error.cache_clear()


def test_a_device_that_ignores_segments_trains_one_window_a_row(tmp_path, mixing, caplog):
    windows = prepare_train_features(
        tiny.repeated_examples(4), tiny.tokenizer(), max_seq_length=96, doc_stride=16
    )
    fills = []
    for packing in (True, False):
        args = TrainingArguments(
            str(tmp_path),
            packing=packing,
            per_device_train_batch_size=2,
            max_steps=1,
            save_strategy="no",
            report_to=[],
        )
        with caplog.at_level(logging.WARNING):
            result = Trainer(tiny.model(), args, train_dataset=windows).train()
        fills.append(result.metrics["train_fill"])
    (text,) = [r.getMessage() for r in caplog.records if "packing" in r.getMessage()]
    assert "attention mixes the windows of a row on this device (cpu)" in text
    assert fills[0] == fills[1]
