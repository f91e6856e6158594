"""The data that the demo's encoder is pre-trained on: invented facts in simplified English.

The data trains one skill: to find the words of the question in the context. Its sentences are
patterns filled with random words, names and numbers. They share common English words with the
demo's stories (`data.py`), but no pattern and no name, as `tests/commands/test_demo.py` checks.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass


def words(text: str) -> list[str]:
    """Split a text into words; word lists are easier to read without quotes."""
    return text.split()


NOUNS = words("""
anchor animal apple apron arch arm arrow author axe baker ball bank barrel basin basket beam bean
bear bed bell bench bird blade blanket boat body bone book boot border born bottle bowl box branch
bread bridge brother brush bucket builder building button cabin cake candle captain car card cargo
cart castle cat cave cellar chain chair chapel chart chest child church city clerk clock cloth
coal coat coin colour company copper corn corner cotton court cousin cow crew crown cup curtain
daughter deck desk dish doctor dog donkey door dress drum duck edge engine farm farmer father
feather field fish flag flour flower food forest fox friend fruit game garden gate gift girl glass
glove goat gold grain grandfather grape guard guest guide hall hammer hand harbour hat herb hill
home honey hook horse house hull hunter ink inn iron island jacket judge kettle key king kitchen
knife lady lake lamp lantern leader leather lemon letter library light lighthouse lion load lock
mail map market mask mast master mayor meal medal member metal milk mill mine miner mirror money
monk moon mother motor mountain museum music name neighbour needle nest net nurse oak office oil
orange organ owner ox paint painter palace paper park parrot partner path pearl pen people pepper
person piano picture pier pig pilot pipe place plant plate poem poet port potter pound price prize
pupil queen rabbit rice ring river road roof room rope rose route sack saddle sail sailor salt
sand school sea seal seed servant sheep ship shirt shoe shop shore silk silver singer sister skill
snow soap son song spice spoon square stable stamp star station statue steel stone store street
student sugar table tailor tea teacher temple tent theatre thread ticket tiger tile timber tool
tower town trade train traveller treasure tree trunk uncle valley vessel village violin visitor
voyage wagon wall watch water wax weaver well wheat wheel whistle wife wind window wine winter
wolf wood wool work worker writer yard year
""")
# Base form and past tense: the question and the context often use different forms.
VERBS = [
    tuple(pair.split(":"))
    for pair in words("""
