"""Attributes of transformers' Trainer that scripts read."""

import json
from pathlib import Path

import pytest
import tiny
from tiny_trainers import arguments
from transformers import AutoConfig, TrainerCallback

from qa_flax import AutoModelForQuestionAnswering, Trainer, prepare_train_features
from qa_flax.models.families import FAMILIES
from qa_flax.models.weights import parameters, size_without_embeddings

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def windows():
    lengths = {"max_seq_length": 24, "doc_stride": 3}
    data = prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **lengths)
    return data.select(range(12))


class Recorder(TrainerCallback):
    """Records what callbacks and scripts see of the trainer at each step."""

    def __init__(self):
        self.trainer, self.seen = None, []

    def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        assert self.trainer.optimizer is optimizer
        assert self.trainer.lr_scheduler is lr_scheduler
        self.seen.append((self.trainer.is_in_train, lr_scheduler.get_last_lr()[0]))


@pytest.mark.slow
def test_the_views_of_optimizer_and_schedule_are_those_of_the_callbacks(tmp_path, windows):
    recorder = Recorder()
    args = arguments(tmp_path, max_steps=2, learning_rate=0.5, save_strategy="steps", save_steps=2)
    trainer = recorder.trainer = Trainer(
        tiny.model(), args, train_dataset=windows, callbacks=[recorder]
    )
    assert (trainer.optimizer, trainer.lr_scheduler, trainer.is_in_train) == (None, None, False)
    trainer.train()
    assert recorder.seen == [(True, 0.5), (True, 0.25)]
    assert not trainer.is_in_train
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.lr_scheduler.get_last_lr()[0]
    # 12 windows: a batch of eight and one of four, each 24 tokens wide.
    flops = 6 * 12 * 24 * size_without_embeddings(trainer.model)
    assert trainer.state.total_flos == trainer.state.log_history[-1]["total_flos"] == flops > 1e6
    saved = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert saved["total_flos"] == flops


def test_a_trainer_is_not_in_training_after_an_error(tmp_path, windows):
    class Fails(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            raise KeyError

    trainer = Trainer(tiny.model(), arguments(tmp_path), train_dataset=windows, callbacks=[Fails()])
    with pytest.raises(KeyError):
        trainer.train()
    assert not trainer.is_in_train


def test_what_is_set_acts_or_is_refused(tmp_path):
    model = tiny.model()
    trainer = Trainer(model, arguments(tmp_path))
    assert trainer.model_wrapped is trainer.model is model
    assert trainer.label_names == ["start_positions", "end_positions"]
    trainer.label_names = ["start_positions", "end_positions"]
    with pytest.raises(ValueError, match=r"label_names=\['labels'\]: the labels of extractive"):
        trainer.label_names = ["labels"]
    for name in ("optimizer", "lr_scheduler"):
        with pytest.raises(ValueError, match=rf"trainer.{name} cannot be set: .* optimizers="):
            setattr(trainer, name, object())
    assert (trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled) == (False, False)
    assert (trainer.optimizer, trainer.lr_scheduler, trainer.is_in_train) == (None, None, False)


def test_the_tables_of_embeddings_are_not_counted():
    model = tiny.model()
    tables = [p for path, p in parameters(model) if path[-1] == "embedding"]
    assert len(tables) == 3
    count = size_without_embeddings(model)
    assert count == model.num_parameters() - sum(table[...].size for table in tables)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_number_of_parameters_without_embeddings_is_that_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = AutoConfig.from_pretrained(GOLDEN / family)
    theirs = transformers.AutoModelForQuestionAnswering.from_config(config)
    ours = AutoModelForQuestionAnswering.from_pretrained(GOLDEN / family)
    assert size_without_embeddings(ours) == theirs.num_parameters(exclude_embeddings=True)
