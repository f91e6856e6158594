"""Dropout rates given as training arguments: in each family's config, and in its training."""

import json

import numpy as np
import pytest
import tiny
from cases import CASES
from tiny_families import family_model, family_windows
from tiny_trainers import arguments

from qa_flax import LoraConfig, Trainer, TrainingArguments, get_peft_model
from qa_flax.models.families import FAMILIES
from qa_flax.models.family import DROPOUT_RATES
from qa_flax.models.load_arguments import config_with_keywords
from qa_flax.train.checkpoints import ResumeError
from qa_flax.train.model_arguments import apply_model_arguments, check_model_arguments

families = pytest.mark.parametrize("family", sorted(FAMILIES))
WITH_HEAD_DROPOUT = ("distilbert", "modernbert")
WITH_ONE_RATE = ("t5", "mt5")  # the same for embeddings, layers and attention weights


def rates_of(family):
    if family in WITH_ONE_RATE:
        return DROPOUT_RATES[:1]
    return DROPOUT_RATES if family in WITH_HEAD_DROPOUT else DROPOUT_RATES[:2]


@families
def test_arguments_and_keywords_of_from_pretrained_agree(family):
    model = family_model(family)
    for rate in DROPOUT_RATES:
        args = TrainingArguments(**{rate: 0.37})
        if rate not in rates_of(family):
            message = f"{rate}=0.37: .*ForQuestionAnswering has no such dropout"
            with pytest.raises(ValueError, match=f"^{message}"):
                check_model_arguments(args, model)
            with pytest.raises(ValueError, match=f"^from_pretrained: {message}"):
                config_with_keywords(model.config, {rate: 0.37}, FAMILIES[family])
            continue
        expected = config_with_keywords(model.config, {rate: 0.37}, FAMILIES[family])
        before = model.config.to_dict()
        apply_model_arguments(args, model)
        assert model.config.to_dict() == expected.to_dict() != before
        apply_model_arguments(TrainingArguments(), model)
        assert model.config.to_dict() == before


def test_a_refusal_says_what_the_family_has(tmp_path):
    message = (
        "classifier_dropout=0.1: BertForQuestionAnswering has no such dropout; the dropout rates "
        "that it has: hidden_dropout_prob, attention_probs_dropout_prob; leave classifier_dropout "
        "out"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        Trainer(tiny.model(), arguments(tmp_path, classifier_dropout=0.1))


@pytest.mark.parametrize("name", DROPOUT_RATES)
@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), "0.1", True])
def test_values_outside_the_range_are_refused_when_the_arguments_are_built(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*: it must be at least 0 and below 1"):
        TrainingArguments(**{name: value})


def test_a_script_s_own_change_of_the_config_stays():
    model = tiny.model()
    apply_model_arguments(TrainingArguments(hidden_dropout_prob=0.3), model)
    apply_model_arguments(TrainingArguments(hidden_dropout_prob=0.4), model)
    assert model.config.hidden_dropout_prob == 0.4
    apply_model_arguments(TrainingArguments(), model)
    assert model.config.hidden_dropout_prob == 0.0
    apply_model_arguments(TrainingArguments(hidden_dropout_prob=0.3), model)
    model.config.hidden_dropout_prob = 0.2
    apply_model_arguments(TrainingArguments(), model)
    assert model.config.hidden_dropout_prob == 0.2
    base = tiny.model()
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["query"]))
    apply_model_arguments(TrainingArguments(hidden_dropout_prob=0.3), adapted)
    assert (base.config.hidden_dropout_prob, adapted.config.hidden_dropout_prob) == (0.0, 0.3)


def test_a_rate_that_part_of_the_model_does_not_read_is_reported(tmp_path, caplog):
    args = arguments(tmp_path, attention_probs_dropout_prob=0.1, hidden_dropout_prob=0.1)
    trainer = Trainer(family_model("big_bird"), args)
    lines = [r.getMessage() for r in caplog.records if "dropout" in r.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("attention_probs_dropout_prob=0.1: as in PyTorch, block sparse atte")
    caplog.clear()
    Trainer(tiny.model(), trainer.args)
    assert not [r for r in caplog.records if "dropout" in r.getMessage()]


def first_loss(folder, family, windows, **rates):
    """The loss of the first update, and that of an evaluation afterwards without any update."""
    args = arguments(folder, max_steps=1, logging_steps=1, learning_rate=0.0, **rates)
    full = {"attention_type": "original_full"} if family == "big_bird" else {}
    model = family_model(family, **full)
    trainer = Trainer(model, args, train_dataset=windows, eval_dataset=windows)
    trainer.train()
    trainer.save_model()
    saved = json.loads((folder / "config.json").read_text())
    return trainer.state.log_history[0]["loss"], trainer.evaluate()["eval_loss"], saved


@pytest.mark.slow
@families
def test_each_rate_changes_the_loss_in_training_only(tmp_path, family):
    windows = family_windows()
    # BigBird's head subtracts 1e6 from the null's logits: its loss would hide any other change.
    windows = windows.select(np.flatnonzero(np.array(windows["start_positions"]) > 0))
    plain, evaluated, _ = first_loss(tmp_path, family, windows)
    for rate in rates_of(family):
        dropped, same, saved = first_loss(tmp_path, family, windows, **{rate: 0.5})
        assert abs(dropped - plain) > 1e-3
        assert same == evaluated
        names = FAMILIES[family].own_names(rate)
        assert all(saved[name] == 0.5 for name in names)
    assert set(CASES) == set(FAMILIES)


@pytest.mark.slow
def test_a_run_is_resumed_with_the_same_rates(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    windows, trainers = family_windows(), []
    for rate in (0.3, 0.3, None):
        args = arguments(tmp_path, hidden_dropout_prob=rate, **settings)
        trainers.append(Trainer(tiny.model(), args, train_dataset=windows))
    whole, resumed, other = trainers
    whole.train()
    checkpoint = str(tmp_path / "checkpoint-2")
    resumed.train(resume_from_checkpoint=checkpoint)
    for one, same in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(same))
    message = r"model\.hidden_dropout_prob: 0\.3 in the checkpoint, 0\.0 now"
    with pytest.raises(ResumeError, match=message):
        other.train(resume_from_checkpoint=checkpoint)
