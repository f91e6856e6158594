"""`reinit_layers`: fresh values for the last layers, once for each model."""

import numpy as np
import pytest
import tiny
from cases import CASES
from flax import nnx
from tiny_families import family_model, family_windows
from tiny_trainers import arguments

from qa_flax import LoraConfig, Trainer, get_peft_model
from qa_flax.models.depth import depth_of
from qa_flax.models.model import family_of
from qa_flax.train.checkpoints import ResumeError
from qa_flax.train.reinitialize import reinitialize


def values(model):
    return {p.path: np.array(p) for p in model.parameters()}


@pytest.mark.parametrize(
    "family",
    ["bert", *(pytest.param(f, marks=pytest.mark.slow) for f in ("bart", "albert", "modernbert"))],
)
def test_the_last_layer_gets_the_family_s_initial_values(tmp_path, family, caplog):
    model = family_model(family, seed=3)
    for parameter in model.parameters():
        parameter.data = np.array(parameter) + 1.0
    before, depth = values(model), depth_of(model)
    reinitialize(arguments(tmp_path, reinit_layers=1, seed=7), model)
    assert "reinit_layers=1: the last layers are initialized anew from seed 7" in caplog.text
    config = family_of(model.config).read_config(model.config.to_dict())
    deviations = []
    for path, array in values(model).items():
        if depth.levels[path] != depth.layers:
            np.testing.assert_array_equal(array, before[path])
        elif path[-1] in ("scale", "bias"):
            assert (array == float(path[-1] == "scale")).all()
        else:
            deviations.append(array.std() / config.initializer_range)
    assert (
        0.2 < min(deviations) <= max(deviations) < 1.3
    )  # ModernBERT's `out` and `down` are smaller
    same, other = family_model(family), family_model(family, seed=9)
    reinitialize(arguments(tmp_path, reinit_layers=1, seed=7), same)
    reinitialize(arguments(tmp_path, reinit_layers=1, seed=8), other)
    kernel = next(p for p, n in depth.levels.items() if n == depth.layers and p[-1] == "kernel")
    np.testing.assert_array_equal(values(same)[kernel], values(model)[kernel])
    assert not np.array_equal(values(other)[kernel], values(model)[kernel])


def test_what_would_stay_random_or_does_not_exist_is_refused(tmp_path):
    def refused(message, model, **settings):
        with pytest.raises(ValueError, match=message):
            Trainer(model, arguments(tmp_path, **settings))

    message = "reinit_layers=2: this bert model has 1 layers; lower reinit_layers"
    refused(message, tiny.model(), reinit_layers=2)
    shared = family_model("albert", num_hidden_layers=6, num_hidden_groups=1)
    refused("reinit_layers=2: albert shares the weights of its layers", shared, reinit_layers=2)
    adapted = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["query"]))
    refused("reinit_layers=1: the layers of a model with LoRA", adapted, reinit_layers=1)
    frozen = "reinit_layers=1: parameters of the last 1 layers are frozen"
    refused(frozen, tiny.model(), reinit_layers=1, freeze_layers="0")
    model = tiny.model()
    model.bert.encoder.layer[0].output.requires_grad_(False)
    refused(frozen, model, reinit_layers=1)
    with pytest.raises(ValueError, match=r"reinit_layers=-1: it must be a whole number"):
        arguments(tmp_path, reinit_layers=-1)


def is_fresh(trainer):
    """Whether a norm's scale has its initial value, which these tests change before training."""
    return (np.asarray(trainer.model.bert.encoder.layer[0].output.LayerNorm.weight) == 1.0).all()


def model_with_marked_layer():
    model = tiny.model(hidden_dropout_prob=0.2)
    model.bert.encoder.layer[0].output.LayerNorm.weight.data = np.full(32, 2.0, np.float32)
    return model


@pytest.mark.slow
def test_it_happens_once_for_each_model_and_not_when_a_run_is_resumed(tmp_path, caplog):
    windows = family_windows()
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "reinit_layers": 1}
    still = {"learning_rate": 0.0, "max_steps": 1, "save_strategy": "no"}

    def trainer_of(model=None, **changes):
        args = arguments(tmp_path, **(settings | changes))
        return Trainer(model or model_with_marked_layer(), args, train_dataset=windows)

    trainer = trainer_of(**still)
    assert not is_fresh(trainer)
    trainer.train()
    assert is_fresh(trainer)
    trainer.model.bert.encoder.layer[0].output.LayerNorm.weight.data *= 3
    trainer.train()
    assert not is_fresh(trainer)
    caplog.clear()
    trainer_of(trainer.model, **still).train()
    assert not is_fresh(trainer)
    assert "reinit" not in caplog.text
    whole = trainer_of()
    whole.train()
    resumed = trainer_of()
    checkpoint = str(tmp_path / "checkpoint-2")
    resumed.train(resume_from_checkpoint=checkpoint)
    for one, same in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(same))
    resumed.args.learning_rate = 0.0
    resumed.train()
    for one, same in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(same))
    for name, value, before in (("reinit_layers", 0, 1), ("layerwise_lr_decay", 0.5, None)):
        message = f"{name}: {before} in the checkpoint, {value or None} now"
        with pytest.raises(ResumeError, match=message):
            trainer_of(**{name: value}).train(resume_from_checkpoint=checkpoint)


@pytest.mark.slow
def test_each_new_model_of_model_init_gets_fresh_layers(tmp_path):
    args = arguments(tmp_path, max_steps=1, learning_rate=0.0, reinit_layers=1)
    trainer = Trainer(args=args, model_init=model_with_marked_layer, train_dataset=family_windows())
    for _ in range(2):
        trainer.train()
        assert is_fresh(trainer)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(CASES))
def test_every_family_trains_with_a_fresh_last_layer(tmp_path, family):
    model = family_model(family)
    depth, before = depth_of(model), values(model)
    args = arguments(tmp_path, max_steps=1, learning_rate=0.0, reinit_layers=1, seed=5)
    Trainer(model, args, train_dataset=family_windows()).train()
    trained = {path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    for path, array in values(model).items():
        is_last = depth.levels[path] == depth.layers and path in trained
        if not is_last or not path[-1].endswith(("bias", "scale", "gain")):
            assert np.array_equal(array, before[path]) == (not is_last), path
