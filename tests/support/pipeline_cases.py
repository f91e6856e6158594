"""Questions for the comparison with the question-answering pipeline of transformers 4.57.

Both sides import them: `tests/golden/make_pipeline_golden.py` in the virtual environment of 4.57,
and `tests/answering/test_pipeline_parity.py`. Nothing of qa_flax is imported.
"""

import itertools
import json
from pathlib import Path
from random import Random

# Contexts by name. Most are longer than one window of `pipeline_checkpoints.LONGEST` tokens.
CONTEXTS = {
    "letter case": (
        "The lighthouse stands on the Long Rock. The Lighthouse was lit in 1848; THE LIGHTHOUSE "
        "keeper, Mary Ann, rowed out to the long rock and back. The LIGHTHOUSE, the lighthouse!"
    ),
    "emoji": (
        "The 👩‍👩‍👧‍👦 family from 🇩🇪 won 🥇🥈 gold in Köln 👍🏽👍🏿, then ate 🍕 and 🍦🍦🍦 "
        "at the café ☕️ near the 🏳️‍🌈 tower. 😀"
    ),
    "combining marks": (
        "Le cafe\u0301 de\u0301butant a\u0300 Besanc\u0327on, Vie\u0323\u0302t Nam, "
        "Ko\u0308ln und A\u030angstro\u0308m: e\u0301te\u0301, n\u0303andu\u0301. "
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e, "
        "\u1112\u1161\u11ab\u1100\u1173\u11af."
    ),
    "right to left": (
        "\u202bالقاهرة هي عاصمة مِصْرَ\u202c وأكبر مدنها، ويمر بها نهر النيل. "  # noqa: RUF001
        "ירושלים היא עיר עתיקה, and the Nile is 6,650 km long (\u200fנהר\u200f)."
    ),
    "line ends": (
        "First line\r\nsecond line\r\n\r\n\tthird,  with   spaces\u00a0and a \u200bzero-width "
        "one.\nFourth line \r\nFifth line: the end of the lines.\r\n"
    ),
    "no spaces": (
        "東京は日本の首都であり、京都は昔の首都でした。北京是中国的首都，上海是中国最大的城市。"  # noqa: RUF001
        "東京タワーは333メートルです。"
    ),
    "long words": (
        "The Donaudampfschifffahrtsgesellschaftskapitän of Llanfairpwllgwyngyllgogerychwyrndrobwll "
        "met the Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz minister of "
        "Taumatawhakatangihangakoauauotamateaturipukakapikimaungahoronukupokaiwhenuakitanatahu."
    ),
    "changed by normalisation": (
        "İstanbul, ISTANBUL and istanbul; Straße, STRASSE; ﬁne ½ of 12½, ①②③, №5 … ﬀ 3㎏, Å, Ⅳ; "
        "“quoted” — ‘and’ dashed – text."  # noqa: RUF001
    ),
    "short": "Paris.",
    "one character": "7",
    "white space around": "   \n The answer is between spaces.  \t ",
    "unknown tokens": "♠♣♥♦ 🂡🂢 are ♠ cards ♣, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 and ♥♥♥.",  # noqa: RUF001
    "sentences": (
        "Anna went to Rome in May. Ben went to Oslo in June. Carl went to Lima in July. Dora went "
        "to Cairo in March. Emil went to Kyoto in April. Fay went to Quito in August. Gus went to "
        "Delhi in winter. Hal went to Paris in spring. Ida went to Tokyo in autumn, and stayed."
    ),
}
QUESTIONS = [
    "Who went where?",
    "  \n Where is the tower?",
    "¿Qué 🍕?",
    "ما هي عاصمة مصر؟",
    "首都はどこですか?",
    "When?\r\n",
    "What did Mary Ann row to, and which\tline was it?",
]
# Settings of a call by name.
SETTINGS = {
    "defaults": {},
    "top 3": {"top_k": 3},
    "top 10": {"top_k": 10, "max_answer_len": 5},
    "long answers": {"top_k": 4, "max_answer_len": 40},
    "one token": {"top_k": 2, "max_answer_len": 1},
    "no answer": {"handle_impossible_answer": True, "top_k": 3},
    "no answer, one": {"handle_impossible_answer": True},
    "tokens": {"align_to_words": False, "top_k": 3},
    "tokens, one": {"align_to_words": False},
    "small windows": {"max_seq_len": 40, "doc_stride": 8, "top_k": 5},
    "wide overlap": {"max_seq_len": 48, "doc_stride": 18, "top_k": 3},
    "small windows, tokens": {"max_seq_len": 40, "doc_stride": 5, "align_to_words": False},
}


