"""Splits of examples: no text on both sides, sizes as near as possible, reproducible."""

import itertools

import datasets
import numpy as np
import pyarrow as pa
import pytest

from qa_flax import fold_examples, load_examples, split_examples


def rows_of(sizes, titles=None) -> list[dict]:
    """Questions about one context for each size, in random order; white space differs."""
    rng = np.random.default_rng(len(sizes))
    rows = []
    for text, size in enumerate(sizes):
        for n in range(size):
            context = f"Text {text}" + " " * (1 + n % 3) + "\n" * (n % 2) + "ends."
            row = {"id": f"{text}-{n}", "context": context, "question": "Q?", "answers": []}
            rows.append(row | ({"title": titles[text]} if titles else {}))
    return [rows[n] for n in rng.permutation(len(rows))]


def texts(rows) -> set[str]:
    return {row["id"].split("-")[0] for row in rows}


def test_a_split_is_the_nearest_to_the_share_that_whole_contexts_allow():
    """Compared with all subsets, for random sizes and shares."""
    rng = np.random.default_rng(0)
    for seed in range(40):
        sizes = rng.integers(1, 12, rng.integers(2, 9)).tolist()
        share, rows = float(rng.uniform(0.02, 0.98)), rows_of(sizes)
        train, validation = split_examples(rows, share, seed=seed)
        assert not texts(train) & texts(validation)
        assert [row for row in rows if row in train] == train
        assert [row for row in rows if row in validation] == validation
        assert len(train) + len(validation) == len(rows)
        subsets = (
            subset for k in range(1, len(sizes)) for subset in itertools.combinations(sizes, k)
        )
        nearest = min(abs(sum(subset) - share * len(rows)) for subset in subsets)
        assert abs(len(validation) - share * len(rows)) == pytest.approx(nearest)


def test_the_seed_chooses_the_texts_and_every_size_of_text_is_represented():
    rows = rows_of([1, 2, 3, 5, 8] * 20)
    splits = [split_examples(rows, 0.2, seed=seed)[1] for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    sizes = [(1, 2, 3, 5, 8)[int(text) % 5] for text in texts(splits[0])]
    assert set(sizes) == {1, 2, 3, 5, 8}, "texts of some sizes are never chosen"
    assert len(splits[0]) == round(0.2 * len(rows))


def test_titles_stay_together_where_there_are_several():
    titles = ["a", "b", "a", "", "b", "c", "c", "d", "d", ""]
    rows = rows_of([3] * 10, titles)
    for examples in (rows, load_examples(rows)):
        for by in ("auto", "title"):
            for seed in range(5):
                parts = split_examples(examples, 0.4, seed=seed, by=by)
                part_titles = [{row["title"] for row in part} - {""} for part in parts]
                assert not part_titles[0] & part_titles[1]
                part_texts = [texts(part) for part in parts]
                assert not part_texts[0] & part_texts[1]
    by_context = [split_examples(rows, 0.4, seed=seed, by="context") for seed in range(5)]
    shared = [{r["title"] for r in a} & {r["title"] for r in b} & {*"abcd"} for a, b in by_context]
    assert any(shared), "a split by context may separate a title"


def test_one_context_under_several_titles_is_in_one_part():
    rows = rows_of([2] * 6, list("abcdef"))
    rows += [{"id": "0-x", "context": "Text 0 ends.", "title": "b"}]
    rows += [{"id": "1-x", "context": "Text 1 ends.", "title": "c"}]
    for seed in range(10):
        parts = [texts(part) for part in split_examples(rows, 0.5, seed=seed)]
        assert not parts[0] & parts[1]
        assert any({"0", "1", "2"} <= part for part in parts)


def test_one_title_for_all_is_no_title_and_numbers_are_titles():
    train, validation = split_examples(rows_of([2] * 4, ["dev"] * 4), 0.5)
    assert len(train) == len(validation) == 4
    examples = load_examples(rows_of([2] * 4, [7, 7, 8, 8.0]))
    assert set(examples["title"]) == {"7", "8"}
    parts = split_examples(examples, 0.5)
    assert [len(set(part["title"])) for part in parts] == [1, 1]


def test_folds_cover_all_examples_once_and_are_of_nearly_equal_size():
    rng = np.random.default_rng(1)
    for count in (2, 3, 5):
        sizes = rng.integers(1, 9, 30).tolist()
        rows = rows_of(sizes)
        examples = load_examples(rows)
        folds = fold_examples(examples, count, seed=count)
        assert len(folds) == count
        ids = [id_ for _, validation in folds for id_ in validation["id"]]
        assert sorted(ids) == sorted(row["id"] for row in rows)
        for train, validation in folds:
            assert not texts(train) & texts(validation)
            assert len(train) + len(validation) == len(rows)
        lengths = [len(validation) for _, validation in folds]
        assert max(lengths) - min(lengths) <= 2, "though texts have up to 8 questions"
        again = fold_examples(rows, count, seed=count)
        assert [[row["id"] for row in v] for _, v in again] == [v["id"][:] for _, v in folds]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows: split_examples(rows[:3], 0.1), r"2 different texts, but there is only 1"),
        (lambda rows: fold_examples(rows, 5), r"5 folds needs .* there are only 2.*add questions"),
        (lambda rows: fold_examples(rows, 1), r"count=1: .* at least 2"),
        (lambda rows: fold_examples(rows, True), r"count=True"),
        (lambda rows: split_examples(rows, 1), r"share=1: .* below 1"),
        (lambda rows: split_examples(rows, 0.0), r"share=0.0"),
        (lambda rows: split_examples(rows, 20), r"share=20"),
        (
            lambda rows: split_examples(rows, 0.1, by="id"),
            r"by='id': .* 'auto', 'title', 'con",
        ),
        (lambda rows: split_examples(rows, 0.1, by="title"), r"no example has a title; use 'con"),
        (lambda rows: split_examples([], 0.1), r"there are only 0"),
        (lambda rows: split_examples([{"id": "1"}], 0.1), r"no column context; their columns: id"),
        (lambda rows: split_examples("train.json", 0.1), r"is a str; pass what load_examples"),
    ],
)
def test_invalid_requests_say_what_to_do(call, message):
    rows = sorted(rows_of([3, 3]), key=lambda row: row["id"])
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call(rows)


def test_a_data_set_with_other_columns_and_a_format_is_split_as_it_is():
    table = pa.table({"context": ["a", "b", "a", "c"], "n": [0, 1, 2, 3]})
    dataset = datasets.Dataset(table, fingerprint="x").with_format("numpy")
    train, validation = split_examples(dataset, 0.5, seed=3)
    assert train.format["type"] == "numpy"
    assert sorted([*train["n"][:].tolist(), *validation["n"][:].tolist()]) == [0, 1, 2, 3]
