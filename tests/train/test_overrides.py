"""Methods of transformers' Trainer that a subclass replaces: called, or refused by name."""

import pytest
import tiny
from tiny_trainers import arguments

from qa_flax import Trainer, prepare_train_features
from qa_flax.train.overrides import NOT_CALLED


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        return super().compute_loss(model, inputs, return_outputs)


class OwnOptimizer(OwnLoss):
    def create_optimizer(self):
        raise NotImplementedError


def test_a_method_that_would_not_be_called_is_refused(tmp_path):
    for cls, names in ((OwnLoss, ["compute_loss"]), (OwnOptimizer, ["compute_loss", "create_opt"])):
        with pytest.raises(ValueError, match="never calls these methods") as error:
            cls(tiny.model(), arguments(tmp_path))
        for name in names:
            assert f".{name}" in str(error.value)
    assert "OwnLoss.compute_loss: use compute_loss_func=f" in str(error.value)
    assert "OwnOptimizer.create_optimizer: use optim=" in str(error.value)


def test_a_method_that_is_assigned_to_the_trainer_is_refused_by_train(tmp_path):
    windows = prepare_train_features(
        tiny.examples(answerable=True), tiny.tokenizer(), max_seq_length=64, doc_stride=16
    )
    trainer = Trainer(tiny.model(), arguments(tmp_path), train_dataset=windows)
    trainer.training_step = lambda model, inputs: 0
    with pytest.raises(ValueError, match=r"trainer\.training_step: use compute_loss_func"):
        trainer.train()


def test_calling_a_method_that_only_transformers_has_names_the_replacement(tmp_path):
    trainer = Trainer(tiny.model(), arguments(tmp_path))
    with pytest.raises(AttributeError, match="no compute_loss; use compute_loss_func="):
        trainer.compute_loss(trainer.model, {})
    with pytest.raises(AttributeError, match="no _push_from_checkpoint; use hub_strategy="):
        trainer._push_from_checkpoint("checkpoint-500")
    with pytest.raises(AttributeError, match="'Trainer' object has no attribute 'nonsense'"):
        trainer.nonsense()
    assert not hasattr(trainer, "training_step")
    assert trainer.get_num_trainable_parameters() == trainer.model.num_parameters()


def test_methods_of_this_trainer_may_be_replaced(tmp_path):
    """evaluate, log and save_model are called during training."""
    calls = []

    class Own(Trainer):
        def evaluate(self, *args, **kwargs):
            calls.append("evaluate")
            return super().evaluate(*args, **kwargs)

        def log(self, logs, start_time=None):
            calls.append("log")
            super().log(logs | {"mine": 1}, start_time)

        def save_model(self, output_dir=None):
            calls.append("save_model")
            super().save_model(output_dir)

    windows = prepare_train_features(
        tiny.examples(answerable=True), tiny.tokenizer(), max_seq_length=64, doc_stride=16
    )
    settings = {"max_steps": 1, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = Own(
        tiny.model(),
        arguments(tmp_path, save_strategy="steps", save_steps=1, **settings),
        train_dataset=windows,
        eval_dataset=windows,
    )
    trainer.train()
    assert calls == ["log", "evaluate", "log", "save_model", "log"]
    assert all(entry["mine"] == 1 for entry in trainer.state.log_history)


def test_the_list_has_every_method_of_transformers_trainer():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch", reason="its Trainer needs PyTorch: pip install '.[parity]'")
    names = {
        name
        for name, value in vars(transformers.Trainer).items()
        if callable(value) and not name.startswith("__")
    }
    own = {name for name in dir(Trainer) if callable(getattr(Trainer, name))}
    assert names - own - NOT_CALLED.keys() == set()
    # Scripts may call these, but the trainer does not, so they may not be replaced.
    assert own & NOT_CALLED.keys() == {"num_examples", "get_num_trainable_parameters"}
    assert NOT_CALLED.keys() - names <= {"loss_is_scaled_for_ga"}
