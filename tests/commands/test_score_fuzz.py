"""`qa-flax score` answers any two files with scores or with one message, and never a traceback.

    QA_FLAX_FUZZ_SECONDS=180 python -m pytest -m slow tests/commands/test_score_fuzz.py

The files are valid ones of which bytes or values were changed. Where the change leaves gold answers
that the official scorer can read, the scores are the official ones.
"""

import contextlib
import copy
import io
import json
import logging
import os
import random
import time

import oracle
import pytest

from qa_flax.cli import main

SECONDS = float(os.environ.get("QA_FLAX_FUZZ_SECONDS", "20"))
CONTEXT = "Ada Lovelace wrote a program in 1843. Ørla Fenn built “the mill”; 東京."
TEXTS = ["Ada Lovelace", "1843", "Ørla Fenn", "“the mill”", "東京", "the", "a program"]
VALUES = [
    *(None, True, False, 0, -1, 7, 1.5, 1e308, 2**70, float("nan"), float("inf"), "", " ", "None"),
    *("NaN", "[]", "{}", "null", "\ud800", "a\u0000b", "q1", [], {}, [[]], [None], {"text": 1}),
    *({"text": None}, {"text": ["x"], "answer_start": []}, [{"text": {}}], [[["x"]]], ["x", 3]),
    *({"x": "y"}, "x" * 3000, "-1", "38.0", "[1", "array([1])", "0x10", "1_0", "٣"),
]


def gold(rng):
    """Nested or flat gold data as Python objects."""
    rows = []
    for n in range(rng.randint(1, 5)):
        texts = rng.sample(TEXTS, rng.randint(rng.choice([0, 1]), 2))
        rows.append({"id": f"q{n}", "question": "Who?", "context": CONTEXT, "answers": texts})
    if rng.random() < 0.5:
        pairs = [
            r | {"answers": [{"text": t, "answer_start": -1} for t in r["answers"]]} for r in rows
        ]
        return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [
            {"context": CONTEXT, "qas": [{k: r[k] for k in ("id", "question", "answers")}]}
            for r in pairs
        ]}]}  # fmt: skip
    layout = rng.choice([lambda t: {"text": t, "answer_start": [0] * len(t)}, lambda t: t])
    return {"data": [r | {"answers": layout(r["answers"])} for r in rows]}


def change(value, rng):
    """Change one value somewhere in JSON: replace, remove, repeat or rename it."""
    places = []

    def collect(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                collect(node[key])

    collect(value)
    node, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0 or (isinstance(node, list) and kind == 3):
        node[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 1:
        del node[key]
    elif kind == 2 and isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    elif isinstance(node, dict):
        node[rng.choice(["id", "text", "answers", "qas", "data", "answer", "x"])] = node.pop(key)


def changed_bytes(data, rng):
    """Change some bytes, cut the text off, or write it in another encoding."""
    kind = rng.randrange(6)
    if kind == 0 or not data:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1:
        return data.decode().encode(rng.choice(["utf-16", "utf-8-sig", "utf-32", "utf-16-le"]))
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1)
        changed[place : place + rng.choice([0, 1, 1, 3])] = bytes(
            rng.choice([rng.randrange(256), *b'{}[]",:\\\n'])
            for _ in range(rng.choice([0, 1, 1, 2]))
        )
    return bytes(changed)


def case(rng):
    """The bytes of both files, of the odds or None, and whether they may be unreadable."""
    data = gold(rng)
    ids = [f"q{n}" for n in range(6)]
    answers = {id_: rng.choice([*TEXTS, "", "x"]) for id_ in ids}
    odds = {id_: rng.choice([0.0, 1.0, -3.5, 2]) for id_ in ids} if rng.random() < 0.3 else None
    for part in rng.choices([data, answers, odds], [6, 2, 1], k=rng.randrange(4)):
        if part:
            change(part, rng)
    parts = [json.dumps(part, ensure_ascii=rng.random() < 0.5) for part in (data, answers, odds)]
    parts = [part.encode("utf-8", "surrogatepass") for part in parts]
    if rng.random() < 0.4:
        place = rng.randrange(2)
        with contextlib.suppress(UnicodeDecodeError):
            parts[place] = changed_bytes(parts[place], rng)
    return parts[0], parts[1], None if odds is None else parts[2]


def run_score(folder, gold_bytes, answers, odds=None, language=None):
    """Return the status and what was printed."""
    arguments = ["score", str(folder / "gold.json"), str(folder / "answers.json")]
    (folder / "gold.json").write_bytes(gold_bytes)
    (folder / "answers.json").write_bytes(answers)
    if odds is not None:
        (folder / "odds.json").write_bytes(odds)
        arguments += ["--na-prob-file", str(folder / "odds.json")]
    if language is not None:
        arguments += ["--language", language]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
            status = 0
        except SystemExit as exit_:
            status = exit_.code
    return status, out.getvalue(), err.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 3 + 600)
def test_changed_files_give_scores_or_one_message(tmp_path):
    logging.disable(logging.WARNING)
    started, seed, scored = time.time(), 0, 0
    try:
        while time.time() - started < SECONDS:
            seed += 1
            rng = random.Random(seed)
            files = case(rng)
            try:
                language = rng.choice(["en", "zh", "de", "ar", *[None] * 12])
                status, out, err = run_score(tmp_path, *files, language)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {files}") from error
            assert status in (0, 2), (seed, status, files)
            if status == 0:
                scored += 1
                assert isinstance(json.loads(out), dict), (seed, out)
            else:
                assert out == "", (seed, out)
                assert err.count("qa-flax: error: ") == 1, (seed, err)
                assert len(err) < 5000, (seed, len(err))
    finally:
        logging.disable(logging.NOTSET)
    print(f"{seed:,} pairs of files, {scored:,} of them scored, in {time.time() - started:.0f} s")
    assert scored > seed / 10


def test_what_the_official_scorers_read_gets_their_scores(tmp_path):
    for seed in range(60):
        rng = random.Random(seed)
        data = gold(rng)
        flat = data["data"]
        if "paragraphs" in flat[0]:
            rows = [qa for p in flat[0]["paragraphs"] for qa in p["qas"]]
            texts = {qa["id"]: [a["text"] for a in qa["answers"]] for qa in rows}
            for qa in rows:  # nothing of this is read by the official scorers
                qa |= rng.choice([{}, {"question": None}, {"question": ""}])
                for answer in qa["answers"]:
                    answer |= rng.choice([{}, {"answer_start": None}, {"answer_start": "x"}])
            flat[0]["paragraphs"][0].pop("context")
        else:
            rows = flat
            texts = {r["id"]: r["answers"] for r in rows}
            texts = {k: v["text"] if isinstance(v, dict) else v for k, v in texts.items()}
        answers = {id_: rng.choice([*TEXTS, ""]) for id_ in texts}
        plain = [{"id": id_, "answers": {"text": t}} for id_, t in texts.items()]
        is_v2 = not all(texts.values())
        expected = (oracle.squad_v2_plain if is_v2 else oracle.squad_v1_plain)(answers, plain)
        expected = {k: v for k, v in expected.items() if "best" not in k}
        parts = [json.dumps(part).encode() for part in (data, answers)]
        encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16"])
        parts[1] = parts[1].decode().encode(encoding)
        status, out, err = run_score(tmp_path, *parts)
        assert (status, json.loads(out)) == (0, expected), (seed, err)
