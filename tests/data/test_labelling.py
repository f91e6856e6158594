"""Labels of all answers: every distinct span that a window contains, in the answers' order."""

import datasets
import numpy as np
import pytest
import tiny
from conftest import shared_path
from trained import metaspace, word_piece
from transformers import AutoTokenizer

from qa_flax import load_examples, prepare_train_features, prepare_validation_features
from qa_flax.data.features import make_windows
from qa_flax.data.gold_spans import ALL_LABELS

CONTEXT = "the dog and the cat and the bird sleep in the old barn near the river all day"


def example(texts, starts=None, context=CONTEXT, id_="a"):
    starts = [context.index(text) for text in texts] if starts is None else starts
    answers = {"text": list(texts), "answer_start": list(starts)}
    return {"id": id_, "title": "", "context": context, "question": "Who?", "answers": answers}


def single(row, number):
    """The example with only one of its answers."""
    answers = {name: [values[number]] for name, values in row["answers"].items()}
    return {**row, "answers": answers}


def spans_of(windows, row):
    pairs = zip(*(windows[name][row] for name in ALL_LABELS), strict=True)
    return [(int(start), int(end)) for start, end in pairs]


def assert_equal_to_single_answers(rows, tokenizer, **lengths):
    """Each window has the labels that the answers give one at a time."""
    windows = prepare_train_features(rows, tokenizer, answers="all", disable_tqdm=True, **lengths)
    usual = prepare_train_features(rows, tokenizer, disable_tqdm=True, **lengths)
    for name in ("input_ids", "start_positions", "end_positions"):
        assert windows[name][:] == usual[name][:]
    most = max(len(row["answers"]["text"]) for row in rows)
    alone = {}
    for number in range(most):
        having = [row for row in rows if number < len(row["answers"]["text"])]
        part = make_windows(
            [single(row, number) for row in having],
            tokenizer,
            labels=True,
            misaligned="keep",
            disable_tqdm=True,
            **lengths,
        )
        seen = {}
        for row, id_ in enumerate(part.example_ids):
            seen[id_] = seen.get(id_, -1) + 1
            cls = 0 if part.cls_index is None else part.cls_index[row]
            pair = int(part.start_positions[row]), int(part.end_positions[row])
            if pair != (cls, cls):
                alone.setdefault((id_, seen[id_]), []).append(pair)
    seen, several = {}, 0
    for row, id_ in enumerate(windows["example_id"][:]):
        seen[id_] = seen.get(id_, -1) + 1
        usual_pair = windows["start_positions"][row], windows["end_positions"][row]
        expected = list(dict.fromkeys(alone.get((id_, seen[id_]), [usual_pair])))
        assert spans_of(windows, row) == expected
        several += len(expected) > 1
    return several


@pytest.mark.parametrize("side", ["right", "left"])
def test_windows_have_the_labels_of_each_answer(side):
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = side
    rows = [
        example(["the dog", "dog", "the dog", "the river all"]),
        example(["cat and the bird"], id_="b"),
        example([], id_="c"),
        example(["barn", "old barn", "day"], id_="d"),
    ]
    assert assert_equal_to_single_answers(rows, tokenizer, max_seq_length=24, doc_stride=6)


@pytest.mark.parametrize("tokenizer", [word_piece, metaspace])
def test_windows_of_other_tokenizers(tokenizer):
    rows = [example(["dog", "the dog and", "near the"]), example(["the old"], id_="b")]
    assert assert_equal_to_single_answers(rows, tokenizer(), max_seq_length=32, doc_stride=8)


def test_real_questions_with_several_answers():
    minilm = AutoTokenizer.from_pretrained(shared_path("models/all-MiniLM-L6-v2"))
    path = shared_path("data/squadshifts/amazon_reviews_v1.0.json")
    rows = [dict(row) for row in load_examples(path).select(range(60))]
    assert assert_equal_to_single_answers(rows, minilm, max_seq_length=128, doc_stride=32) > 10


def test_the_first_answer_may_be_outside_a_window_that_has_another():
    """The usual label is the CLS token there; the columns of all answers have the other answer."""
    rows = [example(["all day", "the dog"])]
    windows = prepare_train_features(
        rows, tiny.tokenizer(), 16, 4, answers="all", disable_tqdm=True
    )
    assert windows["start_positions"][0] == 0
    assert spans_of(windows, 0) != [(0, 0)]


def test_mapped_batches_have_the_columns_of_whole_data_sets():
    tokenizer = tiny.tokenizer()
    rows = [example(["the dog", "dog"]), example(["cat"], id_="b"), example([], id_="c")]
    data = datasets.Dataset.from_list(rows)
    settings = {"max_seq_length": 32, "doc_stride": 8, "answers": "all"}
    for prepare in (prepare_train_features, prepare_validation_features):
        whole = prepare(data, tokenizer, disable_tqdm=True, **settings)
        mapped = data.map(
            prepare,
            batched=True,
            batch_size=1,
            remove_columns=data.column_names,
            fn_kwargs={"tokenizer": tokenizer, **settings},
        )
        for name in ALL_LABELS:
            assert mapped[name][:] == whole[name][:]


def test_an_answer_that_occurs_nowhere_has_no_span_beside_others():
    rows = [example(["the dog", "a unicorn"], [0, 3])]
    windows = prepare_train_features(
        rows, tiny.tokenizer(), 64, 16, answers="all", disable_tqdm=True
    )
    assert len(spans_of(windows, 0)) == 1


def test_a_warning_says_that_there_is_only_one_answer(caplog):
    settings = {"answers": "all", "disable_tqdm": True}
    prepare_train_features([example(["dog", "cat"])], tiny.tokenizer(), 64, 16, **settings)
    assert "has no effect" not in caplog.text
    prepare_train_features([example(["dog", "dog"])], tiny.tokenizer(), 64, 16, **settings)
    assert 'answers="all" has no effect: no window contains several answers' in caplog.text


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match=r"answers must be one of .*'all'"):
        prepare_train_features([example(["dog"])], tiny.tokenizer(), 64, 16, answers="both")


def test_padding_on_the_left_moves_the_labels_of_all_answers():
    tokenizer = tiny.tokenizer()
    tokenizer.padding_side = "left"
    rows = [example(["the dog", "dog"]), example(["barn"], id_="b")]
    short = make_windows(
        rows, tokenizer, max_seq_length=32, doc_stride=8, labels=True, answers="all",
        pad_to_max_length=False, disable_tqdm=True,
    )  # fmt: skip
    wide = short.padded_to(64)
    by = 64 - short.padded_length
    is_span = short.start_positions_all < 64
    np.testing.assert_array_equal(
        wide.start_positions_all[is_span], short.start_positions_all[is_span] + by
    )
    assert (wide.start_positions_all[~is_span] > 64).all()
