"""Numbers and their ranges, in the functions of Python that take them."""

import re

import numpy as np
import pytest
import tiny

from qa_flax import (
    AutoModelForQuestionAnswering,
    LoraConfig,
    fold_examples,
    get_peft_model,
    postprocess_qa_predictions,
    prepare_train_features,
    prepare_validation_features,
    split_examples,
    squad_metric,
)
from qa_flax.ranges import BELOW_1, NUMBER, SEED, Range, at_least, check_numbers

NAN, INFINITE = float("nan"), float("inf")


def prepare(function, **settings):
    window = {"max_seq_length": 64, "doc_stride": 16} | settings
    return function(tiny.examples(), tiny.tokenizer(), **window, disable_tqdm=True)


def post_process(**settings):
    return postprocess_qa_predictions([], [], (np.zeros((0, 2)), np.zeros((0, 2))), **settings)


def score(**settings):
    predictions = [{"id": "a", "prediction_text": ""}]
    return squad_metric(predictions, [{"id": "a", "answers": {"text": ["b"]}}], **settings)


def with_adapters(seed=0, **settings):
    config = LoraConfig(**({"target_modules": "all-linear"} | settings))
    return get_peft_model(tiny.model(), config, seed=seed)


# Values of other types are refused, too, but here the annotations of the functions do it.
CASES = {
    "max_seq_length": (lambda **k: prepare(prepare_train_features, **k), [0, -1]),
    "doc_stride": (lambda **k: prepare(prepare_validation_features, **k), [-1]),
    "n_best_size": (post_process, [0, 1.5, "20", NAN, None]),
    "max_answer_length": (post_process, [-1, 2.5, INFINITE]),
    "null_score_diff_threshold": (post_process, [NAN]),
    "no_answer_threshold": (score, [NAN]),
    "r": (with_adapters, [0, -1]),
    "lora_alpha": (with_adapters, [NAN]),
    "lora_dropout": (with_adapters, [1.0, -0.1, NAN]),
    "share": (lambda share: split_examples(tiny.examples(), share), [0.0, 1.0, NAN, -0.5]),
    "count": (lambda count: fold_examples(tiny.examples(), count), [0, 1]),
    "seed": (with_adapters, [-1, 2**32]),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, values) in CASES.items() for value in values]
)
def test_a_number_outside_its_range_is_refused_by_name(name, value):
    message = rf"^{name}( is |=){re.escape(repr(value))}[;:] it must be "
    with pytest.raises(ValueError, match=message):
        CASES[name][0](**{name: value})


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_the_seed_of_a_model_and_of_a_split_is_checked(seed):
    with pytest.raises(ValueError, match=r"^seed="):
        AutoModelForQuestionAnswering.from_config(tiny.model().config, seed=seed)
    with pytest.raises(ValueError, match=r"^seed="):
        split_examples(tiny.examples(), 0.5, seed=seed)


def test_ranges_contain_numbers_of_every_library():
    assert at_least(1).contains(np.int64(1))
    assert BELOW_1.contains(np.float32(0.5))
    assert SEED.contains(2**32 - 1)
    assert NUMBER.contains(-INFINITE)
    assert Range("above 0", lambda v: v > 0).or_none().contains(None)
    for wrong in (True, NAN, "1", [1], np.array([1, 2]), None):
        assert not NUMBER.contains(wrong)


def test_all_numbers_outside_their_ranges_are_named():
    with pytest.raises(ValueError, match=r"^a=-1: it must be .*; b='x': it must be a number$"):
        check_numbers({"a": at_least(0), "b": NUMBER, "c": SEED}, a=-1, b="x", c=3)
