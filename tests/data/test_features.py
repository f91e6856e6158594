"""Windows equal Hugging Face's own preparation, array for array, and refuse what cannot be cut."""

import dataclasses
import logging

import datasets
import numpy as np
import oracle
import pytest
from conftest import shared_path
from tokenizers import processors
from trained import TEXTS, byte_level, metaspace, word_piece
from transformers import AutoTokenizer

from qa_flax.data import tokens
from qa_flax.data.examples import ExampleError, load_examples
from qa_flax.data.features import make_windows, prepare_train_features, prepare_validation_features
from qa_flax.data.windows import Features

TOKEN_COLUMNS = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "token_type_ids": "token_type_ids",
    "start_positions": "start_positions",
    "end_positions": "end_positions",
}


def row(context, question="What is it?", text=(), start=None, id_="a"):
    """One example; the answer's start is found unless given."""
    texts = [text] if isinstance(text, str) else list(text)
    starts = [context.index(t) for t in texts] if start is None else [start]
    answers = {"text": texts, "answer_start": starts}
    return {"id": id_, "title": "", "context": context, "question": question, "answers": answers}


def rows_of_texts(repeat=4):
    """Every few characters of every text is once an answer, from one character to many."""
    rows = []
    for n, text in enumerate(TEXTS):
        context = text * repeat
        for start in range(0, len(context) - 1, 11):
            size = 1 + (start * 5) % 23
            answer = context[start : start + size]
            question = "  Which word follows the one before?"[: 12 + start % 20]
            rows.append(row(context, question, answer, start, id_=f"{n}-{start}"))
        rows.append(row(context, "No answer?", id_=f"{n}-none"))
    return rows


@pytest.fixture(scope="module")
def minilm():
    return AutoTokenizer.from_pretrained(shared_path("models", "all-MiniLM-L6-v2"))


def windows(rows, tokenizer, length, stride, labels=True, **settings):
    settings = {"max_seq_length": length, "doc_stride": stride, "labels": labels} | settings
    return make_windows(load_examples(rows), tokenizer, disable_tqdm=True, **settings).features()


def assert_equal(ours, plain, offsets=True):
    """Every array of ours is the oracle's."""
    assert ours.example_ids == plain["example_id"]
    for column, field in TOKEN_COLUMNS.items():
        value = getattr(ours, field)
        assert (value is None) == (column not in plain), column
        if value is not None:
            assert value.dtype == np.int32
            np.testing.assert_array_equal(value, np.array(plain[column]), err_msg=column)
    if offsets:
        np.testing.assert_array_equal(ours.offsets, dense(plain["offset_mapping"]))


def dense(offset_mapping):
    return np.array([[pair or (-1, -1) for pair in row] for row in offset_mapping])


# --- Equal to Hugging Face -----------------------------------------------------------------------


REAL = {
    "xquad/xquad.en.json": None,
    "xquad/xquad.es.json": 60,
    "xquad/xquad.de.json": 60,
    "xquad/xquad.zh.json": 60,
    "xquad/xquad.ar.json": 60,
    "squadshifts/reddit_v1.0.json": 100,
}
# Every file at one length, and one at all; the other pairs are slow.
WINDOWS = [
    pytest.param(
        *(path, count, length, stride),
        marks=[] if n % 3 == m or "zh" in path else [pytest.mark.slow],
    )
    for n, (path, count) in enumerate(REAL.items())
    for m, (length, stride) in enumerate([(384, 128), (128, 64), (64, 16)])
]


@pytest.mark.parametrize(("path", "count", "length", "stride"), WINDOWS)
def test_real_windows_equal_hugging_face(minilm, path, count, length, stride):
    rows = oracle.nested_to_rows(shared_path("data", path))[:count]
    # Where question and stride leave no room the tokenizer would panic: those are refused below.
    asked = minilm([r["question"] for r in rows], add_special_tokens=False)["input_ids"]
    rows = [r for r, ids in zip(rows, asked, strict=True) if length - len(ids) - 3 > stride]
    assert len(rows) > 20
    ours = windows(rows, minilm, length, stride)
    assert_equal(ours, oracle.prepare_plain(rows, minilm, length, stride, labels=True))
    assert len(ours) >= len(rows) + (length < 384)


