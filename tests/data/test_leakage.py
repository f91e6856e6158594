"""Validation questions about contexts of the training set, found in texts and in windows."""

import datasets
import numpy as np
import pytest
import tiny

from qa_flax import load_examples, prepare_train_features, prepare_validation_features
from qa_flax.data.leakage import describe_shared_examples, describe_shared_windows

TEXT = "Ada Lovelace wrote the first program in 1843 Elbe Dresden Tokyo Kyoto sea oak"
WORDS = TEXT.split()


def rows_of(texts: list[int], first_id: int = 0, question: str = "Where is {}?") -> list[dict]:
    """A question about each text; a third of the texts need several windows."""
    rows = []
    for n, text in enumerate(texts, first_id):
        words = np.random.default_rng(text).choice(WORDS, 130 if text % 3 == 0 else 20)
        context = " ".join(words) + "."
        answers = {"text": [words[0]], "answer_start": [0]}
        name = " ".join(WORDS[: 1 + n % 5])
        row = {"id": f"q{n}", "question": question.format(name), "context": context}
        rows.append(row | {"answers": answers})
    return rows


def prepared(rows, prepare=prepare_validation_features, **settings):
    return prepare(load_examples(rows), tiny.tokenizer(), 96, 32, disable_tqdm=True, **settings)


TRAIN = rows_of(list(range(30)))
VALIDATION = rows_of([*range(100, 110), 3, 4, 5, 3], first_id=100, question="Who is {}?")
SHARED = "4 of 14 validation questions (ids q110, q111, q112, q113) are about contexts that are in"


def both_ways(train, validation):
    """What is described of the examples, and of the windows made in several ways."""
    yield describe_shared_examples(load_examples(train), load_examples(validation))
    windows = prepared(train, prepare_train_features), prepared(validation)
    yield describe_shared_windows(*windows)
    yield describe_shared_windows(windows[0], windows[1].to_list())
    yield describe_shared_windows(windows[0].remove_columns("example_id"), windows[1])
    batches = [load_examples(rows) for rows in (train, validation)]
    yield describe_shared_windows(
        *(
            batch.map(
                prepare,
                batched=True,
                batch_size=1000,
                remove_columns=batch.column_names,
                fn_kwargs={
                    "tokenizer": tiny.tokenizer(),
                    "max_seq_length": 96,
                    "doc_stride": 32,
                    "pad_to_max_length": False,
                },
            )
            for batch, prepare in zip(
                batches, (prepare_train_features, prepare_validation_features), strict=True
            )
        )
    )


def test_shared_contexts_are_counted_in_texts_and_in_windows_alike():
    lines = list(both_ways(TRAIN, VALIDATION))
    assert all(line is not None and line.startswith(SHARED) for line in lines), lines
    assert len(set(lines)) == 1
    assert "--validation_split" in lines[0]
    assert "themselves" not in lines[0]


def test_questions_that_are_in_the_training_set_themselves_are_counted():
    validation = [*rows_of([200, 201], first_id=300), TRAIN[7] | {"id": "a"}, TRAIN[9]]
    for line in both_ways(TRAIN, validation):
        assert line is not None
        assert line.startswith("2 of 4 validation questions (ids a, q9) are about contexts")
        assert "(2 of them are themselves in the training set)" in line


def test_nothing_is_said_of_contexts_that_only_begin_or_end_alike():
    train = rows_of([1, 2], question="A {}?")
    others = [row | {"context": "Now " + row["context"]} for row in train]
    others += [row | {"context": row["context"] + " Then.", "id": "b" + row["id"]} for row in train]
    assert list(both_ways(train, others)) == [None] * 5


def test_white_space_is_no_difference_between_texts():
    moved = [r | {"context": "\n" + r["context"].replace(" ", "  ")} for r in VALIDATION]
    moved = [r | {"answers": {"text": [], "answer_start": []}} for r in moved]
    line = describe_shared_examples(load_examples(TRAIN), load_examples(moved))
    assert line is not None
    assert line.startswith(SHARED)


def test_the_training_set_as_validation_set_is_one_short_line():
    windows = prepared(TRAIN)
    line = describe_shared_windows(windows, windows)
    assert line is not None
    assert "are the training set" in line
    for line in both_ways(TRAIN, load_examples(TRAIN).to_list()):
        assert line == (
            "the 30 validation questions are the training questions, so validation scores say "
            "nothing about other questions"
        )


def test_rows_that_are_not_fixed_or_not_readable_are_not_compared():
    windows = prepared(TRAIN)
    transformed = windows.with_transform(lambda batch: batch)
    assert describe_shared_windows(windows, transformed) is None
    assert describe_shared_windows([], windows) is None
    wrong = datasets.Dataset.from_list([{"input_ids": [1, None]}])
    assert describe_shared_windows(windows, wrong) is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_windows_padded_on_the_left_are_not_compared(side):
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = side
    examples = load_examples(TRAIN)
    windows = [
        prepare_validation_features(examples, tokenizer, 96, 32, disable_tqdm=True) for _ in "ab"
    ]
    assert (describe_shared_windows(*windows) is None) == (side == "left")
