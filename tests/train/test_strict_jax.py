"""Everything runs where a script has JAX at its strictest."""

import jax
import numpy as np
import pytest
import tiny
from tiny_trainers import trainer_in
from transformers import TrainerCallback

from qa_flax import AutoModelForQuestionAnswering, LoraConfig, QuestionAnswerer, get_peft_model


@pytest.fixture(autouse=True)
def _strictest():
    """In all threads: as contexts, the settings would hold in this one only."""
    jax.config.update("jax_transfer_guard", "disallow")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    yield
    jax.config.update("jax_transfer_guard", None)
    jax.config.update("jax_numpy_dtype_promotion", "standard")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


class ReadsTheModel(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.norm = float(np.abs(np.asarray(model.state_dict()["qa_outputs.weight"])).sum())


SETTINGS = [
    {"packing": True, "ema_decay": 0.9, "gradient_accumulation_steps": 2},
    pytest.param(
        {"shard_params": True, "eval_strategy": "steps", "eval_steps": 2}, marks=pytest.mark.slow
    ),
    pytest.param(
        {"optim": "adafactor", "bf16": True, "label_smoothing_factor": 0.1}, marks=pytest.mark.slow
    ),
]


def test_the_settings_hold():
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        jax.numpy.array(np.ones(2))
    number = jax.device_put(np.ones(2, np.int32))
    with pytest.raises(jax.dtypes.TypePromotionError, match="strict"):
        number * 1.5


@pytest.mark.parametrize("settings", SETTINGS, ids=["packing", "shards", "bfloat16"])
def test_training_evaluation_and_resuming(tmp_path, tokenizer, settings):
    examples = tiny.examples(answerable=True)
    callback = ReadsTheModel()
    trainer = trainer_in(tmp_path, examples, tokenizer, [callback], **settings)
    trainer.train()
    assert callback.norm > 0
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(tmp_path / "model"))
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model")
    answer = QuestionAnswerer(model, tokenizer)(question="Who?", context="Ada Lovelace wrote it.")
    assert answer["answer"]


def test_adapters_and_calls_of_the_model(tmp_path, tokenizer):
    config = LoraConfig(r=2, target_modules=["query", "value"])
    model = get_peft_model(tiny.model(), config)
    trainer = trainer_in(tmp_path, tiny.examples(answerable=True), tokenizer, model=model)
    trainer.train()
    model.save_pretrained(tmp_path / "adapters")
    batch = {name: np.asarray(ids) for name, ids in tokenizer(["a b"], ["c d"]).items()}
    assert np.isfinite(np.asarray(trainer.model(**batch).start_logits)).all()
