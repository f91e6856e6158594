"""A script's own loss, optimizer, schedule, model and reduction of logits."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import tiny
from flax import nnx
from tiny_trainers import arguments, trainer_in

from qa_flax import QuestionAnsweringTrainer, Trainer, prepare_train_features
from qa_flax.answers.spans import SearchSettings
from qa_flax.models.qa import span_losses

WINDOW = {"max_seq_length": 64, "doc_stride": 16}


@pytest.fixture(scope="module")
def windows():
    return prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), **WINDOW)


def tenth(logits, batch):
    """A tenth of the usual loss."""
    return span_losses(logits, batch["start_positions"], batch["end_positions"]) / 10


@dataclasses.dataclass
class Scaled:
    """A fraction of the usual loss, by an object that has no hash."""

    factor: float

    def __call__(self, logits, batch):
        labels = batch["start_positions"], batch["end_positions"]
        return span_losses(logits, *labels) * self.factor


def trainer_of(tmp_path, windows, model=None, changes=None, **parts):
    settings = {"max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2} | (changes or {})
    return Trainer(
        tiny.model() if model is None else model,
        arguments(tmp_path, **settings),
        train_dataset=windows,
        **parts,
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def params(trainer):
    return jax.tree.leaves(nnx.state(trainer.model, nnx.Param))


# ---- loss ----------------------------------------------------------------------------------------


def test_an_own_loss_is_trained_on_and_reported(tmp_path, windows):
    """With SGD a tenth of the loss and ten times the rate give the same updates."""
    changes = {"optim": "sgd", "max_grad_norm": 0.0}
    usual = trainer_of(tmp_path, windows, changes=changes)
    changes["learning_rate"] = 1e-1
    own = trainer_of(tmp_path, windows, changes=changes, compute_loss_func=Scaled(0.1))
    usual.train()
    own.train()
    np.testing.assert_allclose(
        np.multiply(10, logged(own, "loss")), logged(usual, "loss"), rtol=1e-6
    )
    for expected, actual in zip(params(usual), params(own), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_eval_loss_is_the_mean_of_the_own_loss(tmp_path, windows):
    def masked(logits, batch):
        labels = batch["start_positions"], batch["end_positions"]
        return 3 * span_losses(logits, *labels, batch["attention_mask"])

    losses = [
        trainer_of(tmp_path, windows, **parts).evaluate(windows)["eval_loss"]
        for parts in ({}, {"compute_loss_func": masked})
    ]
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-6)


def test_a_loss_of_the_whole_batch_is_refused(tmp_path, windows):
    def mean(logits, batch):
        return tenth(logits, batch).mean()

    with pytest.raises(ValueError, match=r"compute_loss_func returned .* shape \(\); .* one loss"):
        trainer_of(tmp_path, windows, compute_loss_func=mean).train()


@pytest.mark.parametrize(
    ("parts", "changes", "message"),
    [
        (
            {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: 0},
            {},
            "parameter labels and num_items_in_batch of PyTorch's form.*JAX function",
        ),
        ({"compute_loss_func": 3}, {}, "compute_loss_func is 3; it must be a JAX function"),
        (
            {"compute_loss_func": tenth},
            {"label_smoothing_factor": 0.1},
            "label_smoothing_factor=0.1 has no effect together with compute_loss_func",
        ),
        ({"optimizers": optax.sgd(0.1)}, {}, "it must be a pair"),
        ({"optimizers": (object(), None)}, {}, "the optimizer is a builtins.object; pass an optax"),
        ({"optimizers": (None, 0.1)}, {}, "the schedule is a float; pass a function"),
        (
            {"optimizers": (optax.sgd(0.1), None)},
            {"shard_params": True},
            "shard_params=True: an own optimizer sees one shard",
        ),
        (
            {
                "optimizers": (optax.sgd(0.1), None),
                "optimizer_cls_and_kwargs": (optax.sgd, {"learning_rate": 0.1}),
            },
            {},
            "either optimizers or optimizer_cls_and_kwargs",
        ),
        ({"model_init": tiny.model}, {}, "either a model or model_init"),
    ],
)
def test_arguments_of_another_form_are_refused(tmp_path, windows, parts, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, windows, changes=changes, **parts)


def test_objects_of_pytorch_are_refused(tmp_path, windows):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install '.[parity]'")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    for parts, message in (
        ({"optimizers": (optimizer, None)}, "torch.optim.sgd.SGD; pass an optax"),
        ({"optimizers": (None, schedule)}, "the schedule is a ConstantLR"),
        ({"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})}, "SGD is a PyTorch"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer_of(tmp_path, windows, **parts)


# ---- optimizer and schedule ----------------------------------------------------------------------


def test_the_updates_of_an_optax_transformation_are_added(tmp_path, windows):
    """The same SGD by name, as a transformation and as its function with arguments."""
    sgd = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    usual = trainer_of(tmp_path, windows, changes=sgd)
    usual.train()
    for parts in (
        {"optimizers": (optax.sgd(1e-2), None)},
        {"optimizer_cls_and_kwargs": (optax.sgd, {"learning_rate": 1e-2})},
    ):
        own = trainer_of(tmp_path, windows, **parts)
        own.train()
        for expected, actual in zip(params(usual), params(own), strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-6)
        assert logged(own, "learning_rate") == []
    assert logged(usual, "learning_rate") == [1e-2, 1e-2]


def test_a_schedule_gives_the_rates_of_the_named_optimizer(tmp_path, windows):
    def halved(step):
        return 1e-2 / 2**step

    changes = {"optim": "sgd", "max_grad_norm": 0.0}
    scheduled = trainer_of(tmp_path, windows, changes=changes, optimizers=(None, halved))
    scheduled.train()
    assert logged(scheduled, "learning_rate") == [1e-2, 5e-3]
    # Beside an own optimizer, which has its own rate, it is only logged.
    optimizer = optax.sgd(optax.exponential_decay(1e-2, 1, 0.5))
    own = trainer_of(tmp_path, windows, optimizers=(optimizer, halved))
    own.train()
    assert logged(own, "learning_rate") == [1e-2, 5e-3]
    for expected, actual in zip(params(scheduled), params(own), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.slow
def test_optimizers_of_none_are_the_arguments(tmp_path, windows):
    usual = trainer_of(tmp_path, windows)
    none = trainer_of(tmp_path, windows, optimizers=(None, None))
    assert usual.train().training_loss == none.train().training_loss


# ---- model and logits ----------------------------------------------------------------------------


@pytest.mark.parametrize("takes_trial", [False, True])
def test_every_training_begins_with_a_new_model(tmp_path, windows, takes_trial):
    models = []

    def model_init(*trial):
        models.append(tiny.model())
        return models[-1]

    def with_trial(trial):
        return model_init()

    trainer = Trainer(
        None,
        arguments(tmp_path, max_steps=1),
        train_dataset=windows,
        model_init=with_trial if takes_trial else lambda: model_init(),
    )
    losses = [trainer.train().training_loss for _ in range(2)]
    assert losses[0] == losses[1]
    assert len(models) == 3
    assert trainer.model is models[-1]
    with pytest.raises(ValueError, match="needs a model, or model_init"):
        Trainer(None, arguments(tmp_path))


def test_preprocessed_logits_take_the_place_of_the_logits(tmp_path, windows):
    calls = []

    def best(logits, labels):
        assert all(isinstance(array, np.ndarray) for array in (*logits, *labels))
        calls.append(len(labels[0]))
        return tuple(array.argmax(axis=1) for array in logits)

    seen = []
    trainer = trainer_of(
        tmp_path,
        windows,
        preprocess_logits_for_metrics=best,
        compute_metrics=lambda prediction: seen.append(prediction.predictions) or {},
    )
    trainer.evaluate(windows)
    expected = Trainer(tiny.model(), arguments(tmp_path)).predict(windows).predictions
    for actual, logits in zip(seen[0], expected, strict=True):
        np.testing.assert_array_equal(actual, logits.argmax(axis=1))
    assert sum(calls) == len(windows)
    assert max(calls) == 16  # two rows on each of eight cores
    settings = {"search_settings": SearchSettings(False, 20, 30)}
    with pytest.raises(ValueError, match="preprocess_logits_for_metrics needs all logits"):
        QuestionAnsweringTrainer(
            tiny.model(), arguments(tmp_path), preprocess_logits_for_metrics=best, **settings
        )


@pytest.mark.slow
def test_an_own_loss_and_optimizer_are_resumed(tmp_path):
    """Bit for bit, as everything else."""
    parts = {"compute_loss_func": tenth, "optimizers": (optax.adam(1e-3), lambda step: 1e-3)}
    examples, tokenizer = tiny.examples(answerable=True), tiny.tokenizer()
    whole = trainer_in(tmp_path / "whole", examples, tokenizer, max_steps=2)
    assert whole._custom.loss is None
    runs = []
    for folder, resume in ((tmp_path / "a", None), (tmp_path / "b", tmp_path / "a/checkpoint-1")):
        trainer = QuestionAnsweringTrainer(
            tiny.model(hidden_dropout_prob=0.2),
            arguments(folder, max_steps=2, save_strategy="steps", save_steps=1),
            train_dataset=prepare_train_features(examples, tokenizer, **WINDOW),
            **parts,
        )
        trainer.train(resume_from_checkpoint=resume)
        runs.append(params(trainer))
    for expected, actual in zip(*runs, strict=True):
        np.testing.assert_array_equal(expected, actual)
