"""Each change of a text leaves the answers what they are, at the places that it returns."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa_flax.data.augment_texts import Passage, noisy, shuffled, with_distractors, without_words
from qa_flax.data.text_words import sentence_spans, word_spans

CONTEXT = " Ada wrote programs in 1843. Babbage built the engine; it was big. Nobody paid him.\n"


def passage(*texts, context=CONTEXT):
    starts = [context.index(text) for text in texts]
    return Passage(context, tuple((s, s + len(t)) for s, t in zip(starts, texts, strict=True)))


def answers(passage):
    return [passage.context[start:end] for start, end in passage.answers]


CHANGES = {
    "shuffle": shuffled,
    "distract": lambda p, rng: with_distractors(p, ["The Elbe flows.", "上海很大。"], rng),
    "noise": lambda p, rng: noisy(p, 0.4, rng),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@settings(max_examples=60, deadline=None)
@given(
    context=st.text(alphabet="ab. ?。中हि\u0301\n東é", min_size=1, max_size=40),
    cuts=st.lists(st.tuples(st.integers(0, 39), st.integers(1, 12)), max_size=4),
    seed=st.integers(0, 99),
)
def test_answers_stay_what_they_are(change, context, cuts, seed):
    spans = [(a, min(len(context), a + n)) for a, n in cuts if a < len(context)]
    before = Passage(context, tuple(spans))
    assert answers(change(before, Random(seed))) == answers(before)


def test_a_shuffle_moves_whole_sentences_and_keeps_one_that_holds_an_answer_together():
    before = passage("1843. Babbage built")
    after = shuffled(before, Random(0))
    assert after.context == (
        " Nobody paid him. Ada wrote programs in 1843. Babbage built the engine; it was big.\n"
    )
    assert answers(after) == ["1843. Babbage built"]


def test_distractors_are_separated_as_the_context_is():
    after = with_distractors(passage("Ada"), ["One more.", "And one."], Random(1))
    sentences = {after.context[start:end] for start, end in sentence_spans(after.context)}
    assert {"One more.", "And one."} < sentences
    assert after.context.startswith(" ")
    assert after.context.endswith("\n")
    chinese = with_distractors(
        passage(context="东京是首都。京都以前是。"), ["上海很大。"], Random(0)
    )
    assert " " not in chinese.context
    assert with_distractors(Passage("", ()), ["One."], Random(0)).context == "One."


def test_noise_changes_its_share_of_the_letters_but_no_word_of_an_answer():
    context = "programs programming " * 200 + "programmer. " + "paid " * 400
    start = context.index("programmer.")
    before = Passage(context, ((start, start + 7),))
    after = noisy(before, 0.1, Random(0))
    assert after.context[after.answers[0][0] :].startswith("programmer.")  # the whole word
    words = [context.split(), after.context.split()]
    assert len(words[0]) == len(words[1])
    # A word of n letters stays as it is with a probability of about 0.9 ** n.
    same = Counter(a == b for a, b in zip(*words, strict=True) if a == "paid")
    assert 0.5 < same[True] / 400 < 0.8
    assert noisy(Passage("a 1 c", ()), 1.0, Random(0)).context == "a 1 c"


def test_noise_draws_letters_of_the_same_script_and_spares_letters_with_marks():
    text = "कि खि " * 50
    assert noisy(Passage(text, ()), 1.0, Random(0)).context == text
    chinese = "东京是日本的首都" * 30
    assert set(noisy(Passage(chinese, ()), 0.5, Random(0)).context) <= set(chinese)


def test_words_are_left_out_but_never_all():
    question = "Who wrote the first program, and when?"
    for seed in range(20):
        text = without_words(question, 1.0, Random(seed))
        assert len(word_spans(text)) == 1
        assert text.endswith("?")
    drawn = {without_words(question, 0.3, Random(seed)) for seed in range(20)}
    assert len(drawn) > 10
    assert all("  " not in text and " ?" not in text for text in drawn)
    assert without_words("Who?", 1.0, Random(0)) == "Who?"
    assert 0 < len(without_words("首都はどこですか", 0.5, Random(0))) < 8
