"""`prepare_*` as the function of `Dataset.map` gives what it gives for the whole data set."""

import functools
import logging
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import tiny

from qa_flax.data.examples import ExampleError
from qa_flax.data.features import prepare_train_features, prepare_validation_features
from qa_flax.data.windows import COLUMNS, Features

WINDOW = {"max_seq_length": 64, "doc_stride": 16}
PREPARE = (prepare_train_features, prepare_validation_features)


@pytest.fixture(scope="module")
def rows():
    """As `datasets` gives them, not yet checked; some have no answer."""
    return datasets.Dataset.from_list(tiny.rows())


def mapped(dataset, function, batch_size=5, columns=None, **settings):
    return dataset.map(
        function,
        batched=True,
        batch_size=batch_size,
        remove_columns=dataset.column_names,
        fn_kwargs={"tokenizer": tiny.tokenizer()} | WINDOW | settings,
    )


def assert_equal(actual, expected):
    assert set(actual.column_names) == set(expected.column_names)
    actual, expected = Features.from_dataset(actual), Features.from_dataset(expected)
    assert actual.example_ids == expected.example_ids
    for field in COLUMNS.keys() - {"example_ids"}:
        if (array := getattr(expected, field)) is not None:
            np.testing.assert_array_equal(getattr(actual, field), array, err_msg=field)


TRAIN, VALIDATION = PREPARE
CASES = [
    (TRAIN, "right", {}),
    (VALIDATION, "left", {"disable_tqdm": True}),
    (VALIDATION, "right", {"pad_to_max_length": False, "max_seq_length": 128}),
    pytest.param(TRAIN, "left", {}, marks=pytest.mark.slow),
    pytest.param(VALIDATION, "right", {}, marks=pytest.mark.slow),
    pytest.param(
        TRAIN,
        "right",
        {"max_seq_length": 30, "doc_stride": 4, "long_questions": "truncate"},
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("function", "padding_side", "settings"), CASES)
def test_map_gives_the_windows_of_the_whole_data_set(rows, function, padding_side, settings):
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = padding_side
    expected = function(rows, tokenizer, **WINDOW | {"disable_tqdm": True} | settings)
    actual = mapped(rows, function, 5, **settings, tokenizer=tokenizer)
    assert_equal(actual, expected)
    inside = [pair is not None for pair in actual[0]["offset_mapping"]]
    assert inside == [pair != [-1, -1] for pair in expected[0]["offset_mapping"]][: len(inside)]
    assert len(actual) > len(rows)


def test_columns_are_the_same_for_every_batch(rows):
    """Whether or not this batch has an answer, or padding on the left before the CLS token."""
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    unanswerable = rows[:2] | {"answers": [{"text": [], "answer_start": []}] * 2}
    names = [
        set(prepare_validation_features(batch, tokenizer, 20, 2))
        for batch in (rows[:8], unanswerable)
    ]
    assert names[0] == names[1] >= {"cls_index", "start_positions", "end_positions"}
    without = {name: values for name, values in rows[:2].items() if name != "answers"}
    assert "start_positions" not in prepare_validation_features(without, tokenizer, **WINDOW)
    settings = WINDOW | {"labels": False}
    assert "start_positions" not in prepare_validation_features(rows[:2], tokenizer, **settings)


@pytest.mark.parametrize("kind", ["numpy", "partial", "transform", "streamed"])
def test_batches_of_other_kinds(rows, kind):
    function = functools.partial(prepare_train_features, tokenizer=tiny.tokenizer(), **WINDOW)
    expected = function(rows, disable_tqdm=True)
    if kind == "transform":
        batch = rows.with_transform(function)[2:9]
        ids = [f"q{n}" for n in range(2, 9)]
        expected = expected.filter(lambda row: row["example_id"] in ids)
        assert_equal(datasets.Dataset.from_dict(batch), expected)
        return
    rows = rows.with_format("numpy") if kind == "numpy" else rows
    names = rows.column_names
    source = rows.to_iterable_dataset() if kind == "streamed" else rows
    actual = source.map(function, batched=True, batch_size=5, remove_columns=names)
    assert_equal(datasets.Dataset.from_list(list(actual)), expected)


@pytest.mark.slow
def test_batch_sizes_and_the_cache(rows, tmp_path):
    rows.to_parquet(tmp_path / "rows.parquet")
    stored = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path), split="train"
    )
    expected = prepare_train_features(rows, tiny.tokenizer(), **WINDOW, disable_tqdm=True)
    changes = [{}, {}, {"load_from_cache_file": False}, {"batch_size": 1}, {"batch_size": None}]
    runs = [
        stored.map(
            prepare_train_features,
            **{"batched": True, "batch_size": 3, "remove_columns": stored.column_names} | more,
            fn_kwargs={"tokenizer": tiny.tokenizer(), **WINDOW},
        )
        for more in changes
    ]
    for run in runs:
        assert_equal(run, expected)
    assert runs[0].cache_files == runs[1].cache_files, "not found in the cache"