@pytest.mark.parametrize("truncation_side", ["right", "left"])
@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("kind", [word_piece, byte_level, metaspace])
def test_every_kind_of_tokenizer_and_side(kind, padding_side, truncation_side):
    tokenizer = kind()
    tokenizer.padding_side, tokenizer.truncation_side = padding_side, truncation_side
    rows = rows_of_texts()
    for length, stride in ((150, 40), (90, 30), (200, 0)):
        ours = windows(rows, tokenizer, length, stride)
        plain = oracle.prepare_plain(rows, tokenizer, length, stride, labels=True)
        assert_equal(ours, plain)
        assert len(ours) > len(rows)
        assert (ours.start_positions != ours.start_positions[-1]).any()


def test_left_padding_on_real_windows(minilm):
    rows = oracle.nested_to_rows(shared_path("data", "xquad", "xquad.en.json"))[:150]
    minilm.padding_side = "left"
    try:
        ours = windows(rows, minilm, 128, 64)
        plain = oracle.prepare_plain(rows, minilm, 128, 64, labels=True)
    finally:
        minilm.padding_side = "right"
    assert_equal(ours, plain)
    assert ours.cls_index.tolist() == [ids.index(minilm.cls_token_id) for ids in plain["input_ids"]]
    assert ours.to_dataset()["cls_index"][:] == ours.cls_index.tolist()


def test_unpadded_windows_are_as_wide_as_the_longest():
    rows = rows_of_texts(repeat=1)
    tokenizer = word_piece()
    ours = windows(rows, tokenizer, 400, 20, pad_to_max_length=False)
    plain = oracle.prepare_plain(rows, tokenizer, 400, 20, labels=True, padding=False)
    assert ours.input_ids.shape[1] == max(map(len, plain["input_ids"])) < 400
    for n, ids in enumerate(plain["input_ids"]):
        assert ours.input_ids[n][ours.attention_mask[n] == 1].tolist() == ids


def test_prefix_space_is_trimmed_in_every_window():
    """Hugging Face leaves the space in the first context token of a later window; we do not."""
    tokenizer = byte_level(add_prefix_space=True)
    # An answer that begins with such a space is in their window and not in ours.
    rows = [r for r in rows_of_texts() if not "".join(r["answers"]["text"])[:1].isspace()]
    ours = windows(rows, tokenizer, 120, 30)
    plain = oracle.prepare_plain(rows, tokenizer, 120, 30, labels=True)
    assert_equal(ours, plain, offsets=False)
    theirs = dense(plain["offset_mapping"])
    differs = (theirs != ours.offsets).any(axis=-1)
    first = (ours.offsets[..., 0] >= 0).argmax(axis=1)
    contexts = {r["id"]: r["context"] for r in rows}
    assert differs.any()
    for n, token in np.argwhere(differs):
        (start, end), context = theirs[n, token], contexts[ours.example_ids[n]]
        assert token == first[n]
        assert context[start].isspace()
        assert tuple(ours.offsets[n, token]) == (start + 1, max(end, start + 1))


def test_texts_are_encoded_once_each(minilm):
    """Shared contexts and questions give what separate ones would."""
    context = TEXTS[0] * 10
    rows = [row(context, f"Question {n % 3}?", "Seine", id_=str(n)) for n in range(9)]
    together = windows(rows, minilm, 64, 16)
    alone = [windows([one], minilm, 64, 16) for one in rows]
    np.testing.assert_array_equal(together.input_ids, np.concatenate([f.input_ids for f in alone]))
    np.testing.assert_array_equal(together.offsets, np.concatenate([f.offsets for f in alone]))


# --- Labels --------------------------------------------------------------------------------------


def answers_of(features, context):
    """The text between the labelled tokens of each window; None where the label is CLS."""
    found = []
    for n in range(len(features)):
        start, end = features.start_positions[n], features.end_positions[n]
        inside = features.offsets[n, start, 0] >= 0
        span = slice(features.offsets[n, start, 0], features.offsets[n, end, 1])
        found.append(context[span] if inside else None)
    return found


@pytest.mark.parametrize("length", range(30, 44))
def test_an_answer_is_labelled_where_it_is_whole_and_cls_elsewhere(length):
    """At some of these lengths the answer is a window's last token, or crosses its end."""
    tokenizer = word_piece()
    context = TEXTS[0] * 2
    features = windows([row(context, "Where?", "Seine")], tokenizer, length, 12)
    start = context.index("Seine")
    whole = [
        bool(offsets[inside][0, 0] <= start and offsets[inside][-1, 1] >= start + 5)
        for offsets in features.offsets
        for inside in [offsets[:, 0] >= 0]
    ]
    assert any(whole)
    assert answers_of(features, context) == ["Seine" if w else None for w in whole]
    outside = ~np.array(whole)
    assert not features.start_positions[outside].any()
    assert not features.end_positions[outside].any()


