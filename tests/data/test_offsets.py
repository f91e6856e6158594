"""The offsets of a tokenizer are those of its tokens, or are corrected, or are refused."""

import json
from itertools import product

import numpy as np
import pytest
import tiny
import trained
from conftest import shared_path
from test_features import windows
from tokenizers import Regex, Tokenizer, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as split
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qa_flax.data.features import make_windows
from qa_flax.data.offsets import TokenTexts, WrongOffsets, shifted, trims_letters
from qa_flax.data.tokenizer_files import load_tokenizer

TEXT = "The mill, built by Orla Fenn in 1843 (by Orla Fenn), burned. It's   by Orla, naïve 東京."
ANSWERS = ["Orla Fenn", "1843", "burned", "naïve", "The mill", "東京", "mill", "T"]


def byte_level(pre_tokenizer, post_processor, normalizer=None):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=split.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*trained.TEXTS, *[TEXT] * 20], trainer)
    backend.post_processor = post_processor
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)


def roberta(**settings):
    return processors.RobertaProcessing(("</s>", 2), ("<s>", 0), **settings)


CUTS = {
    "words": split.Whitespace(),
    "spaces": split.WhitespaceSplit(),
    "digits": split.Digits(individual_digits=True),
    "marks": split.Punctuation(),
    "scripts": split.UnicodeScripts(),
    "isolated": split.Split(Regex(r"\s+"), "isolated"),
    "removed": split.Split(" ", "removed"),
}


def rows():
    return [
        {
            "id": str(n),
            "context": TEXT,
            "question": "What?",
            "answers": {"text": [answer], "answer_start": [TEXT.index(answer)]},
        }
        for n, answer in enumerate(ANSWERS)
    ]


def labelled(windows):
    """The text that each window's labels cut out."""
    offsets = windows.offsets(slice(None))
    spans = zip(windows.start_positions, windows.end_positions, strict=True)
    return [
        TEXT[offsets[n, first, 0] : offsets[n, last, 1]] for n, (first, last) in enumerate(spans)
    ]


@pytest.mark.parametrize(
    "cut", [c if c in ("words", "marks") else pytest.param(c, marks=pytest.mark.slow) for c in CUTS]
)
def test_labels_cut_out_the_answers_although_letters_are_trimmed(cut, caplog):
    sequence = split.Sequence([CUTS[cut], split.ByteLevel(add_prefix_space=True)])
    tokenizer = byte_level(sequence, roberta())
    result = make_windows(rows(), tokenizer, max_seq_length=128, labels=True, disable_tqdm=True)
    texts = labelled(result)
    for text, answer in zip(texts, ANSWERS, strict=True):
        # A token may be larger than the answer, such as " The" for "T".
        assert text.strip() == answer or (answer in text and len(text) < len(answer) + 10)
    assert [text.strip() for text in texts[:3]] == ANSWERS[:3]
    assert "offsets" not in caplog.text
    # The user's tokenizer is as it was.
    assert type(tokenizer.backend_tokenizer.post_processor).__name__ == "RobertaProcessing"


def sample_of(tokenizer, texts):
    encoded = [tokenizer.backend_tokenizer.encode(t, add_special_tokens=False) for t in texts]
    return [(t, e.ids, e.offsets) for t, e in zip(texts, encoded, strict=True)]


KINDS = {
    "tiny": tiny.tokenizer,
    "word_piece": trained.word_piece,
    "byte_level": trained.byte_level,
    "prefix": lambda **settings: trained.byte_level(True, **settings),
    "metaspace": trained.metaspace,
}


@pytest.mark.parametrize("kind", KINDS)
def test_usual_tokenizers_are_neither_corrected_nor_reported(kind, caplog):
    tokenizer = KINDS[kind]()
    backend = tokenizer.backend_tokenizer
    assert not trims_letters(backend)
    unknown = {i for t, i in tokenizer.get_vocab().items() if "unk" in t.lower()}
    texts = [*trained.TEXTS, *tiny.CONTEXTS]
    found = WrongOffsets(sample_of(tokenizer, texts), TokenTexts(backend, unknown))
    assert found.share < 0.02
    windows([r for r in tiny.rows() if r["answers"]["text"]], tokenizer, 120, 16)
    assert "offsets" not in caplog.text


@pytest.mark.slow
def test_the_real_tokenizer_has_right_offsets(caplog):
    tokenizer = AutoTokenizer.from_pretrained(shared_path("models", "all-MiniLM-L6-v2"))
    tokenizer.backend_tokenizer.no_truncation()
    assert not trims_letters(tokenizer.backend_tokenizer)
    for name in ("en", "de", "ar"):
        articles = json.loads(shared_path("data", "xquad", f"xquad.{name}.json").read_text())
        texts = [p["context"] for a in articles["data"] for p in a["paragraphs"]][:12]
        skipped = set(tokenizer.all_special_ids)
        token_texts = TokenTexts(tokenizer.backend_tokenizer, skipped)
        assert WrongOffsets(sample_of(tokenizer, texts), token_texts).share < 0.01


