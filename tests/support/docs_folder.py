"""The folder in which README.md, docs/ and examples/ assume that their commands run."""

import json
from pathlib import Path

import tiny


def make(folder: Path) -> Path:
    """Write `bert-base-uncased/`, `train-v1.1.json`, `dev-v1.1.json`, texts and questions there."""
    model = tiny.model(max_position_embeddings=512)
    model.save_pretrained(folder / "bert-base-uncased")
    tiny.tokenizer().save_pretrained(folder / "bert-base-uncased")
    # Without the one long context, so that all examples train with batches of one shape.
    rows = [row for row in tiny.rows() if row["answers"]["text"] and len(row["context"]) < 200]
    rows += [row | {"id": f"{row['id']}-{n}"} for n in (1, 2) for row in rows]
    for name, part in (("train", rows[:24]), ("dev", rows[:12])):
        articles = [
            {
                "title": "",
                "paragraphs": [
                    {
                        "context": row["context"],
                        "qas": [
                            {
                                "id": row["id"],
                                "question": row["question"],
                                "answers": [
                                    {"text": text, "answer_start": start}
                                    for text, start in zip(*row["answers"].values(), strict=True)
                                ],
                            }
                        ],
                    }
                ],
            }
            for row in part
        ]
        (folder / f"{name}-v1.1.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    (folder / "notes.txt").write_text("Ada Lovelace wrote the first program in 1843.\n")
    (folder / "manuals").mkdir()
    (folder / "manuals" / "mill.txt").write_text(
        "The mill of Orla stands by the river. A wheel turns the mill of Orla day and night. "
        "Its wheel was built in 1843 by Charles Babbage, who came from the town.\n"
    )
    questions = [{key: row[key] for key in ("id", "question", "context")} for row in rows[:3]]
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return folder