def test_the_defect_at_the_last_token_is_corrected():
    """Hugging Face's scan for the start runs on over [SEP] and padding: start after end."""
    tokenizer = word_piece()
    rows = [row("one two 3", "Which?", "3")]
    ours = windows(rows, tokenizer, 40, 4)
    buggy = oracle.prepare_plain(rows, tokenizer, 40, 4, labels=True, label_bug=True)
    assert buggy["start_positions"] == [39]
    assert ours.start_positions == ours.end_positions == buggy["end_positions"]
    assert answers_of(ours, "one two 3") == ["3"]


def test_first_token_no_answer_and_only_the_first_answer_count():
    tokenizer = word_piece()
    context = TEXTS[0]
    rows = [
        row(context, text="Paris", id_="first token"),
        row(context, text=[], id_="none"),
        row(context, text=["river", "Paris"], id_="two") | {},
        row(context, text=context, id_="all"),
    ]
    rows[2]["answers"]["answer_start"] = [context.index("river"), 0]
    features = windows(rows, tokenizer, 200, 20)
    assert answers_of(features, context) == ["Paris", None, "river", context]


def test_offsets_cut_the_raw_text_out_of_unicode(minilm):
    """Every token's offsets are code points of the context as given, whatever was normalised."""
    for text in TEXTS:
        features = windows([row(text)], minilm, 128, 16)
        inside = features.offsets[0][features.offsets[0, :, 0] >= 0]
        assert (inside[:, 0] < inside[:, 1]).all()
        assert (inside[1:, 0] >= inside[:-1, 1]).all()
        pieces = [text[start:end] for start, end in inside.tolist()]
        assert not any(piece != piece.strip() for piece in pieces)
    rows = [row(TEXTS[1], "Which city?", "京都"), row(TEXTS[1], "Drink?", "tea", id_="b")]
    assert answers_of(windows(rows, minilm, 128, 16), TEXTS[1]) == ["京都", "tea"]


def test_a_context_without_tokens_is_one_window_without_an_answer():
    rows = [row("\u200b\u200d", text="\u200d")]
    features = windows(rows, word_piece(), 20, 4)
    assert (features.offsets == -1).all()
    assert features.start_positions.tolist() == features.end_positions.tolist() == [0]


# --- Data sets -----------------------------------------------------------------------------------


def test_prepared_data_sets_behave_like_hugging_face_ones():
    rows, tokenizer = rows_of_texts(repeat=2), word_piece()
    settings = {"max_seq_length": 64, "doc_stride": 16, "disable_tqdm": True}
    train = prepare_train_features(load_examples(rows), tokenizer, **settings)
    validation = prepare_validation_features(load_examples(rows), tokenizer, **settings)
    plain = oracle.prepare_plain(rows, tokenizer, 64, 16, labels=True)
    assert {"start_positions", "end_positions"} <= set(train.column_names)
    assert set(validation.column_names) == set(plain)
    assert validation["start_positions"][:] == plain["start_positions"]
    unlabelled = [dict(row, answers={"text": [], "answer_start": []}) for row in rows]
    for made in (
        prepare_validation_features(load_examples(unlabelled), tokenizer, **settings),
        prepare_validation_features(load_examples(rows), tokenizer, labels=False, **settings),
    ):
        assert set(made.column_names) == set(plain) - {"start_positions", "end_positions"}
    assert validation.num_rows == len(plain["input_ids"])
    first = validation[3]
    assert first["example_id"] == plain["example_id"][3]
    assert first["input_ids"] == plain["input_ids"][3]
    token = next(k for k, pair in enumerate(plain["offset_mapping"][3]) if pair)
    assert first["offset_mapping"][0] == [-1, -1]
    assert first["offset_mapping"][token][0] == plain["offset_mapping"][3][token][0]
    assert validation.with_format("numpy")[:2]["offset_mapping"].shape == (2, 64, 2)
    assert [r["start_positions"] for r in train] == plain["start_positions"]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tokenizer", [word_piece, byte_level], ids=["word_piece", "byte_level"])
