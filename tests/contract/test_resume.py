"""A run that is stopped and resumed is bit-for-bit identical to an uninterrupted run."""

import json

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from tiny_trainers import assert_same_run, copy_until, trainer_in
from transformers import EarlyStoppingCallback

from qa_flax import LoraConfig, get_peft_model
from qa_flax.train import checkpoints

CASES = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "drop_last, by length": {
        "dataloader_drop_last": True,
        "train_sampling_strategy": "group_by_length",
        "data_seed": 7,
    },
    "evaluation and best model": {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "f1",
        "save_total_limit": 20,
    },
    "by epoch": {"eval_strategy": "epoch", "logging_strategy": "epoch"},
    "plateau": {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "f1",
        "lr_scheduler_type": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5},
    },
    "lion": {"optim": "lion_32bit", "learning_rate": 1e-4, "include_num_input_tokens_seen": "all"},
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def examples():
    return tiny.examples(answerable=True)


CASES["average"] = {"ema_decay": 0.3}
CASES["evaluation, best model, accumulation and average"] = (
    CASES["accumulation"] | CASES["evaluation and best model"] | CASES["average"]
)
# The other cases are slow tests.
DEFAULT = ("evaluation, best model, accumulation and average",)
CASE_PARAMS = [pytest.param(n, marks=[] if n in DEFAULT else [pytest.mark.slow]) for n in CASES]


