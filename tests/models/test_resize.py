"""`resize_token_embeddings`: the table, the config, and the files that are written afterwards."""

import numpy as np
import pytest
import tiny
from cases import CASES
from loud import batch_of, loud_model
from test_torch_parity import assert_same_logits, load_in_torch, tensors
from tiny_trainers import arguments
from transformers import TrainerCallback

from qa_flax import (
    AutoModelForQuestionAnswering,
    LoraConfig,
    Trainer,
    get_peft_model,
    prepare_train_features,
)
from qa_flax.models.families import FAMILIES


def table(model):
    return np.asarray(model.get_input_embeddings().weight)


def test_rows_are_added_near_the_mean_and_removed_at_the_end():
    model = tiny.model()
    old, before = table(model), model.get_input_embeddings()
    embeddings = model.resize_token_embeddings(tiny.VOCABULARY + 20)
    assert embeddings == before == model.get_input_embeddings()
    assert (embeddings.num_embeddings, model.config.vocab_size) == (tiny.VOCABULARY + 20,) * 2
    new = table(model)
    np.testing.assert_array_equal(new[: len(old)], old)
    noise = (new[len(old) :] - old.mean(axis=0)) / old.std(axis=0)
    # transformers draws from a normal distribution with 1e-9 of the old rows' covariance.
    assert 0.5 * 1e-9**0.5 < noise.std() < 2 * 1e-9**0.5
    assert len(np.unique(new[len(old) :], axis=0)) == 20
    again = tiny.model()
    again.resize_token_embeddings(tiny.VOCABULARY + 20)
    np.testing.assert_array_equal(table(again), new)
    model.resize_token_embeddings(100)
    np.testing.assert_array_equal(table(model), old[:100])
    assert model.resize_token_embeddings() == embeddings
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert table(model).shape == (128, 32)
    model.resize_token_embeddings(129, 64)
    assert model.config.vocab_size == 192


def test_without_mean_resizing_rows_are_drawn_as_in_a_new_model():
    model = tiny.model(initializer_range=0.5)
    old = table(model)
    model.resize_token_embeddings(1000, mean_resizing=False)
    np.testing.assert_array_equal(table(model)[: len(old)], old)
    assert table(model)[len(old) :].std() == pytest.approx(0.5, rel=0.02)


def test_what_cannot_be_resized_is_refused():
    model = tiny.model()
    for number in (0, -3, 2.5, "7"):
        with pytest.raises(ValueError, match=f"new_num_tokens={number!r} must be a whole number"):
            model.resize_token_embeddings(number)
    with pytest.raises(ValueError, match="pad_to_multiple_of=0 must be"):
        model.resize_token_embeddings(pad_to_multiple_of=0)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ValueError, match="call resize_token_embeddings before get_peft_model"):
        adapted.resize_token_embeddings(300)
    assert adapted.resize_token_embeddings().num_embeddings == tiny.VOCABULARY
    assert model.config.vocab_size == tiny.VOCABULARY


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [48, 33])
def test_a_resized_model_round_trips_and_computes_as_pytorchs(tmp_path, family, size):
    torch = pytest.importorskip("torch", reason="needs the parity extra")
    if CASES[family].needs_separators and size < 40:
        pytest.skip("its separator is the last token")
    small = loud_model(family=family)
    small.save_pretrained(tmp_path / "old")
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "old")
    model.get_input_embeddings().requires_grad_(False)
    model.resize_token_embeddings(size)
    assert not model.get_input_embeddings().weight.requires_grad
    model.save_pretrained(tmp_path / "new")
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "new")
    assert loaded.graphdef("float32") == model.graphdef("float32")
    np.testing.assert_array_equal(table(loaded), table(model))
    batch = batch_of(family)
    ids = batch["input_ids"]
    batch["input_ids"] = np.where(ids == 7, size - 1, np.where(ids < size, ids, 8))
    with torch.no_grad():
        expected = load_in_torch(tmp_path / "new")(**tensors(batch))
    assert_same_logits(model(**batch), expected, 1e-4)
    # transformers resizes to the same shape and config.
    reference = load_in_torch(tmp_path / "old")
    reference.resize_token_embeddings(size)
    assert [(n, tuple(p.shape)) for n, p in reference.named_parameters()] == [
        (n, tuple(p.shape)) for n, p in model.named_parameters()
    ]
    assert reference.config.vocab_size == model.config.vocab_size


@pytest.mark.slow
def test_a_trainer_built_before_trains_the_resized_model(tmp_path):
    windows = prepare_train_features(
        tiny.examples(answerable=True), tiny.tokenizer(), max_seq_length=64, doc_stride=16
    )
    model = tiny.model()
    trainer = Trainer(
        model, arguments(tmp_path, max_steps=2, learning_rate=1e-2), train_dataset=windows
    )
    trainer.predict(windows)
    added = dict(windows[0])
    added["input_ids"] = [tiny.VOCABULARY + 3, *added["input_ids"][1:]]
    rows = windows.from_list([added] * 8)
    for run in (lambda: trainer.predict(rows), lambda: model(np.array([[tiny.VOCABULARY]]))):
        with pytest.raises(ValueError, match=r"resize_token_embeddings\(len\(tokenizer\)\) after"):
            run()
    model.resize_token_embeddings(tiny.VOCABULARY + 5)
    before = table(model).copy()
    trainer.train_dataset = rows
    trainer.train()
    changed = (table(model) != before).any(axis=1)
    assert changed[tiny.VOCABULARY + 3]
    assert changed[tiny.VOCABULARY :].sum() == 1
    assert np.isfinite(trainer.predict(rows).predictions[0]).all()

    class Resizes(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.resize_token_embeddings(400)

    trainer.add_callback(Resizes())
    with pytest.raises(ValueError, match="cannot be resized while the model is trained"):
        trainer.train()