def test_cuts_are_read_as_the_rows_they_stand_for(rng, tokenizer, side):
    """Model inputs of some windows at any width that holds them, and offsets by position."""
    tokenizer = tokenizer(padding_side=side)
    cuts = make_windows(rows_of_texts(2), tokenizer, max_seq_length=64, doc_stride=16, labels=True)
    rows = cuts.features()
    assert (len(cuts), cuts.padded_length, cuts.is_left_padded) == (len(rows), 64, side == "left")
    np.testing.assert_array_equal(cuts.lengths, rows.attention_mask.sum(axis=1))
    for some in (rng.integers(0, len(cuts), 7), slice(3, 9), np.zeros(0, np.int64)):
        for width in (int(cuts.lengths[some].max(initial=20)), 64):
            assert cuts.columns(width) == rows.columns(width)
            mine, theirs = cuts.inputs(some, width), rows.inputs(some, width)
            assert mine.keys() == theirs.keys() >= {"input_ids", "attention_mask"}
            for name, values in theirs.items():
                np.testing.assert_array_equal(mine[name], values, err_msg=name)
        positions = rng.integers(0, 70, (len(cuts.lengths[some]), 40))  # some behind the end
        for mine, theirs in zip(
            cuts.offset_lookup(some).at(positions),
            rows.offset_lookup(some).at(positions),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_the_cls_token_is_found_where_padding_is_made_of_it():
    """A tokenizer that pads with its CLS token, on the left: the first one is padding."""
    tokenizer = word_piece(padding_side="left", pad_token="[CLS]")
    cuts = make_windows(rows_of_texts(2), tokenizer, max_seq_length=64, labels=True, doc_stride=16)
    plain = oracle.prepare_plain(rows_of_texts(2), tokenizer, 64, 16, labels=True)
    assert cuts.start_positions.tolist() == plain["start_positions"]
    short = cuts.lengths < 64
    assert short.any()
    assert cuts.cls_index is None


def test_features_survive_a_data_set_without_a_copy():
    features = windows(rows_of_texts(repeat=2), word_piece(), 64, 16)
    again = Features.from_dataset(features.to_dataset())
    assert_same(again, features)
    assert np.shares_memory(again.input_ids, features.input_ids)
    assert np.shares_memory(again.offsets, features.offsets)


def assert_same(ours, theirs, rows=slice(None)):
    for field in dataclasses.fields(Features)[1:]:
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        assert (mine is None) == (other is None), field.name
        if other is not None:
            np.testing.assert_array_equal(mine, other[rows], err_msg=field.name)
    assert ours.example_ids == np.array(theirs.example_ids)[rows].tolist()


def test_from_dataset_follows_select_and_leaves_the_data_set_alone():
    features = windows(rows_of_texts(repeat=1), word_piece(), 64, 16)
    chosen = features.to_dataset().select([5, 2, 9]).with_format("numpy", columns=["input_ids"])
    assert_same(Features.from_dataset(chosen), features, [5, 2, 9])
    assert chosen.format["columns"] == ["input_ids"]
    both = datasets.concatenate_datasets([chosen, features.to_dataset()])
    assert_same(Features.from_dataset(both), features, [5, 2, 9, *range(len(features))])


@pytest.mark.parametrize("outside", [None, [], [-1, -1]], ids=repr)
@pytest.mark.parametrize("padding", [True, False], ids=["padded", "ragged"])
def test_from_dataset_reads_hugging_face_columns(outside, padding):
    """Python lists as `Dataset.map` stores them, padded or ragged, None or [] outside."""
    rows, tokenizer = rows_of_texts(repeat=1), word_piece()
    length = 200 if padding else None
    ours = windows(rows, tokenizer, 200, 16, pad_to_max_length=padding)
    plain = oracle.prepare_plain(rows, tokenizer, 200, 16, labels=True, padding=padding)
    plain["offset_mapping"] = [
        [outside if pair is None else list(pair) for pair in row] for row in plain["offset_mapping"]
    ]
    read = Features.from_dataset(datasets.Dataset.from_dict(plain))
    assert_same(read, ours)
    assert length is None or read.input_ids.shape[1] == length
    assert read.offsets.dtype == read.start_positions.dtype == np.int32


def test_from_dataset_reads_fixed_lists_with_none_outside():
    """What `map` leaves of our own columns where a function puts None in place of (-1, -1)."""
    features = windows(rows_of_texts(repeat=1), word_piece(), 64, 16)
    data = features.to_dataset()
    holed = [[None if p == [-1, -1] else p for p in r] for r in data["offset_mapping"]]
    column = datasets.Features({"offset_mapping": data.features["offset_mapping"]})
    other = datasets.Dataset.from_dict({"offset_mapping": holed}, features=column)
    kept = data.remove_columns("offset_mapping")
    both = datasets.concatenate_datasets([kept, other], axis=1)
    assert_same(Features.from_dataset(both), features)


def test_from_dataset_fills_in_mask_and_ids():
    read = Features.from_dataset(datasets.Dataset.from_dict({"input_ids": [[5, 6, 7], [8]]}))
    assert read.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert read.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert read.example_ids == ["0", "1"]
    assert read.offsets is read.token_type_ids is read.start_positions is None


def test_from_dataset_of_no_rows():
    empty = windows([row(TEXTS[0])], word_piece(), 64, 16).to_dataset().select([])
    read = Features.from_dataset(empty)
    assert read.input_ids.shape == (0, 64)
    assert read.offsets.shape == (0, 64, 2)


def test_from_dataset_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"column input_ids; columns found: labels"):
        Features.from_dataset(datasets.Dataset.from_dict({"labels": [1]}))
    ragged = {"input_ids": [[1, 2]], "attention_mask": [[1]]}
    with pytest.raises(ValueError, match="attention_mask is 1 tokens wide, and input_ids 2"):
        Features.from_dataset(datasets.Dataset.from_dict(ragged))
    holed = {"input_ids": [[1, 2]], "start_positions": [None]}
    with pytest.raises(ValueError, match="start_positions: 1 of its numbers are None"):
        Features.from_dataset(
            datasets.Dataset.from_dict(
                holed,
                features=datasets.Features(
                    {
                        "input_ids": datasets.List(datasets.Value("int64")),
                        "start_positions": datasets.Value("int64"),
                    }
                ),
            )
        )


