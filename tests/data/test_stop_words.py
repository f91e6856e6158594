"""Stop words are recognized by their spread, in every language, without lists."""

import json
from collections import Counter

import numpy as np
import pytest
from conftest import shared_path

from qa_flax.data.sentences import WORDS
from qa_flax.data.stop_words import MIN_PASSAGES, frequent_words, stop_words


def found_in(language: str) -> tuple[set[str], set[str]]:
    """The stop words of XQuAD's contexts, and the other words."""
    data = json.loads(shared_path("data", "xquad", f"xquad.{language}.json").read_text())
    contexts = [p["context"] for article in data["data"] for p in article["paragraphs"]]
    is_unspaced = language == "zh"
    texts = []
    for context in contexts:
        matches = [m[0].casefold() for m in WORDS.finditer(context) if m.lastgroup != "gap"]
        texts.append([c for m in matches for c in m] if is_unspaced else matches)
    occurrences = Counter(word for text in texts for word in text)
    passages = Counter(word for text in texts for word in set(text))
    words = list(occurrences)
    counts = (np.array([c[w] for w in words]) for c in (occurrences, passages))
    is_character = np.full(len(words), is_unspaced)
    is_stopped = stop_words(*counts, len(texts), is_character)
    stopped = {word for word, stop in zip(words, is_stopped, strict=True) if stop}
    return stopped, set(words) - stopped


@pytest.mark.parametrize(
    ("language", "function", "content"),
    [
        ("en", "the of and in however not from their", "plague tesla parliament chloroplast khan"),
        ("de", "der die und nicht jedoch wurde sich", "rippenquallen jacksonville tesla schulen"),
        ("es", "de la que los entre también su", "ctenóforos oxígeno tesla universidad"),
        ("ar", "في من على إلى أن التي", "جاكسونفيل البلاستيدات النمو نيوكاسل"),
        ("zh", "的 在 是 和 为", "国 学 药 疫 氧 校"),
    ],
)
def test_function_words_are_stop_words_and_subjects_are_not(language, function, content):
    stopped, others = found_in(language)
    assert set(function.split()) <= stopped
    assert set(content.split()) <= others
    assert len(stopped) < 0.2 * len(others)


def test_a_few_passages_say_nothing():
    counts = np.full(3, MIN_PASSAGES - 1)
    assert not stop_words(counts, counts, 20, np.zeros(3, bool)).any()
    assert not stop_words(counts // 4, counts // 4, 3, np.zeros(3, bool)).any()
    assert not stop_words(np.zeros(1, int), np.zeros(1, int), 0, np.zeros(1, bool)).any()


def test_words_of_most_passages_are_stop_words_where_there_are_few():
    occurrences, passages = np.array([9, 4, 9, 1]), np.array([6, 3, 2, 1])
    stopped = stop_words(occurrences, passages, 6, np.zeros(4, bool))
    assert stopped.tolist() == [True, True, False, False]
    assert frequent_words(np.array([6, 3, 2]), 6).tolist() == [True, True, False]