@pytest.mark.slow
def test_several_processes(rows, tmp_path):
    """In a process without JAX, which must not be forked."""
    names = ("rows", "mapped")
    rows.save_to_disk(tmp_path / "rows")
    script = f"""
import datasets, tiny
from qa_flax import prepare_train_features
paths = [{str(tmp_path)!r} + "/" + name for name in {names}]
rows = datasets.load_from_disk(paths[0])
settings = dict(tokenizer=tiny.tokenizer(), **{WINDOW})
mapped = rows.map(prepare_train_features, batched=True, batch_size=2, num_proc=2,
                  remove_columns=rows.column_names, fn_kwargs=settings)
mapped.save_to_disk(paths[1])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    expected = prepare_train_features(rows, tiny.tokenizer(), **WINDOW, disable_tqdm=True)
    assert_equal(datasets.load_from_disk(tmp_path / "mapped"), expected)


def test_a_notice_is_logged_for_the_first_batch_only(rows, caplog):
    misaligned = [
        row | {"answers": {"text": ["zebra"], "answer_start": [0]}, "question": "Who? " * 60}
        for row in rows.select(range(5))
    ]
    misaligned = datasets.Dataset.from_list(misaligned)
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 64
    for doc_stride in (16, 17):  # each `map` has its own notices
        caplog.clear()
        settings = {"max_seq_length": 100, "doc_stride": doc_stride, "tokenizer": tokenizer}
        mapped(misaligned, prepare_train_features, 1, **settings)
        messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(messages) == 3
        assert "the batch: answers not at their answer_start: 1 of 1 (100%)" in messages[0]
        assert messages[1].startswith("max_seq_length=100 exceeds the model's limit of 64 tokens")
        assert "questions are too long for the window and are truncated" in messages[2]
        assert all(
            "(Later batches are not reported; load_examples" in message for message in messages
        )


def without(rows, name):
    return rows.remove_columns(name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda rows, f, t: rows.map(f, fn_kwargs={"tokenizer": t}),
            "got a single example, but a batch is required: call Dataset.map with batched=True",
        ),
        (lambda rows, f, t: f(rows[0], t), "got a single example"),
        (lambda rows, f, t: f({}, t), "the batch has none of the columns id, question"),
        (
            lambda rows, f, t: f(rows[:3] | {"id": ["a"]}, t),
            "the columns of the batch differ in length: id 1, question 3",
        ),
        (
            lambda rows, f, t: f({k: 2 * v for k, v in rows[:2].items()}, t),
            r'id was already used by an earlier row: 2 \(ids "q0", "q1"\)',
        ),
        (
            lambda rows, f, t: prepare_validation_features(without(rows, "id")[:2], t),
            r'2 of 2 examples have no id, .* such as ds.add_column\("id"',
        ),
        (
            lambda rows, f, t: f(rows[:2] | {"id": ["a", None]}, t),
            "1 of 2 examples have no id",
        ),
        (
            lambda rows, f, t: prepare_train_features(without(rows, "answers")[:2], t),
            "missing column answers",
        ),
    ],
)
@pytest.mark.parametrize("function", PREPARE)
def test_batches_that_cannot_be_used_are_refused(rows, function, call, message):
    with pytest.raises(ExampleError, match=message):
        call(rows, function, tiny.tokenizer())


def test_training_needs_no_ids(rows):
    actual = mapped(without(rows, "id"), prepare_train_features)
    expected = mapped(rows, prepare_train_features).remove_columns("example_id")
    assert_equal(actual, expected)


def test_left_padding_to_the_longest_window_needs_the_whole_data_set(rows):
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="needs all examples at once if the tokenizer pads on the"):
        mapped(rows, prepare_train_features, pad_to_max_length=False, tokenizer=tokenizer)