# --- Long texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [word_piece, byte_level, metaspace])
def test_a_text_tokenised_in_pieces_has_the_tokens_of_the_whole(monkeypatch, kind):
    text = " ".join(TEXTS) * 40
    texts = ["x", text, TEXTS[0], text + "!", "y"]
    rows = [row(text, id_=str(n)) for n, text in enumerate(texts)]
    tokenizer = kind()
    whole = windows(rows, tokenizer, 64, 16)
    pieces = []
    monkeypatch.setattr(tokens, "LONG_TEXT", 3000)
    monkeypatch.setattr(tokens, "PIECES_SHARE", 400)
    encode = tokens._ids_and_offsets
    monkeypatch.setattr(tokens, "_ids_and_offsets", lambda e: pieces.append(len(e)) or encode(e))
    assert_same(windows(rows, tokenizer, 64, 16), whole)
    assert len(pieces) > 2 * len(text) / 3000


@pytest.mark.parametrize("kind", [word_piece, byte_level])
def test_pieces_that_do_not_agree_are_tokenised_whole(monkeypatch, kind):
    """A word longer than what the pieces share: its tokens depend on where it is cut."""
    rows = [row("ab" * 1500 + " end", text="end")]
    tokenizer = kind()
    whole = windows(rows, tokenizer, 64, 16)
    monkeypatch.setattr(tokens, "LONG_TEXT", 1001)
    monkeypatch.setattr(tokens, "PIECES_SHARE", 100)
    assert_same(windows(rows, tokenizer, 64, 16), whole)


# --- What is refused, and the caller's settings --------------------------------------------------


def test_questions_without_room_are_all_named_before_the_tokenizer_panics():
    tokenizer = word_piece()
    long = "? " * 30  # a token each, whatever the vocabulary
    rows = [row(TEXTS[0], "What?", id_="good")]
    rows += [row(TEXTS[0], long + "?" * n, id_=f"long {n}") for n in range(7)]
    with pytest.raises(ExampleError) as error:
        windows(rows, tokenizer, 40, 16, long_questions="refuse")
    message = str(error.value)
    assert message.startswith("7 of 8 questions are too long")
    assert "max_seq_length=40 with doc_stride=16" in message
    assert '"long 0": 30 question tokens leave room for 7' in message
    assert '"good"' not in message
    needed = int(message.split("Raise max_seq_length above ")[1].split(",")[0])
    assert len(windows(rows, tokenizer, needed + 1, 16)) > 8
    with pytest.raises(ExampleError):
        windows(rows, tokenizer, needed, 16, long_questions="refuse")


