"""An evaluation's folder and its data, small and hostile, for the tests of `qa-flax report`."""

import json

HOSTILE = "</script><script>alert(1)</script><!-- <b>\u2028\u2029\0 & \"'$title"
LONE = f"{HOSTILE}\ud800"  # half of a pair, which data cannot have, but JSON of an n-best list can
CONTEXTS = [
    f"The Elbe 🌊 flows through Dresden and Hamburg. {HOSTILE}",
    "ولد آدا لوفلايس في لندن عام 1815",
    "柏林墙于1961年建成。",
    "The Oder is a river. The Oder flows north.",
    "Nothing here is an answer.",
    "In 1843 Ada Lovelace wrote the first program.",
]
QUESTIONS = [  # id, context, question, gold answers, answer
    ("right", 0, "Which river flows through Dresden?", ["Elbe", "The Elbe 🌊"], "Elbe"),
    ("partly", 0, "Where does it flow?", ["Dresden and Hamburg"], "Hamburg"),
    ("arabic", 1, "أين ولدت؟", ["لندن"], "1815"),
    ("chinese", 2, "柏林墙何时建成?", ["1961年"], "柏林墙"),
    ("twice", 3, "Which river flows north?", ["Oder"], "Oder"),
    ("none", 4, "Who is it?", [], "answer"),
    ("none-right", 4, "Who was it?", [], ""),
    ("empty", 5, "Who wrote the first program?", ["Ada Lovelace"], ""),
    (f"id {HOSTILE}", 5, f"When? {HOSTILE}", ["1843"], "Ada"),
]
OUTCOMES = {  # in the words of the page
    "right": "right",
    "partly": "partly right",
    "arabic": "wrong",
    "chinese": "wrong",
    "twice": "right",
    "none": "should have been empty",
    "none-right": "right",
    "empty": "should have been answered",
    f"id {HOSTILE}": "wrong",
}


def rows(with_unanswerable: bool = True) -> list[dict]:
    """The data's rows."""
    result = []
    for id_, context, question, golds, _ in QUESTIONS:
        if golds or with_unanswerable:
            starts = [CONTEXTS[context].rindex(gold) for gold in golds]
            title = f"Title {context} {HOSTILE}"
            answers = {"text": golds, "answer_start": starts}
            row = {"id": id_, "title": title, "question": question, "context": CONTEXTS[context]}
            result.append(row | {"answers": answers})
    return result


def write(folder, *, prefix="eval_", data_name="data.json", v2=True, changes=None, copies=1):
    """Write answers, n-best lists, null odds and the data as run_qa.py and its user leave them.

    Args:
        folder: gets the files.
        prefix: of the names of the files.
        data_name: of the data's file.
        v2: whether some questions have no answer.
        changes: other answers, by id.
        copies: how often each question occurs, under ids of its own.
    """
    folder.mkdir(exist_ok=True)
    data, answers, n_best, odds = [], {}, {}, {}
    said = {id_: answer for id_, _, _, _, answer in QUESTIONS} | (changes or {})
    for copy in range(copies):
        for n, row in enumerate(rows(v2)):
            id_ = row["id"] if not copy else f"{row['id']} {copy}"
            context = row["context"] if not copy else f"{row['context']} ({copy})"
            data.append(row | {"id": id_, "context": context})
            answers[id_] = answer = said[row["id"]]
            texts = dict.fromkeys([answer, "Elbe", LONE] + [""] * v2)
            shares = [0.6 + 0.03 * n, 0.1, 0.05, 0.05]
            spans = [
                {"text": text, "probability": share, "start_logit": 1.0, "end_logit": 1.0}
                for text, share in zip(texts, shares, strict=False)
            ]
            n_best[id_], odds[id_] = spans, (1.0 if not answer else -1.0 - n)
    (folder / data_name).write_text(json.dumps({"data": data}))
    files = {"predictions": answers, "nbest_predictions": n_best}
    if v2:
        files["null_odds"] = odds
    for name, values in files.items():
        (folder / f"{prefix}{name}.json").write_text(json.dumps(values, indent=4))
    return folder / data_name
