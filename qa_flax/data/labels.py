"""Stage 3 of 7: where windows' labels lie: inside their rows, on padding or outside (host, NumPy).

A label is inside its row if it is below the padded length L; a negative one counts as 0. Labels
outside, such as those that scripts write for an answer that truncation has cut off, take no part in
the loss, as in Hugging Face.
"""

import numpy as np
from jaxtyping import Bool, Int64

from qa_flax.data.messages import first_few, quoted
from qa_flax.data.windows import Windows


def labels_inside(windows: Windows) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]] | None:
    """Return whether each window's start label, and its end label, is inside its row.

    None if the windows have no labels.
    """
    starts, ends, length = windows.start_positions, windows.end_positions, windows.padded_length
    return None if starts is None or ends is None else (starts < length, ends < length)


def holds_answer(windows: Windows) -> Bool[np.ndarray, " n"] | None:
    """Return whether each window's labels mark an answer.

    Both are inside its row then, and they are not both on the token of the null: the CLS token or,
    without `cls_index`, the first token. None if the windows have no labels.
    """
    inside = labels_inside(windows)
    if inside is None:
        return None
    positions = (windows.start_positions, windows.end_positions)
    starts, ends = (np.maximum(array, 0) for array in positions if array is not None)
    nulls = [np.zeros(len(windows), np.int32) if windows.cls_index is None else windows.cls_index]
    if windows.cls_index is None and windows.is_left_padded:
        nulls.append((windows.padded_length - windows.lengths).astype(np.int32))
    is_null = np.any([(starts == null) & (ends == null) for null in nulls], axis=0)
    return inside[0] & inside[1] & ~is_null


def required_lengths(windows: Windows) -> Int64[np.ndarray, " n"]:
    """Return how many columns of each window a batch has to hold, counted from the text's side.

    These are the window's tokens and, for a label on the padding, the columns up to the label, so
    that no batch drops a label inside its row.
    """
    lengths = windows.lengths.astype(np.int64)
    length, is_left_padded = windows.padded_length, windows.is_left_padded
    for positions in (windows.start_positions, windows.end_positions):
        if positions is not None:
            columns = np.maximum(positions, 0).astype(np.int64)
            required = length - columns if is_left_padded else columns + 1
            lengths = np.maximum(lengths, np.where(columns < length, required, 0))
    return lengths


def describe_labels_outside(windows: Windows) -> str | None:
    """Return a sentence that counts the labels outside their windows; None if there are none."""
    inside = labels_inside(windows)
    if inside is None or (inside[0].all() and inside[1].all()):
        return None
    starts, ends = (int((~is_inside).sum()) for is_inside in inside)
    rows = np.flatnonzero(~(inside[0] & inside[1]))
    ids = dict.fromkeys(windows.example_ids[row] for row in rows.tolist())
    return (
        f"{starts} start and {ends} end labels of {len(windows)} windows are at position "
        f"{windows.padded_length} or later, outside their windows, and take no part in the loss: "
        "examples " + first_few(list(ids), quoted)
    )
