"""Passages fit into windows, lose no text, and their words begin and end where tokens do."""

from pathlib import Path

import pytest
import tiny
from transformers import AutoTokenizer

from qa_flax.data.documents import Document
from qa_flax.data.passages import GAP, PassageReader
from qa_flax.data.spool import Spool
from qa_flax.data.tokens import plain_encoding

TOKENIZERS = Path(__file__).parents[1] / "golden" / "pipeline" / "tokenizers"
KINDS = sorted(path.name for path in TOKENIZERS.iterdir())
TEXT = (
    "The Elbe flows through Dresden, a city. A bridge (of 1843) spans the Elbe's arm; it's old.\n"
    "Café Zürich sells 12½ kinds of cake.\n\n東京は日本の首都です。東京 is big.\n\n"
    "القاهرة عاصمة مصر. ภาษาไทยเป็นภาษา "
)


def passages_of(texts, tokenizer, room=40):
    reader = PassageReader(tokenizer.backend_tokenizer, room, set())
    with plain_encoding(tokenizer.backend_tokenizer, False):
        documents = [Document(str(n), text) for n, text in enumerate(texts)]
        return list(reader.read(documents)), reader


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_aligned_with_the_tokens_of_every_kind_of_tokenizer(kind):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / kind)
    passages, reader = passages_of([TEXT * 3], tokenizer, room=60)
    words = set()
    for passage in passages:
        offsets = tokenizer(passage.text, return_offsets_mapping=True)["offset_mapping"]
        # As for the words: a token may include the blank before it.
        starts = {s + (passage.text[s : s + 1] == " ") for s, e in offsets if e > s}
        ends = {e for _, e in offsets}
        places = zip(passage.words, passage.starts, passage.ends, strict=True)
        for word, start, end in places:
            if word != GAP:
                words.add(passage.text[start:end])
                assert start in starts, passage.text[start:end]
                assert end in ends, passage.text[start:end]
        assert passage.words[-1] == GAP
    assert {"Elbe", "flows", "Dresden", "1843"} <= words
    assert len(reader.vocabulary) <= len(words)


def test_passages_fit_and_no_sentence_is_lost():
    tokenizer = tiny.tokenizer()
    sentence = "The river Elbe flows through Dresden and Hamburg. "
    texts = [sentence * 30 + "\n\nshort.\n\n" + sentence, "One.\n\nTwo.\n\nThree.", sentence * 2]
    room = 60
    passages, _ = passages_of(texts, tokenizer, room)
    for n, text in enumerate(texts):
        own = [p for p in passages if p.title == str(n)]
        assert " ".join(" ".join(p.text for p in own).split()) == " ".join(text.split())
    sizes = [len(tokenizer(p.text, add_special_tokens=False)["input_ids"]) for p in passages]
    assert sizes == [sum(p.tokens) for p in passages]
    assert max(sizes) <= room
    parts = [size for p, size in zip(passages, sizes, strict=True) if p.title == "0"][:-1]
    assert min(parts) > 0.6 * max(parts), "parts of one paragraph are of similar size"
    assert [p.text for p in passages if p.title == "1"] == [texts[1]], "short ones are joined"


def test_sentences_and_words_lie_where_they_say():
    tokenizer = tiny.tokenizer()
    passages, _ = passages_of([TEXT], tokenizer)
    for passage in passages:
        assert passage.sentences[0][0] == 0
        assert passage.sentences[-1][1] == len(passage.text)
        joined = [w for part in passage.words_by_sentence() for w in part if w != GAP]
        assert joined == [word for word in passage.words if word != GAP]
        assert len(list(passage.words_by_sentence())) == len(passage.sentences)


def test_equal_words_have_one_number_and_a_spool_keeps_passages():
    tokenizer = tiny.tokenizer()
    passages, reader = passages_of(["The ELBE. the Elbe. Éa e\u0301a"], tokenizer)
    (passage,) = passages
    numbers = [word for word in passage.words if word != GAP]
    assert numbers[:2] == numbers[2:4]
    assert reader.vocabulary.is_short == [False, False, False][: len(reader.vocabulary)]
    with Spool() as spool:
        for n in range(3):
            spool.add(passage._replace(title=str(n)))
        for _ in range(2):
            assert [p.title for p in spool] == ["0", "1", "2"]
        assert next(iter(spool))._replace(title="") == passage._replace(title="")
        assert len(spool) == 3
