"""The columns of all gold spans: distinct, padded, read from any data set, and refused if odd."""

import datasets
import numpy as np
import pyarrow as pa
import pytest

from qa_flax.data.gold_spans import (
    ALL_LABELS,
    NO_SPAN,
    distinct_spans,
    shifted,
    spans_of_table,
    stacked_spans,
    with_room,
)
from qa_flax.data.windows import Features


def table(starts, ends):
    return pa.table(dict(zip(ALL_LABELS, (pa.array(starts), pa.array(ends)), strict=True)))


def test_distinct_spans_equal_a_loop(rng):
    starts, ends = rng.integers(0, 4, (2, 200, 5)).astype(np.int32)
    is_span = rng.random((200, 5)) < 0.6
    ours = distinct_spans(starts, ends, is_span)
    for row in range(200):
        pairs = zip(starts[row], ends[row], is_span[row], strict=True)
        expected = list(dict.fromkeys((int(s), int(e)) for s, e, is_kept in pairs if is_kept))
        found = list(zip(*(array[row].tolist() for array in ours), strict=True))
        assert found == expected + [(NO_SPAN, NO_SPAN)] * (len(found) - len(expected))


def test_ragged_lists_are_read_and_written_again(rng):
    counts = rng.integers(1, 5, 40)
    starts = [rng.choice(50, count, replace=False).tolist() for count in counts]
    ends = [[start + 1 for start in row] for row in starts]
    columns = {"input_ids": [[1] * 60] * 40, **dict(zip(ALL_LABELS, (starts, ends), strict=True))}
    features = Features.from_dataset(datasets.Dataset.from_dict(columns))
    assert features.spans == counts.max()
    written = features.to_dataset()
    assert (written[ALL_LABELS[0]][:], written[ALL_LABELS[1]][:]) == (starts, ends)
    again = Features.from_dataset(written.select(range(5, 30))).start_positions_all
    np.testing.assert_array_equal(
        with_room(again, features.spans), features.start_positions_all[5:30]
    )


def test_repeated_spans_count_once():
    starts, ends = spans_of_table(table([[3, 3, 5, 3], [1]], [[4, 4, 5, 5], [2]]))
    assert starts.tolist() == [[3, 5, 3], [1, NO_SPAN, NO_SPAN]]
    assert ends.tolist() == [[4, 5, 5], [2, NO_SPAN, NO_SPAN]]


@pytest.mark.parametrize(
    ("starts", "ends", "words"),
    [
        ([[1, 2], [3]], [[1], [3]], "row 0 has 2 starts and 1 ends"),
        ([[1], []], [[1], []], "the lists of 1 rows are empty .row 1."),
        ([1, 2], [1, 2], "needs a list of integers"),
        ([[1.5]], [[2.0]], "whole numbers are required, got 1.5"),
        ([[1, None]], [[1, 2]], "None"),
    ],
)
def test_odd_columns_are_refused(starts, ends, words):
    with pytest.raises(ValueError, match=words):
        spans_of_table(table(starts, ends))


def test_one_column_alone_is_refused():
    alone = table([[1]], [[1]]).select([ALL_LABELS[0]])
    with pytest.raises(ValueError, match="no end_positions_all; both are needed"):
        spans_of_table(alone)


def test_rows_of_a_script_are_stacked_to_few_widths():
    rows = [[np.array(row) for row in column] for column in ([[1, 2, 2], [4]], [[1, 2, 2], [9]])]
    starts, ends = stacked_spans(rows, "the data set")
    assert starts.tolist() == [[1, 2, NO_SPAN, NO_SPAN], [4, NO_SPAN, NO_SPAN, NO_SPAN]]
    assert ends.tolist() == [[1, 2, NO_SPAN, NO_SPAN], [9, NO_SPAN, NO_SPAN, NO_SPAN]]


def test_positions_outside_every_row_are_not_shifted_back_into_it():
    array = np.array([5, NO_SPAN - 1, NO_SPAN], np.int32)
    assert shifted(array, 64).tolist() == [69, NO_SPAN, NO_SPAN]
