"""Evaluation of packed rows has the logits, answers and metrics of one window a row."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from tiny_trainers import compute_metrics, post_process

from qa_flax import (
    AutoModelForQuestionAnswering,
    QuestionAnsweringTrainer,
    TrainingArguments,
    prepare_validation_features,
)
from qa_flax.answers.spans import PADDING_LOGIT, SearchSettings
from qa_flax.data.features import make_windows
from qa_flax.device import parallel
from qa_flax.device.programs import eval_program
from qa_flax.device.step import weights_of
from qa_flax.train.eval_plan import eval_plan
from qa_flax.train.prediction import predict_windows, reduction

WINDOW = {"max_seq_length": 96, "doc_stride": 16}


@pytest.fixture(scope="module")
def examples():
    return tiny.repeated_examples(5)


def predictions(model, part, settings, packs, per_core=3):
    reduce_to = None if settings is None else reduction(settings)
    step = eval_program(nnx.graphdef(model), reduce_to)
    weights = parallel.put_replicas(weights_of(model))
    plan = eval_plan(part, per_core, packs)
    assert (plan.packed is not None) == packs
    return predict_windows(step, weights, part, per_core, settings, lambda: None, plan)


def test_packed_windows_have_the_logits_losses_and_candidates_of_separate_rows(examples):
    model = tiny.model()
    part = make_windows(examples, tiny.tokenizer(), labels=True, disable_tqdm=True, **WINDOW)
    apart, packed = (predictions(model, part, None, packs) for packs in (False, True))
    assert packed.tokens == apart.tokens == part.lengths.sum()
    assert packed.tokens / packed.positions > 0.75 > apart.tokens / apart.positions
    for ours, theirs in zip(packed.logits, apart.logits, strict=True):
        is_token = theirs != PADDING_LOGIT
        np.testing.assert_array_equal(ours != PADDING_LOGIT, is_token)
        scale = np.abs(theirs[is_token]).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(packed.losses, apart.losses, rtol=1e-4, atol=1e-5)
    for count in (3, 80):  # more than most windows have tokens
        settings = SearchSettings(True, count, 30, True)
        ours, theirs = (predictions(model, part, settings, packs).logits for packs in (True, False))
        for name in ("start_logits", "end_logits"):
            a, b = (getattr(x.tokens, name) for x in (ours, theirs))
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
        is_real = theirs.tokens.start_logits != PADDING_LOGIT
        a, b = ours.tokens.starts[is_real], theirs.tokens.starts[is_real]
        assert (a != b).mean() < 0.02  # ties
        np.testing.assert_allclose(ours.null_starts, theirs.null_starts, rtol=0, atol=1e-4)


def test_a_window_with_nonfinite_logits_does_not_spoil_its_neighbours(examples):
    model = tiny.model()
    part = make_windows(examples, tiny.tokenizer(), labels=True, disable_tqdm=True, **WINDOW)
    spoiled = AutoModelForQuestionAnswering.from_config(model.config)
    spoiled.set_params(weights_of(model).params)
    table = spoiled.encoder.embeddings.word.embedding
    token = int(part.features().input_ids[0, 3])
    table[...] = table[...].at[token].set(jnp.nan)
    has_token = (part.features().input_ids == token).any(axis=1)
    assert 0 < has_token.sum() < len(part)
    result = predictions(spoiled, part, None, True)
    is_finite = np.isfinite(result.logits[0]).all(axis=1)
    np.testing.assert_array_equal(is_finite, ~has_token)
    assert result.nonfinite == has_token.sum()


def test_evaluation_has_the_metrics_of_separate_rows(tmp_path, examples):
    features = prepare_validation_features(examples, tiny.tokenizer(), **WINDOW)
    metrics = {}
    for packing in (None, False, True):
        folder = tmp_path / str(packing)
        trainer = QuestionAnsweringTrainer(
            tiny.model(),
            TrainingArguments(
                str(folder), packing=packing, per_device_eval_batch_size=3, report_to=[]
            ),
            eval_dataset=features,
            eval_examples=examples,
            post_process_function=post_process,
            compute_metrics=compute_metrics,
        )
        metrics[packing] = trainer.evaluate()
        metrics[packing] = {
            name: value
            for name, value in metrics[packing].items()
            if not name.endswith(("time", "per_second"))
        }
    assert "eval_fill" not in metrics[None]
    assert metrics[True].pop("eval_fill") > metrics[False].pop("eval_fill")
    for name, value in metrics[None].items():
        assert metrics[False][name] == value
        assert metrics[True][name] == pytest.approx(value, rel=1e-4), name