admire:admired ask:asked bake:baked borrow:borrowed bring:brought build:built burn:burned
buy:bought carry:carried carve:carved catch:caught choose:chose clean:cleaned collect:collected
come:came command:commanded cook:cooked count:counted cover:covered cross:crossed
deliver:delivered design:designed draw:drew drive:drove earn:earned employ:employed feed:fed
find:found fix:fixed follow:followed give:gave greet:greeted grow:grew help:helped hide:hid
hire:hired hold:held invite:invited join:joined keep:kept know:knew launch:launched lead:led
learn:learned leave:left lend:lent lift:lifted like:liked live:lived load:loaded lose:lost
love:loved make:made marry:married measure:measured meet:met move:moved need:needed open:opened
order:ordered own:owned pack:packed paint:painted pay:paid plant:planted play:played pull:pulled
push:pushed raise:raised reach:reached read:read receive:received repair:repaired ring:rang
sail:sailed save:saved see:saw sell:sold send:sent serve:served show:showed sing:sang sew:sewed
start:started steer:steered study:studied take:took teach:taught thank:thanked throw:threw
trade:traded train:trained travel:travelled trust:trusted use:used visit:visited want:wanted
wash:washed watch:watched wear:wore weigh:weighed win:won work:worked write:wrote
""")
]
ADJECTIVES = words("""
red blue green white black yellow brown grey old new small large long short heavy light dark
bright cold warm round narrow wide deep quiet early late first last second third fine plain
""")
PREPOSITIONS = words("""
with under near behind beside before after against beyond above below inside toward along across
around without until since during about from into over through for to at on in by of
""")
COMMON = words("""
a an the and or but if so because although than as is am are was were be been being do does did
done have has had can could will would shall should may might must not no every each all some any
many much more most less few who whom whose which what when where why how he she it they we you i
him her them us me his its their our your my this that these those there then now again ago always
never often once twice only also too very up down out off away back everywhere nowhere one two
three four five six seven eight nine ten hundred thousand day week month years days night morning
evening spring summer autumn today yesterday man men woman women children things go went gone get
got put let set say said tell told think thought turn turned look looked stay stayed stand stood
sit sat fall fell run ran walk walked eat ate drink drank sleep slept wait waited call called die
died grown living
""")
WORDS = list(
    dict.fromkeys([*COMMON, *NOUNS, *(w for v in VERBS for w in v), *ADJECTIVES, *PREPOSITIONS])
)

ONSETS = words("b br ch d dr f fl g gr h j k kl l m n p pl r s sk st t th tr v w z sh bl kr gl")
VOWELS = words("a e i o u a e i o u a e o ai ea ou ie")
CODAS = ["", "", "", "", "", "", "n", "r", "l", "s", "m", "k", "t", "d", "sh", "nd", "rt", "x"]
# The endings of the names in the demo's stories; `make_name` never returns a name with one.
RESERVED_ENDINGS = tuple(
    words(
        "an el ik is or en berg man sen strom well ella etta ina ora ania dal ford haven mouth "
        "stad wick"
    )
)

# Patterns that state a fact, and below those that ask for it. {s} is the subject, {x} the value,
# {n} the noun, {p} the verb's past tense, {b} its base form and {q} the preposition.
STATEMENTS = {
    "noun": (
        "with {s} the {n} remains {x}",
        "{x} , {n} to {s}",
        "{s} : {n} {x}",
        "now {x} is called {n} by {s}",
        "{s} ( whose {n} is {x} )",
        "as {n} , {s} keeps {x}",
        "among {n} things {s} has got {x}",
        "{n} {x} belongs with {s}",
    ),
    "verb": (
        "{s} {p} {x}",
        "{x} , {s} {p}",
        "{s} once {p} only {x}",
        "{x} got {p} through {s}",
        "{s} then {p} {x} again",
        "they say {s} {p} {x}",
    ),
    "phrase": (
        "{s} {p} {q} {x}",
        "{q} {x} {s} {p}",
        "{s} once {p} {q} {x}",
        "{q} {x} , so they say , {s} {p}",
    ),
}
QUESTIONS = {
    "noun": (
        "{s} {n} ?",
        "{n} with {s} ?",
        "{s} has got what {n} ?",
        "say the {n} {s} keeps .",
        "for {s} , what {n} ?",
        "{n} : {s} ?",
    ),
    "verb": (
        "{s} {p} what ?",
        "what did {s} {b} ?",
        "{p} through {s} ?",
        "say what {s} {p} .",
    ),
    "phrase": (
        "{s} {p} {q} what ?",
        "{q} what {s} {p} ?",
        "{q} what did {s} {b} ?",
        "{s} {p} {q} ?",
    ),
}
# Questions that ask for the subject, given the value.
REVERSE_QUESTIONS = {
    "noun": (
        "{x} is {n} with what ?",
        "{x} {n} ?",
        "what has got {n} {x} ?",
        "say what keeps the {n} {x} .",
    ),
    "verb": ("what {p} {x} ?", "{x} {p} through what ?", "say what {p} {x} ."),
    "phrase": ("what {p} {q} {x} ?", "{q} {x} what {p} ?"),
}


@dataclass(frozen=True)
class Exercise:
    """A question, its context, and the character spans of the answer and of its sentence.

    Both spans are (0, 0) if there is no answer.
    """

    question: str
    context: str
    answer: tuple[int, int]
    sentence: tuple[int, int]


@dataclass(frozen=True)
class _Relation:
    kind: str
    words: dict[str, str]


@dataclass(frozen=True)
class _Fact:
    subject: str
    relation: _Relation
    value: str

    def fill(self, pattern: str) -> str:
        return pattern.format(s=self.subject, x=self.value, **self.relation.words)


def make_name(rng: random.Random) -> str:
    """Invent a word of one to three syllables that ends with none of `RESERVED_ENDINGS`."""
    while True:
        syllables = [
            rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)
            for _ in range(rng.choice((1, 1, 2, 2, 2, 3)))
        ]
        name = "".join(syllables)
        if len(name) > 3 and not name.endswith(RESERVED_ENDINGS) and name not in WORDS:
            return name


def make_exercise(rng: random.Random, fewest: int, most: int) -> Exercise:
    """Draw a context of `fewest` to `most` sentences and a question about it.

    One question in twelve has no answer, where the facts allow it.
    """
    facts, missing = _facts(rng, rng.randint(fewest, most))
    target = rng.randrange(len(facts))
    if missing and rng.random() < 1 / 12:
        absent = rng.choice(missing)
        question = absent.fill(rng.choice(QUESTIONS[absent.relation.kind]))
        return Exercise(question, _write_context(rng, facts, None, "")[0], (0, 0), (0, 0))
    fact = facts[target]
    same_value = [f for f in facts if f.relation is fact.relation and f.value == fact.value]
    is_reverse = len(same_value) == 1 and rng.random() < 0.3
    patterns = (REVERSE_QUESTIONS if is_reverse else QUESTIONS)[fact.relation.kind]
    answer = fact.subject if is_reverse else fact.value
    return Exercise(fact.fill(rng.choice(patterns)), *_write_context(rng, facts, fact, answer))


def _facts(rng: random.Random, count: int) -> tuple[list[_Fact], list[_Fact]]:
    """Draw `count` facts from all pairs of a subject and a relation.

    Returns:
        The facts, and the pairs that were not drawn, as facts without a value.
    """
    names = iter(_similar_names(rng, 4 * count))
    subjects = [
        _subject(rng, lambda: next(names)) for _ in range(rng.randint(1, max(1, count // 2)))
    ]
    enough = -(-count // len(subjects))
    relations = [_relation(rng) for _ in range(rng.randint(enough, count))]
    pairs = [(subject, relation) for subject in subjects for relation in relations]
    rng.shuffle(pairs)
    facts = [_Fact(s, r, _value(rng, lambda: next(names))) for s, r in pairs[:count]]
    return facts, [_Fact(s, r, "") for s, r in pairs[count:]]


def _similar_names(rng: random.Random, count: int) -> list[str]:
    """Draw different names; one in four shares its first or second half with another."""
    names: list[str] = []
    while len(names) < count:
        name = make_name(rng)
        if names and rng.random() < 0.25:
            other = rng.choice(names)
            halves = (other, name) if rng.random() < 0.5 else (name, other)
            name = halves[0][: len(halves[0]) // 2] + halves[1][len(halves[1]) // 2 :]
        if name not in names and not name.endswith(RESERVED_ENDINGS):
            names.append(name)
    return names


def _subject(rng: random.Random, name: Callable[[], str]) -> str:
    kind = rng.random()
    if kind < 0.6:
        return name()
    if kind < 0.8:
        return f"{name()} {name()}"
    return f"the {rng.choice(NOUNS)} {name()}" if kind < 0.9 else f"the {name()}"


def _relation(rng: random.Random) -> _Relation:
    base, past = rng.choice(VERBS)
    words = {"n": rng.choice(NOUNS), "b": base, "p": past, "q": rng.choice(PREPOSITIONS)}
    return _Relation(rng.choice(tuple(STATEMENTS)), words)


def _value(rng: random.Random, name: Callable[[], str]) -> str:
    kind = rng.random()
    if kind < 0.35:
        return name()
    if kind < 0.5:
        return f"{name()} {name()}"
    if kind < 0.62:
        return str(rng.randint(1400, 2030))
    if kind < 0.75:
        return f"{rng.randint(2, 999)} {rng.choice(NOUNS)}"
    noun = rng.choice(NOUNS)
    return (
        f"the {rng.choice(ADJECTIVES)} {noun}"
        if kind < 0.9
        else rng.choice((noun, rng.choice(ADJECTIVES)))
    )


def _write_context(
    rng: random.Random, facts: list[_Fact], target: _Fact | None, answer: str
) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """Write one sentence for each fact.

    Returns:
        The context, and the character spans of the answer and of its sentence in the context.
    """
    text, answer_span, sentence_span = "", (0, 0), (0, 0)
    for fact in facts:
        sentence = fact.fill(rng.choice(STATEMENTS[fact.relation.kind]))
        if fact is target:
            start = len(text) + f" {sentence} ".index(f" {answer} ")
            answer_span = (start, start + len(answer))
            sentence_span = (len(text), len(text) + len(sentence))
        text += sentence + " . "
    return text.rstrip(), answer_span, sentence_span
