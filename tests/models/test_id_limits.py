"""Ids outside the model's tables are an error, not NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from loud import batch_of, loud_model
from tiny_trainers import arguments

from qa_flax import Trainer, prepare_train_features
from qa_flax.models.families import FAMILIES
from qa_flax.models.id_limits import check_ids


@pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray])
def test_a_call_with_an_id_outside_the_tables_is_an_error(wrap):
    model = tiny.model()
    for wrong in (tiny.VOCABULARY, -1, 10**6):
        message = f"input_ids has the id {wrong}, but .* the ids 0 to 239 only; .* or call model.re"
        with pytest.raises(ValueError, match=message):
            model(wrap([[5, wrong, 7]]))
    with pytest.raises(ValueError, match=r"token_type_ids has the id 2, .* the ids 0 to 1 only"):
        model(wrap([[5, 6]]), token_type_ids=wrap([[0, 2]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_limits_are_the_sizes_of_the_tables(family):
    model = loud_model(family=family)
    limits = dict(model.id_limits)
    assert limits.pop("input_ids") == model.get_input_embeddings().num_embeddings
    # LUKE's entities, which rows do not have, have token types, too.
    tables = (n for n, _ in model.named_parameters() if "token_type" in n)
    names = [n for n in tables if "entity" not in n]
    assert len(names) == len(limits)
    assert [model.get_parameter(n).shape[0] for n in names] == list(limits.values())
    check_ids(batch_of(family), model.id_limits)


def test_no_ids_are_checked_while_jax_traces():
    model = tiny.model()
    traced = jax.jit(lambda ids, types: model(ids, token_type_ids=types).start)
    ids = np.array([[0, tiny.VOCABULARY - 1]])
    assert np.isfinite(traced(ids, np.array([[0, 1]]))).all()
    assert np.isnan(traced(ids + 1, np.array([[0, 1]]))).all()
    check_ids({"input_ids": np.zeros((0, 3), int), "labels": [9]}, (("input_ids", 3),))


def test_the_trainer_names_the_id_before_it_computes(tmp_path):
    windows = prepare_train_features(
        tiny.examples(answerable=True), tiny.tokenizer(), max_seq_length=64, doc_stride=16
    )
    model = tiny.model(vocab_size=50)
    trainer = Trainer(model, arguments(tmp_path, max_steps=1), train_dataset=windows)
    for run in (trainer.train, lambda: trainer.predict(windows)):
        with pytest.raises(ValueError, match=r"call model.resize_token_embeddings\(len\(tokenize"):
            run()
