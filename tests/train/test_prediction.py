"""Candidates chosen on the cores give the same answers, files and losses as all logits."""

import threading

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from qa_flax.answers.postprocess import find_answers
from qa_flax.answers.spans import PADDING_LOGIT, Candidates, SearchSettings, top_tokens
from qa_flax.data.batches import eval_batches, eval_widths
from qa_flax.data.features import make_windows
from qa_flax.device import parallel, programs
from qa_flax.device.programs import eval_program
from qa_flax.device.step import Reduction, make_eval_step, reduce, weights_of
from qa_flax.models.qa import SpanLogits
from qa_flax.train.prediction import predict_windows, reduction


def predict(model, features, settings, per_core=2):
    reduce_to = None if settings is None else reduction(settings)
    step = eval_program(nnx.graphdef(model), reduce_to)
    weights = parallel.put_replicas(weights_of(model))
    return predict_windows(step, weights, features, per_core, settings, lambda: None)


def windows(side, stride=16):
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = side
    lengths = {"max_seq_length": 96, "doc_stride": stride}
    return make_windows(tiny.examples(), tokenizer, labels=True, disable_tqdm=True, **lengths)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "settings",
    [
        SearchSettings(False, 20, 30, True),
        pytest.param(SearchSettings(True, 20, 30, True), marks=pytest.mark.slow),
        SearchSettings(True, 12, 60, False),
        pytest.param(SearchSettings(True, 80, 30, False), marks=pytest.mark.slow),
    ],
)
def test_candidates_give_the_same_answers_and_files_as_all_logits(tmp_path, side, settings):
    model, features, examples = tiny.model(), windows(side), tiny.examples()
    assert len({-(-int(n) // 64) for n in features.lengths}) > 1  # several widths
    full, reduced = predict(model, features, None), predict(model, features, settings)
    np.testing.assert_array_equal(full.losses, reduced.losses)
    assert isinstance(reduced.logits, Candidates)
    answers = []
    for name, predictions in (("full", full), ("reduced", reduced)):
        (tmp_path / name).mkdir()
        answers.append(
            find_answers(
                examples, features, predictions.logits, settings, 0.5, output_dir=tmp_path / name
            )
        )
    assert answers[0] == answers[1]
    assert len(set(answers[0].best_texts.values() or answers[0].texts.values())) > 5
    for file in (tmp_path / "full").iterdir():
        assert (tmp_path / "reduced" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("finite", [False, True])
def test_reduce_chooses_the_same_tokens_as_top_tokens(rng, finite):
    """In the same order, with ties, both zeros, infinities and NaN."""
    values = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -2.5]
    logits = rng.choice(np.array(values, np.float32), (2, 200, 40))
    logits[:, 100:] = np.round(rng.normal(0, 2, (2, 100, 40)))
    length = rng.integers(1, 41, 200)
    mask = (np.arange(40) < length[:, None]).astype(np.int32)
    nulls = rng.integers(-2, 42, 200).astype(np.int32)
    best = jax.jit(reduce, static_argnums=3)(
        SpanLogits(*logits), mask, nulls, Reduction(7, PADDING_LOGIT, finite)
    )
    if finite:
        logits = np.nan_to_num(logits, nan=-1e4, posinf=1e4, neginf=-1e4)
    logits = np.where(mask > 0, logits, np.float32(PADDING_LOGIT))
    expected = top_tokens(*logits, 7)
    for name in ("starts", "ends", "start_logits", "end_logits"):
        np.testing.assert_array_equal(getattr(best, name), getattr(expected, name), err_msg=name)
    positions = nulls
    is_inside = (positions >= 0) & (positions < 40)
    for actual, rows in zip((best.null_starts, best.null_ends), logits, strict=True):
        expected = np.where(is_inside, rows[np.arange(200), positions % 40], PADDING_LOGIT)
        np.testing.assert_array_equal(actual, expected)


def test_candidates_are_a_tenth_of_the_bytes_of_all_logits():
    """At 384 tokens and the default of 20 candidates; bytes a window."""
    model = tiny.model(max_position_embeddings=384)
    features = make_windows(
        [{"id": "a", "question": "Q?", "context": "One. " * 600, "answers": []}],
        tiny.tokenizer(),
        labels=False,
        disable_tqdm=True,
    )
    sizes = []
    for settings in (None, SearchSettings(False, 20, 30)):
        reduce_to = None if settings is None else reduction(settings)
        step = jax.jit(make_eval_step(nnx.graphdef(model), reduce_to))
        batch = next(eval_batches(features, 1, 4, null_positions=0))
        output = step(weights_of(model), {k: v[0] for k, v in batch.arrays.items()})
        sizes.append(sum(array.nbytes for array in jax.tree.leaves(output)) / 4)
    assert sizes == [3073, 249]


@pytest.mark.parametrize("settings", [None, SearchSettings(True, 20, 30, False)])
def test_nonfinite_logits_are_logged_as_a_warning(caplog, settings):
    """The embedding of one token, which only some questions have, is NaN."""
    model, features = tiny.model(), windows("right").features()
    token = features.input_ids[3, 1]
    table = model.encoder.embeddings.word.embedding
    table[...] = table[...].at[token].set(np.nan)
    predict(model, features, settings)
    rows = np.flatnonzero((features.input_ids == token).any(axis=1))
    assert 0 < len(rows) < len(features)
    assert f"logits of {len(rows)} of {len(features)} windows are not finite" in caplog.text
    assert f'"{features.example_ids[rows[0]]}"' in caplog.text


def test_too_few_candidates_are_an_error():
    model, features = tiny.model(), windows("right")
    few = predict(model, features, SearchSettings(False, 5, 30)).logits
    with pytest.raises(ValueError, match="n_best_size is 20, but only the 5 best starts"):
        find_answers(tiny.examples(), features, few, SearchSettings(False, 20, 30))
    assert find_answers(tiny.examples(), features, few, SearchSettings(False, 3, 30)).texts


def test_each_width_is_compiled_once_and_ahead():
    model, features, threads = tiny.model(), windows("right"), []

    def count(name, seconds, **kwargs):
        is_step = "one_core" in kwargs.get("fun_name", "")
        if is_step and name == "/jax/core/compile/backend_compile_duration":
            threads.append(threading.current_thread().name.split("_0")[0])

    programs.clear()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for _ in range(2):
            predict(model, features, None, per_core=1)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert set(eval_widths(features, 8, 1)) == {64, 96}
    assert threads == ["qa_flax compiling"] * 2
