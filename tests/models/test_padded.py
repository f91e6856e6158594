"""On TPUs the cores hold tables with padding: nothing else changes, and nobody else sees it."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from tiny_trainers import (
    arguments,
    assert_same_run,
    trainer_in,
    watched_trainer,
    watched_windows,
)
from transformers import TrainerCallback

from qa_flax import LoraConfig, QuestionAnswerer, Trainer, get_peft_model
from qa_flax.device import parallel
from qa_flax.device.memory import abstract_weights
from qa_flax.device.optim import NEED_WHOLE_PARAMETERS, OPTIMIZERS, make_optimizer
from qa_flax.device.step import weights_of
from qa_flax.models.layers import Table, embedding
from qa_flax.models.padded import PaddedTable, is_padded, padded_rows_of, to_padded
from qa_flax.train.checkpoints import TRAINER_STATE

VOCABULARY = tiny.VOCABULARY + 3  # no multiple of 8
WORD = "bert.embeddings.word_embeddings.weight"


def model_of(**changes):
    return tiny.model(hidden_dropout_prob=0.2, vocab_size=VOCABULARY, **changes)


def frozen_model():
    model = model_of()
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad = False
    return model


def padded_of(tree):
    return list(filter(is_padded, jax.tree.leaves(tree, is_leaf=is_padded)))


@pytest.fixture
def as_tpu(monkeypatch):
    """Call it to have the cores hold tables as those of a TPU do, or to stop that."""

    def switch(is_on=True):
        monkeypatch.setattr(parallel, "has_tiles", lambda: is_on)

    return switch


def test_a_padded_table_looks_up_rows_as_flax_does(rng):
    """NaN for an id of the padding, too; no gradient reaches the padding."""
    table = nnx.Embed(13, 6, rngs=nnx.Rngs(0))
    array = np.asarray(table.embedding[...])
    ids = jnp.array([[0, 12, 5], [5, 13, 17]], jnp.int32)
    padded = PaddedTable(jnp.asarray(to_padded(array, 16)), array.shape)
    np.testing.assert_array_equal(padded_rows_of(padded, ids), table(ids))
    assert np.isnan(padded_rows_of(padded, ids)).sum() == 2 * 6
    own = embedding(13, 6)
    object.__setattr__(own.embedding, "_raw_value", padded)
    np.testing.assert_array_equal(own(ids), table(ids))
    factors = rng.normal(size=(2, 3, 6)).astype(np.float32)
    total = lambda x, look_up: jnp.nansum(look_up(x) * factors)  # noqa: E731
    grads = jax.grad(total)(padded, partial(padded_rows_of, ids=ids))
    expected = jax.grad(total)(array, lambda x: jnp.take(x, ids, axis=0))
    np.testing.assert_array_equal(grads.data[:13], expected)
    assert not np.any(grads.data[13:])


def test_only_tables_that_do_not_fill_their_tiles_are_padded():
    model = model_of(max_position_embeddings=130)
    weights = abstract_weights(model, False, is_padded=True)
    shapes = {node.shape: node.data.shape for node in padded_of(weights)}
    assert shapes == {(VOCABULARY, 32): (248, 32), (130, 32): (136, 32)}
    assert sum(isinstance(module, Table) for _, module in nnx.iter_modules(model)) == 3
    assert not padded_of(abstract_weights(tiny.model(), False, is_padded=True))
    assert not padded_of(abstract_weights(model, True, is_padded=True))
    assert not padded_of(abstract_weights(model, False))


def test_a_state_is_put_and_gathered_without_a_trace(rng):
    model = model_of()
    weights = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), weights_of(model))
    on_cores = parallel.put_state(weights, abstract_weights(model, False, is_padded=True))
    (table,) = padded_of(on_cores)
    assert table.data.shape == (jax.device_count(), 248, 32)
    assert not np.any(np.asarray(table.data)[:, VOCABULARY:])
    jax.tree.map(np.testing.assert_array_equal, parallel.gather_state(on_cores), weights)
    leaves = jax.tree.leaves(on_cores, is_leaf=is_padded)
    for copy, array in zip(
        parallel.copy_first_replica(leaves), jax.tree.leaves(weights), strict=True
    ):
        np.testing.assert_array_equal(copy, array)


@pytest.mark.parametrize("optim", sorted(OPTIMIZERS.keys() - set(NEED_WHOLE_PARAMETERS)))
def test_an_optimizer_leaves_the_padding_zero(rng, optim):
    """And updates the rows of the table as without padding, with decay and momentum."""
    arguments = {"sgd": "momentum=0.9", "rmsprop": "momentum=0.9,centered=true"}
    optimizer = make_optimizer(optim, weight_decay=0.1, optim_args=arguments.get(optim))
    tables = {"word": {"embedding": rng.normal(size=(13, 4)).astype(np.float32)}}

    @cache
    def step():
        return jax.jit(optimizer.update)

    def pad(tree):
        return jax.tree.map(lambda a: PaddedTable(to_padded(a, 16), a.shape), tree)

    states = [[tree, optimizer.init(tree)] for tree in (tables, pad(tables))]
    for _ in range(3):
        grads = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), tables)
        for state, gradient in zip(states, (grads, pad(grads)), strict=True):
            updates, state[1] = step()(gradient, state[1], state[0])
            state[0] = jax.tree.map(lambda p, u: p - 0.1 * u, state[0], updates)
    (expected, _), (actual, opt_state) = states
    actual = actual["word"]["embedding"].data
    np.testing.assert_allclose(actual[:13], expected["word"]["embedding"], rtol=1e-6)
    assert not np.any(actual[13:])
    for table in padded_of(opt_state):
        assert not np.any(table.data[13:])


def files_of(folder):
    """What is in a run's files, without times and without the checksums of files that have some."""
    contents = {}
    for path in sorted(Path(folder).rglob("*")):
        is_compared = path.suffix in (".safetensors", ".json") and path.name != "manifest.json"
        if not is_compared or "train_state" in path.parts:
            continue
        contents[str(path.relative_to(folder))] = path.read_bytes()
        if path.name == TRAINER_STATE:
            history = json.loads(path.read_bytes())["log_history"]
            contents[str(path.relative_to(folder))] = [
                {k: v for k, v in e.items() if not k.endswith(("runtime", "per_second", "_time"))}
                for e in history
            ]
    return contents


