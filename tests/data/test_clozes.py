"""Clozes: the promises that every row keeps, over real texts in five languages."""

import random
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import tiny
from conftest import shared_path
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qa_flax import load_examples, make_clozes, prepare_train_features
from qa_flax.data.clozes import NoClozesError, find_clozes
from qa_flax.data.documents import Documents
from qa_flax.data.sentences import WORDS, sentence_spans

TOKENIZERS = Path(__file__).parents[1] / "golden" / "pipeline" / "tokenizers"
STORY = (
    "The Elbe flows through Dresden and Meissen. A bridge spans the Elbe in the old town. "
    "Dresden has many museums, which people like to visit. In spring the water rises."
)


@pytest.fixture(scope="module")
def minilm():
    return AutoTokenizer.from_pretrained(shared_path("models", "all-MiniLM-L6-v2"))


def contexts(name: str, limit: int | None = None) -> list[dict]:
    """The different contexts of a shared file, as rows without questions; each has a title."""
    examples = load_examples(shared_path("data", *name.split("/")))
    texts = list(dict.fromkeys(examples["context"]))[:limit]
    return [{"context": text, "title": str(n)} for n, text in enumerate(texts)]


def folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def without_blanks(text: str) -> str:
    return "".join(folded(text).split())


def check(row: dict, text: str, mask: str) -> None:
    """Check what a cloze of a text promises."""
    context, question, answers = row["context"], row["question"], row["answers"]
    assert 1 <= len(answers["text"]) <= 3
    answer = answers["text"][0]
    for other, start in zip(answers["text"], answers["answer_start"], strict=True):
        assert context[start : start + len(other)] == other
        assert folded(other) == folded(answer)
    assert question.count(mask) == 1
    before, _, after = question.partition(mask)
    assert folded(answer) not in folded(f"{before}\n{after}")
    # The sentence is one of the text, and no longer one of the context.
    sentence = without_blanks(before + answer + after)
    assert sentence in without_blanks(text)
    own = {without_blanks(context[slice(*span)]) for span in sentence_spans(context)}
    assert sentence not in own
    # 1 to 5 words, where a character of a script without blanks is half a word.
    words = [m for m in WORDS.finditer(answer) if m.lastgroup != "gap"]
    size = sum(len(m[0]) / 2 if m.lastgroup == "unspaced" else 1 for m in words)
    assert 1 <= size <= 5, answer
    assert len(answer.strip()) == len(answer) > 1


@pytest.mark.parametrize(
    ("name", "limit", "least"),
    [
        ("xquad/xquad.en.json", 30, 60),
        ("xquad/xquad.zh.json", 30, 60),
        ("xquad/xquad.ar.json", 30, 20),
        pytest.param("xquad/xquad.en.json", None, 700, marks=pytest.mark.slow),
        pytest.param("xquad/xquad.de.json", None, 600, marks=pytest.mark.slow),
        pytest.param("xquad/xquad.es.json", None, 600, marks=pytest.mark.slow),
        pytest.param("xquad/xquad.zh.json", None, 800, marks=pytest.mark.slow),
        pytest.param("xquad/xquad.ar.json", None, 300, marks=pytest.mark.slow),
        pytest.param("squadshifts/reddit_v1.0.json", None, 6000, marks=pytest.mark.slow),
        pytest.param("squadshifts/amazon_reviews_v1.0.json", None, 4000, marks=pytest.mark.slow),
    ],
)
def test_every_cloze_keeps_its_promises(name, limit, least, minilm):
    rows = contexts(name, limit)
    clozes = make_clozes(rows, minilm, max_per_passage=4, disable_tqdm=True)
    assert len(clozes) >= least
    ids = clozes["id"][:]
    assert len(set(ids)) == len(ids)
    assert all(id_.startswith("cloze-") for id_ in ids)
    texts = {row["title"]: row["context"] for row in rows}
    for cloze in clozes:
        check(cloze, texts[cloze["title"]], "[MASK]")
    counts = Counter(clozes["title"])
    short = [title for title in counts if len(minilm.tokenize(texts[title])) < 300]
    assert 0 < max(counts[title] for title in short) <= 4
    # What is trained on: each in one window, with its label on the answer's tokens.
    features = prepare_train_features(clozes, minilm, disable_tqdm=True)
    assert len(features) == len(clozes)
    for cloze, window in zip(clozes, features, strict=True):
        first, last = window["start_positions"], window["end_positions"]
        start, end = window["offset_mapping"][first][0], window["offset_mapping"][last][1]
        assert cloze["context"][start:end] == cloze["answers"]["text"][0]


