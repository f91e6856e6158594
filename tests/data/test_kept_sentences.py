"""Questions about sentences that stay in the context: what every row promises, over real texts."""

from collections import Counter

import pytest
import regex
from conftest import shared_path
from transformers import AutoTokenizer

from qa_flax import load_examples, make_clozes, prepare_train_features
from qa_flax.data.clozes import NoClozesError
from qa_flax.data.sentences import sentence_spans

WORDS = regex.compile(r"[\p{L}\p{M}\p{N}]+")


@pytest.fixture(scope="module")
def minilm():
    return AutoTokenizer.from_pretrained(shared_path("models", "all-MiniLM-L6-v2"))


def contexts(name, limit):
    examples = load_examples(shared_path("data", *name.split("/")))
    texts = list(dict.fromkeys(examples["context"]))[:limit]
    return [{"context": text, "title": str(n)} for n, text in enumerate(texts)]


def parts(text):
    """Its words, or characters, whatever their order."""
    return Counter(character for word in WORDS.findall(text) for character in word)


@pytest.mark.parametrize(
    ("name", "limit", "least"),
    [
        ("xquad/xquad.en.json", 30, 80),
        ("xquad/xquad.zh.json", 20, 60),
        ("xquad/xquad.ar.json", 20, 30),
        pytest.param("xquad/xquad.de.json", None, 900, marks=pytest.mark.slow),
        pytest.param("xquad/xquad.zh.json", None, 900, marks=pytest.mark.slow),
        pytest.param("squadshifts/reddit_v1.0.json", None, 6000, marks=pytest.mark.slow),
    ],
)
def test_every_question_keeps_its_promises(name, limit, least, minilm):
    rows = contexts(name, limit)
    made = make_clozes(rows, minilm, keep_sentence=True, max_per_passage=4, disable_tqdm=True)
    assert len(made) >= least
    assert len(set(made["id"][:])) == len(made)
    texts = {row["title"]: row["context"] for row in rows}
    changed = inside = 0
    for row in made:
        (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        context, question = row["context"], row["question"]
        assert context in texts[row["title"]], "the whole passage"
        assert context[start : start + len(answer)] == answer
        end = start + len(answer)
        spans = [(a, b) for a, b in sentence_spans(context) if a <= start and end <= b]
        sentence = context[slice(*spans[0])] if spans else ""
        assert question.count("[MASK]") == 1
        said = question.replace("[MASK]", " ").rstrip("?")
        rest = sentence.replace(answer, " ", 1) if sentence.count(answer) == 1 else sentence
        # A passage is a part of a text, whose sentences may end elsewhere when it is read alone.
        assert not parts(said) - parts(context[:start] + context[end:]), question
        inside += not parts(said) - parts(rest)
        changed += "".join(said.split()) not in "".join(rest.split())
    assert inside > 0.98 * len(made)
    assert changed > len(made) / 3, "many have words left out or moved"
    # What is trained on: each in one window, with its label on the answer's tokens.
    features = prepare_train_features(made, minilm, disable_tqdm=True)
    assert len(features) == len(made)
    for row, window in zip(made, features, strict=True):
        first, last = window["start_positions"], window["end_positions"]
        start, end = window["offset_mapping"][first][0], window["offset_mapping"][last][1]
        assert row["context"][start:end] == row["answers"]["text"][0]


def test_the_choice_depends_on_text_and_seed_alone(minilm):
    rows = contexts("xquad/xquad.en.json", 12)

    def made(rows, **settings):
        examples = make_clozes(rows, minilm, keep_sentence=True, disable_tqdm=True, **settings)
        return {row["id"]: row for row in examples}

    first = made(rows, seed=1)
    assert made(rows[::-1], seed=1) == first
    assert made(rows, seed=2).keys() != first.keys()
    few = made(rows, seed=1, max_clozes=12)
    assert few.items() <= first.items()
    assert len({row["context"] for row in few.values()}) == 12, "of as many passages as possible"
    words = ["what", "who"]
    questions = [WORDS.findall(row["question"]) for row in made(rows, seed=1, mask=words).values()]
    assert all(set(words) & set(question) for question in questions)
    assert 0.3 < sum("who" in question for question in questions) / len(questions) < 0.7


def test_short_windows_and_texts(minilm):
    rows = contexts("xquad/xquad.en.json", 12)
    made = make_clozes(rows, minilm, keep_sentence=True, max_seq_length=96, disable_tqdm=True)
    features = prepare_train_features(made, minilm, 96, doc_stride=16, disable_tqdm=True)
    assert len(features) == len(made) > 10
    with pytest.raises(NoClozesError, match="sentences have too few words"):
        make_clozes([{"context": "Yes. No. Go on."}], minilm, keep_sentence=True, disable_tqdm=True)