@pytest.mark.slow
def test_every_combination_of_parts_gives_right_offsets():
    posts = [None, roberta(), roberta(trim_offsets=False), roberta(add_prefix_space=False)]
    posts += [processors.ByteLevel(trim_offsets=True), processors.ByteLevel(trim_offsets=False)]
    norms = [None, normalizers.Lowercase(), normalizers.NFC()]
    for cut, post, norm, prefix in product(CUTS.values(), posts, norms, (False, True)):
        sequence = split.Sequence([cut, split.ByteLevel(add_prefix_space=prefix)])
        tokenizer = byte_level(sequence, processors.ByteLevel(), norm)
        template = "<s> $A </s> $B </s>"
        ends = processors.TemplateProcessing("<s> $A </s>", template, [("<s>", 0), ("</s>", 2)])
        steps = [ends] if post is None else [post, ends]
        if not isinstance(post, processors.RobertaProcessing):
            tokenizer.backend_tokenizer.post_processor = processors.Sequence(steps)
        else:
            tokenizer.backend_tokenizer.post_processor = post
        result = make_windows(rows(), tokenizer, max_seq_length=128, labels=True, disable_tqdm=True)
        for text, answer in zip(labelled(result), ANSWERS, strict=True):
            assert answer in text
            assert len(text) < len(answer) + 10


@pytest.mark.parametrize("shift", [(1, 1), (-1, -1), (-1, 0)])
def test_a_constant_error_of_all_offsets_is_found(shift):
    tokenizer = trained.word_piece()
    (sample,) = sample_of(tokenizer, [trained.TEXTS[0]])
    offsets = np.array(sample[2], np.int32)
    wrong = [(s - shift[0], e - shift[1]) for s, e in sample[2]]
    found = WrongOffsets(
        [(sample[0], sample[1], wrong)], TokenTexts(tokenizer.backend_tokenizer, set())
    )
    assert found.share > 0.5
    assert found.shift == shift
    corrected = shifted(np.array(wrong, np.int32), found.shift)
    np.testing.assert_array_equal(corrected[2:], offsets[2:])


def test_offsets_that_nothing_explains_are_refused(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    settings = {"tokenizer_class": "RobertaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"offsets are wrong for \d+% of the tokens \(the token"):
        windows([r for r in tiny.rows() if r["answers"]["text"]], tokenizer, 64, 16)


def test_characters_that_a_normalizer_takes_apart_have_right_offsets(caplog):
    """An uncased BERT makes several letters, and so several tokens, of one Korean syllable."""
    text = "서울은 대한민국의 수도이며 한강이 흐른다. 부산은 두 번째로 큰 도시이다. 12½"
    normalizer = normalizers.BertNormalizer(lowercase=True)
    letters = sorted(set(normalizer.normalize_str(text)) - {" "})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizer, split.BertPreTokenizer()
    backend.post_processor = tiny.tokenizer().backend_tokenizer.post_processor
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=512, sep_token="[SEP]", **special
    )
    answer = "한강이 흐른다"
    row = {"id": "q", "question": "서울?", "context": text}
    row["answers"] = {"text": [answer], "answer_start": [text.index(answer)]}
    made = windows([row], tokenizer, 256, 32)
    offsets = made.features().offsets[0]
    first, last = made.start_positions[0], made.end_positions[0]
    assert text[offsets[first][0] : offsets[last][1]] == answer
    assert not caplog.records


class Spaces:
    """A pre-tokenizer in Python, as RoFormer's tokenizer has one for Chinese words."""

    def pre_tokenize(self, text):
        text.split(lambda _, part: part.split(" ", "removed"))


def test_a_tokenizer_with_a_part_in_python_makes_windows():
    tokenizer, rows = tiny.tokenizer(), tiny.rows()[:2]
    tokenizer.backend_tokenizer.pre_tokenizer = split.PreTokenizer.custom(Spaces())
    made = windows(rows, tokenizer, 64, 16)
    (start,), (end,) = made.start_positions[:1], made.end_positions[:1]
    begin, last = (made.features().offsets[0][n] for n in (start, end))
    assert rows[0]["context"][begin[0] : last[1]] == "Ada Lovelace"


@pytest.mark.slow
def test_the_tokenizer_of_roformer_keeps_the_words_of_its_vocabulary(tmp_path):
    """From vocab.txt, transformers' own splits them into characters until it is saved."""
    pytest.importorskip("rjieba", reason="RoFormer's tokenizer needs rjieba")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气非常好谁", "非常"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    settings = {"tokenizer_class": "RoFormerTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(tmp_path), argument="tokenizer")
    assert tokenizer.tokenize("今天天气非常好") == ["今", "天", "天", "气", "非常", "好"]