@pytest.mark.parametrize("kind", sorted(path.name for path in TOKENIZERS.iterdir()))
def test_every_kind_of_tokenizer_gives_labels_on_whole_tokens(kind):
    """Also where a token is a part of a Chinese sentence, or includes the blank before it."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / kind, model_max_length=512)
    texts = [STORY, "東京都は日本の首都です。江戸は東京都の昔の名前でした。人が多いです。"]
    rows = [{"context": text} for text in texts]
    mask = "what" if tokenizer.mask_token is None else None
    clozes = make_clozes(rows, tokenizer, mask=mask, max_seq_length=512, disable_tqdm=True)
    answers = {folded(text) for row in clozes for text in row["answers"]["text"]}
    assert "elbe" in answers
    features = prepare_train_features(clozes, tokenizer, 512, disable_tqdm=True)
    for cloze, window in zip(clozes, features, strict=True):
        first, last = window["start_positions"], window["end_positions"]
        start, end = window["offset_mapping"][first][0], window["offset_mapping"][last][1]
        assert cloze["context"][start:end].strip() == cloze["answers"]["text"][0]


# ---- the choice ----------------------------------------------------------------------------------


def test_the_seed_decides_and_nothing_else_does(minilm):
    rows = contexts("xquad/xquad.en.json", 20)
    shuffled = random.Random(0).sample(rows, len(rows))

    def made(rows, **settings):
        clozes = make_clozes(rows, minilm, disable_tqdm=True, **settings)
        return {row["id"]: row for row in clozes}

    first = made(rows, seed=1)
    assert made(rows, seed=1) == first
    assert list(made(rows, seed=1)) == list(first)
    assert made(shuffled, seed=1) == first
    assert made([*rows, *rows[:5]], seed=1) == first, "texts that are given twice count once"
    assert made(rows, seed=2).keys() != first.keys()


def test_max_clozes_takes_some_of_all_passages(minilm):
    rows = contexts("xquad/xquad.en.json", 30)
    everything = make_clozes(rows, minilm, disable_tqdm=True)
    titles = set(everything["title"])
    some = make_clozes(rows, minilm, max_clozes=len(titles), disable_tqdm=True)
    assert len(some) == len(titles)
    assert len(set(some["title"])) > 0.9 * len(titles)
    order = everything["id"][:]
    places = [order.index(id_) for id_ in some["id"]]
    assert places == sorted(places)
    assert len(make_clozes(rows, minilm, max_clozes=10**6, disable_tqdm=True)) == len(everything)


def test_a_short_story_gives_the_clozes_that_a_reader_would_make():
    clozes = make_clozes([{"context": STORY}], tiny.tokenizer(), mask="what", disable_tqdm=True)
    found = {row["answers"]["text"][0]: row for row in clozes}
    assert found.keys() >= {"Elbe", "Dresden"}
    assert "the" not in found
    river, town = found["Elbe"], found["Dresden"]
    assert river["question"] in (
        "The what flows through Dresden and Meissen.",
        "A bridge spans the what in the old town.",
    )
    assert town["question"] in (
        "The Elbe flows through what and Meissen.",
        "what has many museums, which people like to visit.",
    )
    for row in found.values():
        assert len(row["context"]) < len(STORY)
        check(row, STORY, "what")


def test_passages_fit_into_the_windows_that_will_be_trained_on(minilm):
    rows = contexts("xquad/xquad.en.json", 10)
    for length in (64, 128):
        clozes = make_clozes(rows, minilm, max_seq_length=length, disable_tqdm=True)
        features = prepare_train_features(clozes, minilm, length, 16, disable_tqdm=True)
        assert len(features) == len(clozes) > 3


# ---- what goes wrong -----------------------------------------------------------------------------


def test_it_says_why_there_are_no_clozes():
    tokenizer = tiny.tokenizer()
    cases = {
        "3 of the passages are one sentence only": ["One thing.", "Another thing.", "A third."],
        "no span of content words occurs 2 to 4 times": ["The Elbe flows. A bridge spans it."],
        "again do so in the same sentence": ["The Elbe is the Elbe. It flows."],
    }
    for reason, texts in cases.items():
        with pytest.raises(NoClozesError, match=reason) as error:
            make_clozes([{"context": text} for text in texts], tokenizer, disable_tqdm=True)
        assert "Give longer texts" in str(error.value)


def test_a_tokenizer_without_mask_token_needs_a_word():
    tokenizer = tiny.tokenizer()
    tokenizer.mask_token = None
    rows = [{"context": STORY}]
    with pytest.raises(ValueError, match=r'has no mask token .* such as mask="what"'):
        make_clozes(rows, tokenizer)
    assert "what" in make_clozes(rows, tokenizer, mask=" what ", disable_tqdm=True)[0]["question"]
    for mask in ("", " ", "two\nlines", 7):
        with pytest.raises(ValueError, match=r"mask is .* it must be a word or a few"):
            make_clozes(rows, tokenizer, mask=mask)


@pytest.mark.parametrize(
    "settings",
    [{"max_clozes": 0}, {"max_per_passage": 0}, {"seed": -1}, {"max_seq_length": 10}],
    ids=str,
)
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        make_clozes([{"context": STORY}], tiny.tokenizer(), **settings)


def test_a_tokenizer_of_another_language_is_a_warning(minilm, caplog):
    make_clozes(contexts("xquad/xquad.zh.json", 5), minilm, disable_tqdm=True)
    assert "61% of the tokens" in caplog.text or "does not know" in caplog.text


def test_mask_tokens_in_the_text_are_no_second_mask():
    text = STORY.replace("A bridge", "A bridge [MASK]")
    for row in make_clozes([{"context": text}], tiny.tokenizer(), disable_tqdm=True):
        assert row["question"].count("[MASK]") == 1


def test_few_passages_have_stop_words_by_their_sentences(minilm):
    """In one document of one paragraph, too, "the" is no answer."""
    text = " ".join(
        f"The river number {n} flows through the town of Abc{n % 7} and through the hills."
        for n in range(12)
    )
    clozes = make_clozes([{"context": text}], minilm, disable_tqdm=True)
    assert len(clozes) >= 2
    assert not {"the", "and", "through"} & {row["answers"]["text"][0].lower() for row in clozes}


def test_a_huge_line_is_read_in_little_time(minilm):
    words = [f"word{n % 40 + 40 * (n // 120)}" for n in range(20_000)]
    found = find_clozes(
        Documents([[{"context": " ".join(words)}, {"context": STORY}]]),
        minilm,
        mask=None,
        keep_sentence=False,
        max_clozes=20,
        max_per_passage=6,
        max_seq_length=384,
        seed=0,
        disable_tqdm=True,
    )
    assert found.documents == 2
    assert found.passages > 100
    assert len(found.examples) == 20


THAI = (
    "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย และเป็นศูนย์กลางการปกครองของประชาชน "
    "แม่น้ำเจ้าพระยาไหลผ่านกรุงเทพมหานครทำให้แบ่งเมืองออกเป็นสองฝั่ง ประเทศไทยมีประชากรมากกว่า"
    "ประเทศอื่น แม่น้ำเจ้าพระยาเป็นแม่น้ำสำคัญของภาคกลางในปัจจุบัน"
)


def test_thai_has_sensible_spans_even_where_tokens_are_characters():
    """It separates neither words nor sentences; a span begins with no vowel sign."""
    letters = sorted({*THAI} - {" "})
    ids = {t: n for n, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters])}
    backend = Tokenizer(models.WordLevel(ids, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    names = {f"{name}_token": token for name, token in names.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    clozes = make_clozes([{"context": THAI}], tokenizer, disable_tqdm=True)
    answers = [row["answers"]["text"][0] for row in clozes]
    assert {"กรุงเทพมหานคร", "แม่น้ำเจ้าพระยา"} & set(answers)
    for row, answer in zip(clozes, answers, strict=True):
        assert not unicodedata.category(answer[0]).startswith("M")
        start = row["answers"]["answer_start"][0]
        following = row["context"][start + len(answer) :][:1]
        assert not following or not unicodedata.category(following).startswith("M")