@pytest.mark.parametrize("case", CASE_PARAMS)
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path, examples, tokenizer, case):
    uninterrupted = trainer_in(tmp_path / "uninterrupted", examples, tokenizer, **CASES[case])
    uninterrupted.train()
    steps = uninterrupted.state.max_steps
    assert steps >= 3
    for step in {steps // 3, steps - 1}:
        folder = tmp_path / f"stopped-{step}"
        copy_until(tmp_path / "uninterrupted", folder, step)
        resumed = trainer_in(folder, examples, tokenizer, **CASES[case])
        resumed.train(resume_from_checkpoint=True)
        assert_same_run(uninterrupted, resumed)


def test_resuming_from_the_last_checkpoint_trains_no_more(tmp_path, examples, tokenizer):
    """Also if `max_steps` ends the training within an epoch, whose other batches are left."""
    changes = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    folder = tmp_path / "run"
    uninterrupted = trainer_in(folder, examples, tokenizer, **changes)
    uninterrupted.train()
    assert uninterrupted.state.epoch % 1
    resumed = trainer_in(folder, examples, tokenizer, **changes)
    output = resumed.train(resume_from_checkpoint=True)
    assert output.global_step == 4
    assert_same_run(uninterrupted, resumed)


def with_adapters(seed=0, **changes):
    settings = {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.2} | changes
    return get_peft_model(tiny.model(seed, hidden_dropout_prob=0.2), LoraConfig(**settings))


@pytest.mark.slow
def test_a_resumed_run_of_adapters_equals_an_uninterrupted_run(tmp_path, examples, tokenizer):
    """The checkpoints hold only the adapters. The best ones are loaded at the end."""
    changes = CASES["evaluation and best model"] | {"max_steps": 3, "learning_rate": 1e-2}
    uninterrupted = trainer_in(
        tmp_path / "uninterrupted", examples, tokenizer, model=with_adapters(), **changes
    )
    uninterrupted.train()
    folder = tmp_path / "stopped"
    copy_until(tmp_path / "uninterrupted", folder, 1)
    names = {path.name for path in (folder / "checkpoint-1").iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "train_state", "run.json"}
    assert not names & {"config.json", "model.safetensors"}
    resumed = trainer_in(folder, examples, tokenizer, model=with_adapters(), **changes)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(uninterrupted, resumed)
    best = tmp_path / "uninterrupted" / f"checkpoint-{uninterrupted.state.best_global_step}"
    loaded = tiny.model(hidden_dropout_prob=0.2).with_adapter(best)
    states = (nnx.state(model) for model in (loaded, uninterrupted.model))
    jax.tree.map(np.testing.assert_array_equal, *states)

    for model, message in (
        (with_adapters(seed=1), "fixed_digest: "),
        (with_adapters(lora_alpha=9), "lora.lora_alpha: 8 in the checkpoint, 9 now"),
        (with_adapters(lora_dropout=0.3), "lora.lora_dropout: 0.2 in the checkpoint"),
        (tiny.model(hidden_dropout_prob=0.2), "does not fit the model and the optimizer"),
    ):
        other = trainer_in(folder, examples, tokenizer, model=model, **changes)
        with pytest.raises(ValueError, match=message):
            other.train(resume_from_checkpoint=folder / "checkpoint-1")


@pytest.mark.parametrize("by", ["argument", pytest.param("callback", marks=pytest.mark.slow)])
def test_a_resumed_run_stops_early_at_the_same_step(tmp_path, examples, tokenizer, caplog, by):
    """The checkpoint has the count of evaluations without improvement."""
    changes = {
        "learning_rate": 0.0,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "f1",
    }

    def trainer(folder):
        if by == "argument":
            return trainer_in(folder, examples, tokenizer, early_stopping_patience=3, **changes)
        callback = EarlyStoppingCallback(early_stopping_patience=3)
        return trainer_in(folder, examples, tokenizer, [callback], **changes)

    uninterrupted = trainer(tmp_path / "uninterrupted")
    uninterrupted.train()
    assert uninterrupted.state.global_step == 4 < uninterrupted.state.max_steps
    for step in (2, 4):
        copy_until(tmp_path / "uninterrupted", tmp_path / f"{step}", step)
        resumed = trainer(tmp_path / f"{step}")
        caplog.clear()
        resumed.train(resume_from_checkpoint=True)
        assert "Stopped at step 4 of 6: eval_f1 has not improved for 3 evaluations; " in caplog.text
        assert "the model is that of step 1 (eval_f1 " in caplog.text
        assert_same_run(uninterrupted, resumed)


def test_resuming_another_run_is_an_error_that_lists_the_differences(tmp_path, examples, tokenizer):
    trainer_in(tmp_path, examples, tokenizer, max_steps=1).train()
    path = tmp_path / "checkpoint-1"
    for changes, message in (
        ({"seed": 5}, "seed: 42 in the checkpoint, 5 now"),
        ({"gradient_accumulation_steps": 2}, "rows_per_update: 8 in the checkpoint, 16 now"),
        ({"model": tiny.model(hidden_dropout_prob=0.1)}, "hidden_dropout_prob"),
    ):
        other = trainer_in(tmp_path, examples, tokenizer, **({"max_steps": 2} | changes))
        with pytest.raises(ValueError, match=message) as error:
            other.train(resume_from_checkpoint=path)
        assert "accept_changes" in str(error.value)
    fewer = trainer_in(tmp_path, examples.select(range(5)), tokenizer, max_steps=2, seed=5)
    with pytest.raises(ValueError, match="windows_digest") as error:
        fewer.train(resume_from_checkpoint=path)
    assert all(name in str(error.value) for name in ("windows:", "seed:"))
    fewer.train(resume_from_checkpoint=path, accept_changes=True)
    assert fewer.state.global_step == 2


def test_resuming_with_another_optimizer_is_an_error(tmp_path, examples, tokenizer):
    trainer_in(tmp_path, examples, tokenizer, max_steps=1).train()
    other = trainer_in(tmp_path, examples, tokenizer, max_steps=2, optim="lion_32bit")
    with pytest.raises(
        ValueError, match=r"does not fit the model and the optimizer \(\d+ differences\)"
    ):
        other.train(resume_from_checkpoint=True)


def test_a_missing_or_incomplete_checkpoint_is_an_error(tmp_path, examples, tokenizer):
    trainer = trainer_in(tmp_path / "none", examples, tokenizer)
    with pytest.raises(ValueError, match="no checkpoint-<step> in"):
        trainer.train(resume_from_checkpoint=True)
    trainer_in(tmp_path, examples, tokenizer, max_steps=1, save_only_model=True).train()
    with pytest.raises(ValueError, match=r"has no train_state, run.json.*save_only_model"):
        trainer.train(resume_from_checkpoint=tmp_path / "checkpoint-1")


def test_a_checkpoint_is_complete_or_absent(tmp_path, monkeypatch, examples, tokenizer):
    trainer = trainer_in(tmp_path, examples, tokenizer, max_steps=3)

    def fail_at_step_two(folder, state, run, save=checkpoints.save_state):
        save(folder, state, run)
        if trainer.state.global_step == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_state", fail_at_step_two)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1"]
    monkeypatch.undo()
    resumed = trainer_in(tmp_path, examples, tokenizer, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


def test_the_best_model_is_retained_and_loaded(tmp_path, examples, tokenizer):
    """The second of four scores is the best, and the next is NaN."""
    scores = iter([1.0, 5.0, float("nan"), 3.0, 2.0])
    trainer = trainer_in(
        tmp_path,
        examples,
        tokenizer,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        save_total_limit=1,
    )
    trainer.compute_metrics = lambda scored: {"score": next(scores)}
    trainer.train()
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (5.0, 2)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    best = type(trainer.model).from_pretrained(tmp_path / "checkpoint-2")
    jax.tree.map(np.testing.assert_array_equal, *(nnx.split(m)[1] for m in (trainer.model, best)))
    history = [h["eval_score"] for h in trainer.state.log_history if "eval_score" in h]
    assert history[:2] == [1.0, 5.0]


def test_save_strategy_best_saves_only_improvements(tmp_path, examples, tokenizer):
    scores = iter([3.0, 1.0, 4.0, 2.0])
    trainer = trainer_in(
        tmp_path,
        examples,
        tokenizer,
        max_steps=4,
        save_strategy="best",
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    trainer.compute_metrics = lambda scored: {"score": next(scores)}
    trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}


def test_an_impossible_best_metric_is_an_error_before_training(tmp_path, examples, tokenizer):
    trainer = trainer_in(
        tmp_path, examples, tokenizer, eval_strategy="steps", metric_for_best_model="f1"
    )
    trainer.compute_metrics = None
    with pytest.raises(ValueError, match=r"metric_for_best_model='f1': .* only eval_loss"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_checkpoint_is_a_loadable_model_and_records_its_run(tmp_path, examples, tokenizer):
    trainer = trainer_in(tmp_path, examples, tokenizer, max_steps=2, save_steps=0.5)
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.json"}
    assert names >= {"train_state", "run.json"}
    run = json.loads((folder / "run.json").read_text())
    assert run["conditions"]["seed"] == 42
    assert run["conditions"]["rows_per_update"] == 8