class Read(TrainerCallback):
    """Records the word table as callbacks read it, and writes into it once."""

    def __init__(self):
        self.tables = []

    def on_step_end(self, args, state, control, model, **kwargs):
        table = model.encoder.embeddings.word.embedding
        assert table.shape == (VOCABULARY, 32)
        self.tables += [np.array(table[...]), np.asarray(model.state_dict()[WORD]).copy()]
        if state.global_step == 2:
            table[...] = table[...] * 1.01


KINDS = {
    "plain": (model_of, {}),
    "average": (model_of, {"ema_decay": 0.5}),
    "frozen": (frozen_model, {}),
    "layer rates": (model_of, {"layerwise_lr_decay": 0.8}),
    "sharded": (model_of, {"shard_params": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_is_bit_for_bit_that_without_padding(tmp_path, as_tpu, kind):
    """Its parameters, checkpoints, files and logs, and what callbacks read; and when it resumes."""
    make, changes = KINDS[kind]
    examples, tokenizer = tiny.examples(answerable=True), tiny.tokenizer()
    runs = {}
    for is_on in (False, True):
        as_tpu(is_on)
        folder, read = tmp_path / str(is_on), Read()
        run = trainer_in(folder, examples, tokenizer, [read], make(), **changes)
        run.train()
        runs[is_on] = run, read, files_of(folder)
        was_padded = bool(padded_of(run._live.evaluation_weights()))
        assert was_padded == (is_on and kind != "sharded")
    (expected, read, files), (actual, read_padded, padded_files) = runs[False], runs[True]
    assert_same_run(expected, actual)
    assert len(files) > 4
    assert files == padded_files
    assert len(read.tables) > 3
    for one, other in zip(read.tables, read_padded.tables, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("was_padded", [True, False])
def test_a_run_resumes_with_or_without_padding(tmp_path, as_tpu, was_padded):
    """A run that began on TPUs goes on elsewhere, and the other way round."""
    examples, tokenizer = tiny.examples(answerable=True), tiny.tokenizer()
    changes = {"ema_decay": 0.5}
    whole = trainer_in(tmp_path / "whole", examples, tokenizer, None, model_of(), **changes)
    whole.train()
    as_tpu(was_padded)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    part = trainer_in(tmp_path / "part", examples, tokenizer, [Stop()], model_of(), **changes)
    part.train()
    as_tpu(not was_padded)
    resumed = trainer_in(tmp_path / "part", examples, tokenizer, None, model_of(), **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    assert_same_run(whole, resumed)


class Weights(TrainerCallback):
    """Records how many tables are padded on the cores during training."""

    def on_step_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        self.count = len(padded_of(trainer._live.state()))


@pytest.mark.slow
@pytest.mark.parametrize(("optim", "count"), [("adafactor", 0), ("lamb", 0), (None, 0), ("sgd", 1)])
def test_optimizers_that_would_see_the_padding_have_none(tmp_path, as_tpu, optim, count):
    """A script's own optimizer (None) may be one of them."""
    windows, callback = watched_windows(), Weights()
    changes = {} if optim is None else {"optim": optim}
    losses = []
    for is_on in (False, True):
        as_tpu(is_on)
        own = optax.adafactor(1e-3) if optim is None else None
        args = arguments(tmp_path, max_steps=2, **changes)
        trainer = Trainer(
            model_of(),
            args,
            train_dataset=windows,
            eval_dataset=windows,
            callbacks=[callback],
            optimizers=(own, None),
        )
        callback.trainer = trainer
        trainer.train()
        losses.append(trainer.evaluate()["eval_loss"])
        assert callback.count == (count if is_on else 0)
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_adapters_train_beside_a_padded_table(tmp_path, as_tpu):
    """The table is fixed: it has no optimizer state, but it is padded all the same."""
    windows, models = watched_windows(), []
    for is_on in (False, True):
        as_tpu(is_on)
        config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1)
        models.append(get_peft_model(model_of(), config))
        watched_trainer(tmp_path / str(is_on), models[-1], windows).train()
    jax.tree.map(np.testing.assert_array_equal, *map(weights_of, models))


def test_ids_of_the_padding_are_refused(tmp_path, as_tpu):
    as_tpu()
    windows = watched_windows().map(lambda row: {"input_ids": [VOCABULARY] * len(row["input_ids"])})
    with pytest.raises(ValueError, match=f"input_ids has the id {VOCABULARY}"):
        watched_trainer(tmp_path, model_of(), windows).train()


@pytest.mark.slow
def test_answers_are_those_without_padding(as_tpu):
    model, answers = model_of(), []
    for is_on in (False, True):
        as_tpu(is_on)
        answerer = QuestionAnswerer(model, tiny.tokenizer())
        answers.append(answerer("Who wrote it?", tiny.CONTEXTS[0], batch_size=2))
        assert bool(padded_of(answerer._forward._weights)) == is_on
    assert answers[0] == answers[1]
