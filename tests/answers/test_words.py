"""Spans of tokens -> characters, against the tokenizer's own words."""

import numpy as np
import pytest
from trained import TEXTS, byte_level, metaspace, word_piece

from qa_flax.answers.words import Words
from qa_flax.data.features import windows_of_texts

SETTINGS = {"max_seq_length": 40, "doc_stride": 8, "disable_tqdm": True, "words": True}


def windows_of(tokenizer, contexts):
    columns = {"id": [str(n) for n in range(len(contexts))], "context": contexts}
    return windows_of_texts(columns | {"question": ["why?"] * len(contexts)}, tokenizer, **SETTINGS)


@pytest.mark.parametrize("kind", [word_piece, byte_level, metaspace])
def test_spans_are_widened_to_the_words_that_the_tokenizer_says(kind, rng):
    tokenizer, contexts = kind(), [" ".join(TEXTS), TEXTS[0], "x"]
    windows = windows_of(tokenizer, contexts)
    assert len(windows) > 5
    width = int(windows.slices.count.max())
    # The last token of the shorter windows stands for those that they do not have.
    last = windows.slices.count[:, None] - 1
    starts = np.minimum(rng.integers(0, width, (len(windows), 7)), last)
    ends = np.minimum(starts + rng.integers(0, 3, starts.shape), last)
    first, final = Words(windows, by_words=True).characters(starts, ends)
    plain = Words(windows, by_words=False).characters(starts, ends)
    was_wider = 0
    for w, k in np.ndindex(starts.shape):
        example, begin = int(windows.slices.example[w]), int(windows.slices.start[w])
        count = int(windows.slices.count[w])
        encoding = tokenizer.backend_tokenizer.encode(contexts[example], add_special_tokens=False)
        words = encoding.word_ids[begin : begin + count]
        offsets = encoding.offsets[begin : begin + count]
        i = words.index(words[starts[w, k]])
        j = count - 1 - words[::-1].index(words[ends[w, k]])
        assert (first[w, k], final[w, k]) == (offsets[i][0], offsets[j][1])
        token = offsets[starts[w, k]][0], offsets[ends[w, k]][1]
        assert (plain[0][w, k], plain[1][w, k]) == token
        was_wider += token != (first[w, k], final[w, k])
    assert was_wider > 5


def test_tokens_without_words_are_refused():
    windows = windows_of(word_piece(), ["one two"])
    windows.contexts.__dict__["begins_word"] = None
    with pytest.raises(ValueError, match="without their words"):
        Words(windows, by_words=True)