def test_questions_without_room_are_cut_and_counted(caplog):
    tokenizer = word_piece()
    rows = [row(TEXTS[0], "What?", id_="good"), row(TEXTS[0], "? " * 30, id_="long")]
    rows += [row("is", "? " * 30, "is", id_="long, but it fits")]
    with caplog.at_level(logging.WARNING):
        ours = windows(rows, tokenizer, 40, 16)
    assert '1 of 3 questions are too long for the window and are cut to 10 tokens: "long"' in (
        caplog.text
    )
    short = [rows[0], rows[1] | {"question": "? " * 10}, rows[2]]
    assert_equal(ours, oracle.prepare_plain(short, tokenizer, 40, 16, labels=True))
    with pytest.raises(ValueError, match="'drop'; it must be truncate or refuse"):
        windows(rows, tokenizer, 40, 16, long_questions="drop")


def test_a_question_that_cannot_be_cut_enough_is_named():
    with pytest.raises(ExampleError, match="1 of 1 questions are too long"):
        windows([row(TEXTS[0], "What?")], word_piece(), 24, 20)


def test_a_stride_without_room_names_the_stride_that_has():
    rows = [row(TEXTS[0], "What?")]
    with pytest.raises(ExampleError, match=r"lower doc_stride below (\d+)") as error:
        windows(rows, word_piece(), 24, 24)
    limit = int(str(error.value).split("lower doc_stride below ")[1].split(",")[0])
    assert len(windows(rows, word_piece(), 24, limit - 1)) > 1


def test_a_long_question_with_a_short_context_fits():
    rows = [row("is", "? " * 30, "is")]
    ours = windows(rows, word_piece(), 40, 16)
    plain = oracle.prepare_plain(rows, word_piece(), 40, 16, labels=True)
    assert_equal(ours, plain)


def test_lengths_are_capped_at_the_model_and_checked(caplog):
    tokenizer = word_piece(model_max_length=50)
    with caplog.at_level(logging.WARNING):
        features = windows([row(TEXTS[0] * 3)], tokenizer, 384, 16)
    assert features.input_ids.shape[1] == 50
    assert "max_seq_length 384 is more than the model's 50 tokens" in caplog.text
    with pytest.raises(ValueError, match="doc_stride at least 0; got 384 and -1"):
        windows([row(TEXTS[0])], tokenizer, 384, -1)


def test_the_tokenizer_keeps_its_own_settings(minilm):
    backend = minilm.backend_tokenizer
    backend.enable_truncation(128, stride=3, strategy="only_first", direction="left")
    backend.enable_padding(length=128, direction="left", pad_id=0)
    before = backend.truncation, backend.padding, backend.encode_special_tokens
    try:
        features = windows([row(TEXTS[0] * 20, text="Seine")], minilm, 384, 128)
        assert (backend.truncation, backend.padding, backend.encode_special_tokens) == before
        with pytest.raises(ExampleError):
            windows([row(TEXTS[0], "what " * 90)], minilm, 64, 16, long_questions="refuse")
        assert (backend.truncation, backend.padding, backend.encode_special_tokens) == before
    finally:
        backend.no_truncation()
        backend.no_padding()
    assert features.attention_mask.sum(axis=1).max() == 384


def test_unusable_tokenizers_are_refused():
    with pytest.raises(ValueError, match="no padding token"):
        windows([row(TEXTS[0])], word_piece(pad_token=None), 64, 16)
    slow = word_piece()
    type_ = type("SlowTokenizer", (type(slow),), {"is_fast": False})
    slow.__class__ = type_
    with pytest.raises(ValueError, match=r"SlowTokenizer gives no character offsets.*fast"):
        windows([row(TEXTS[0])], slow, 64, 16)
    reversed_ = word_piece()
    reversed_.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A", "[CLS] $B [SEP] $A", [("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(ValueError, match="encodes a pair of texts in another way"):
        windows([row(TEXTS[0])], reversed_, 64, 16)


def test_other_layouts_are_read_and_missing_columns_named():
    tokenizer = word_piece()
    bare = [{"context": TEXTS[0], "question": "What?", "score": 3}]
    features = make_windows(bare, tokenizer, max_seq_length=64, labels=False, disable_tqdm=True)
    assert set(features.example_ids) == {"row-0"}
    with pytest.raises(ExampleError, match=r"missing column answers.*found: context, question"):
        make_windows(datasets.Dataset.from_list(bare), tokenizer, labels=True)


def test_a_progress_bar_that_can_be_silenced(capsys):
    rows = load_examples(rows_of_texts(repeat=1))
    make_windows(rows, word_piece(), max_seq_length=64, doc_stride=16, labels=False)
    shown = capsys.readouterr().err
    assert "Tokenising: 100%" in shown
    assert f"{len(rows)}/{len(rows)}" in shown
    windows(rows_of_texts(repeat=1), word_piece(), 64, 16)
    assert capsys.readouterr().err == ""