def tiny_calls() -> dict[str, dict]:
    """The calls for each tiny checkpoint by name: question, context and settings."""
    calls = {}
    questions = itertools.cycle(enumerate(QUESTIONS))
    for (about, context), (name, settings) in itertools.product(CONTEXTS.items(), SETTINGS.items()):
        number, question = next(questions)
        calls[f"{about} / {number} / {name}"] = {
            "question": question,
            "context": context,
            **settings,
        }
    return calls


def random_calls(seed: int, count: int) -> dict[str, dict]:
    """Calls whose texts are random characters and words, with random settings."""
    random = Random(seed)
    pieces = [*_PIECES, *" ".join([*CONTEXTS.values(), *QUESTIONS]).split()]
    calls = {}
    for n in range(count):
        kinds = random.sample(pieces, random.randint(1, 12))
        separator = random.choice(["", " ", " ", "  "])
        length = random.choice([1, 3, 20, 60])
        calls[f"random {seed} {n}"] = {
            # So short that windows of 40 tokens have room for more than the overlap.
            "question": "".join(random.choices(_PIECES, k=3)) + "?",
            "context": separator.join(random.choices(kinds, k=length)),
            "top_k": random.choice([1, 1, 3, 10]),
            "max_answer_len": random.choice([1, 4, 15, 40]),
            "max_seq_len": random.choice([40, 52, 64]),
            "doc_stride": random.choice([0, 1, 8]),
            "handle_impossible_answer": random.random() < 0.3,
            "align_to_words": random.random() < 0.6,
        }
    return calls


# Characters that tokenizers remove, expand, join or split.
_PIECES = [
    *"aBzÀßẞİıﬁ½①㎏Åéñ7.,;-'“—€",  # noqa: RUF001
    *"東京は。한글ابמِ",
    *"\r\n\t \u00a0\u3000\u200b\u200f\ufeff\x00\x1c\x85\u2028",
    *"\u0301\u0323\u0327\u1100\u1161\u11a8\u0e33",
    *["👍🏽", "👩‍👩‍👧", "🇩🇪", "🏳️‍🌈", "e\u0301", "\r\n", "🂡", "don't", "U.S.", "3,14"],
]

# ---- xquad ---------------------------------------------------------------------------------------

LANGUAGES = ("en", "de", "es", "zh", "ar")
XQUAD_SETTINGS = {
    "defaults": {},
    "top 3": {"top_k": 3},
    "top 10": {"top_k": 10},
    "no answer": {"handle_impossible_answer": True, "top_k": 3},
    "tokens": {"align_to_words": False, "top_k": 3},
    "long answers": {"max_answer_len": 40, "top_k": 2},
    "small windows": {"max_seq_len": 128, "doc_stride": 32, "top_k": 3},
    "wide overlap": {"max_seq_len": 192, "doc_stride": 100, "top_k": 3},
}
XQUAD_SAMPLE = 40  # questions of each language
JOINED = 3  # paragraphs of a long context


def squad_rows(path: Path) -> list[dict]:
    """The questions of a nested SQuAD file, each with id, question and context."""
    return [
        {"id": qa["id"], "question": qa["question"], "context": paragraph["context"]}
        for article in json.loads(path.read_text("utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def xquad_calls(path: Path) -> dict[str, dict]:
    """The sample's calls by name; every fifth has a context of `JOINED` paragraphs."""
    rows = squad_rows(path)
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    settings = itertools.cycle(XQUAD_SETTINGS.items())
    calls = {}
    for n, row in enumerate(rows[:: len(rows) // XQUAD_SAMPLE][:XQUAD_SAMPLE]):
        name, values = next(settings)
        context = row["context"]
        if n % 5 == 0:
            first = contexts.index(context)
            context = "\n\n".join([*contexts[first:], *contexts[:first]][:JOINED])
            name = f"{JOINED} paragraphs, {name}"
        calls[f"{row['id']} / {name}"] = {"question": row["question"], "context": context, **values}
    return calls
