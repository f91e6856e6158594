"""Reference implementations as plain loops: HF's windows, HF's post-processing, official scorers.

They follow the documented behaviour one step at a time, so that a reader can check them against the
documentation. They use nothing of `qa_flax`, so that an error in the package cannot hide itself.
"""

import collections
import json
import re
import string
import sys
import unicodedata
from pathlib import Path

import numpy as np

# ---------------------------------------------------------------------------------- data


def nested_to_rows(path):
    """Read a nested SQuAD file as flat rows."""
    rows = []
    for article in json.loads(Path(path).read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                rows.append(
                    {
                        "id": qa["id"],
                        "title": article.get("title", ""),
                        "context": paragraph["context"],
                        "question": qa["question"],
                        "answers": {
                            "text": [a["text"] for a in qa["answers"]],
                            "answer_start": [a["answer_start"] for a in qa["answers"]],
                        },
                    }
                )
    return rows


# ------------------------------------------------------------------------------- windows


def prepare_plain(
    rows, tokenizer, max_seq_length=384, doc_stride=128, labels=False, label_bug=False, padding=True
):
    """Compute HF's `prepare_train_features` (`labels=True`) or `prepare_validation_features`.

    Returns columns as lists, one value per window. `label_bug=True` reproduces a defect of HF: if
    the answer starts in the last context token of a window, the search for the start continues
    into [SEP] and padding.
    """
    pad_on_right = tokenizer.padding_side == "right"
    questions = [row["question"].lstrip() for row in rows]
    contexts = [row["context"] for row in rows]
    encoded = tokenizer(
        questions if pad_on_right else contexts,
        contexts if pad_on_right else questions,
        truncation="only_second" if pad_on_right else "only_first",
        max_length=max_seq_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length" if padding else False,
    )
    row_of_window = encoded.pop("overflow_to_sample_mapping")
    context_id = 1 if pad_on_right else 0
    columns = {name: list(values) for name, values in encoded.items()}
    columns["example_id"] = [rows[i]["id"] for i in row_of_window]
    if labels:
        columns["start_positions"], columns["end_positions"] = [], []
    for n, i in enumerate(row_of_window):
        sequence_ids = encoded.sequence_ids(n)
        offsets = encoded["offset_mapping"][n]
        if labels:
            start, end = _label(
                rows[i]["answers"],
                offsets,
                sequence_ids,
                context_id,
                columns["input_ids"][n],
                tokenizer,
                label_bug,
            )
            columns["start_positions"].append(start)
            columns["end_positions"].append(end)
        columns["offset_mapping"][n] = [
            tuple(offset) if sequence_ids[k] == context_id else None
            for k, offset in enumerate(offsets)
        ]
    return columns


def _label(answers, offsets, sequence_ids, context_id, input_ids, tokenizer, label_bug):
    if tokenizer.cls_token_id in input_ids:
        cls_index = input_ids.index(tokenizer.cls_token_id)
    elif tokenizer.bos_token_id in input_ids:
        cls_index = input_ids.index(tokenizer.bos_token_id)
    else:
        cls_index = 0
    if len(answers["answer_start"]) == 0:
        return cls_index, cls_index
    start_char = answers["answer_start"][0]
    end_char = start_char + len(answers["text"][0])
    inside = [k for k, s in enumerate(sequence_ids) if s == context_id]
    if not inside:
        return cls_index, cls_index
    first, last = inside[0], inside[-1]
    if not (offsets[first][0] <= start_char and offsets[last][1] >= end_char):
        return cls_index, cls_index
    limit = len(offsets) if label_bug else last + 1
    start = first
    while start < limit and offsets[start][0] <= start_char:
        start += 1
    end = last
    while end >= first and offsets[end][1] >= end_char:
        end -= 1
    return start - 1, end + 1


# ------------------------------------------------------------------------ post-processing


def postprocess_plain(
    rows,
    features,
    predictions,
    version_2_with_negative=False,
    n_best_size=20,
    max_answer_length=30,
    null_score_diff_threshold=0.0,
    output_dir=None,
    prefix=None,
    argsort=np.argsort,
    hf_compatible=True,
):
    """HF's newest `postprocess_qa_predictions` on dicts; offsets are None outside the context.

    `hf_compatible=False`: the same steps with HF's defects fixed.
    """
    all_starts, all_ends = predictions
    if not hf_compatible:
        all_starts, all_ends = (
            np.nan_to_num(logits, nan=-1e4, posinf=1e4, neginf=-1e4) for logits in predictions
        )
    if len(all_starts) != len(features):
        raise ValueError(f"{len(all_starts)} predictions for {len(features)} features")
    index_of = {row["id"]: i for i, row in enumerate(rows)}
    features_of = collections.defaultdict(list)
    for n, feature in enumerate(features):
        features_of[index_of[feature["example_id"]]].append(n)

    answers, nbest_answers, odds = {}, {}, {}
    lowest_null = None  # as in HF, an example without windows uses that of the example before it
    for i, row in enumerate(rows):
        null, spans = None, []
        for n in features_of[i]:
            starts, ends = all_starts[n], all_ends[n]
            offsets = features[n]["offset_mapping"]
            max_context = features[n].get("token_is_max_context")
            cls = 0 if hf_compatible else features[n].get("cls_index", 0)
            null_score = starts[cls] + ends[cls]
            if null is None or null["score"] > null_score:
                null = {
                    "offsets": (0, 0),
                    "score": null_score,
                    "start_logit": starts[cls],
                    "end_logit": ends[cls],
                }
            best_starts = argsort(starts)[-1 : -n_best_size - 1 : -1].tolist()
            best_ends = argsort(ends)[-1 : -n_best_size - 1 : -1].tolist()
            for s in best_starts:
                for e in best_ends:
                    if s >= len(offsets) or e >= len(offsets):
                        continue
                    if not offsets[s] or not offsets[e]:
                        continue
                    if len(offsets[s]) < 2 or len(offsets[e]) < 2:
                        continue
                    if e < s or e - s + 1 > max_answer_length:
                        continue
                    if max_context is not None and not max_context.get(str(s), False):
                        continue
                    spans.append(
                        {
                            "offsets": (offsets[s][0], offsets[e][1]),
                            "score": starts[s] + ends[e],
                            "start_logit": starts[s],
                            "end_logit": ends[e],
                        }
                    )
        if version_2_with_negative and null is not None:
            spans.append(null)
            lowest_null = null["score"]
        nbest = sorted(spans, key=lambda p: p["score"], reverse=True)[:n_best_size]
        if (
            version_2_with_negative
            and null is not None
            and not any(p["offsets"] == (0, 0) for p in nbest)
        ):
            nbest.append(null)
        for p in nbest:
            first, last = p.pop("offsets")
            p["text"] = row["context"][first:last]
            if not hf_compatible:
                p["text"] = p["text"].strip()
        if hf_compatible and (not nbest or (len(nbest) == 1 and nbest[0]["text"] == "")):
            nbest.insert(0, {"text": "empty", "start_logit": 0.0, "end_logit": 0.0, "score": 0.0})
        scores = np.array([p.pop("score") for p in nbest] or [0.0])
        exponentials = np.exp(scores - np.max(scores))
        for p, probability in zip(nbest, exponentials / exponentials.sum(), strict=bool(nbest)):
            p["probability"] = probability

        if not hf_compatible and all(p["text"] == "" for p in nbest):
            answers[row["id"]] = ""
            if version_2_with_negative:
                odds[row["id"]] = float(np.finfo(all_starts.dtype).max)
        elif not version_2_with_negative:
            texts = [p["text"] for p in nbest]
            answers[row["id"]] = texts[0] if hf_compatible else next(filter(None, texts))
        else:
            best = next(p for p in nbest if p["text"] != "")
            difference = lowest_null - best["start_logit"] - best["end_logit"]
            odds[row["id"]] = float(difference)
            answers[row["id"]] = "" if difference > null_score_diff_threshold else best["text"]
        nbest_answers[row["id"]] = [
            {k: float(v) if isinstance(v, np.floating) else v for k, v in p.items()} for p in nbest
        ]

    if output_dir is not None:
        stem = "" if prefix is None else f"{prefix}_"
        files = {"predictions": answers, "nbest_predictions": nbest_answers}
        if version_2_with_negative:
            files["null_odds"] = odds
        for name, content in files.items():
            text = json.dumps(content, indent=4) + "\n"
            (Path(output_dir) / f"{stem}{name}.json").write_text(text)
    return answers


# -------------------------------------------------------------------------------- scorers


def normalize(text):
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_plain(gold, answer):
    return normalize(gold) == normalize(answer)


def f1_v1(gold, answer):
    gold, answer = normalize(gold).split(), normalize(answer).split()
    same = sum((collections.Counter(gold) & collections.Counter(answer)).values())
    if same == 0:
        return 0
    precision, recall = same / len(answer), same / len(gold)
    return (2 * precision * recall) / (precision + recall)


def f1_v2(gold, answer):
    if not normalize(gold).split() or not normalize(answer).split():
        return int(normalize(gold).split() == normalize(answer).split())
    return f1_v1(gold, answer)


def squad_v1_plain(answers, rows):
    """The official v1.1 scorer; `answers` is {id: text}."""
    exact = f1 = 0
    for row in rows:
        if row["id"] not in answers:
            continue
        golds, answer = row["answers"]["text"], answers[row["id"]]
        exact += max(exact_plain(g, answer) for g in golds)
        f1 += max(f1_v1(g, answer) for g in golds)
    return {"exact_match": 100.0 * exact / len(rows), "f1": 100.0 * f1 / len(rows)}


def squad_v2_plain(answers, rows, na_probs=None, threshold=1.0):
    """The official v2.0 scorer with a na-prob file; arguments are {id: text} and {id: number}."""
    na_probs = na_probs if na_probs is not None else dict.fromkeys(answers, 0.0)
    has_answer = {row["id"]: bool(row["answers"]["text"]) for row in rows}
    exact, f1 = {}, {}
    for row in rows:
        golds = [g for g in row["answers"]["text"] if normalize(g)] or [""]
        answer = answers[row["id"]]
        exact[row["id"]] = max(int(exact_plain(g, answer)) for g in golds)
        f1[row["id"]] = max(f1_v2(g, answer) for g in golds)

    def thresholded(scores):
        return {
            k: float(not has_answer[k]) if na_probs[k] > threshold else v for k, v in scores.items()
        }

    exact_at, f1_at = thresholded(exact), thresholded(f1)

    def section(ids, prefix):
        total = len(ids)
        return {
            f"{prefix}exact": 100.0 * sum(exact_at[k] for k in ids) / total,
            f"{prefix}f1": 100.0 * sum(f1_at[k] for k in ids) / total,
            f"{prefix}total": total,
        }

    result = section(list(exact_at), "")
    for prefix, group in (("HasAns_", True), ("NoAns_", False)):
        ids = [k for k, v in has_answer.items() if v is group]
        if ids:
            result |= section(ids, prefix)
    for name, scores in (("exact", exact), ("f1", f1)):
        best, best_at = _best_threshold(answers, scores, na_probs, has_answer)
        result[f"best_{name}"], result[f"best_{name}_thresh"] = best, best_at
    return result


def _best_threshold(answers, scores, na_probs, has_answer):
    current = best = sum(1 for k in has_answer if not has_answer[k])
    best_threshold = 0.0
    for id_ in sorted(na_probs, key=lambda k: na_probs[k]):
        if id_ not in scores:
            continue
        if has_answer[id_]:
            current += scores[id_]
        else:
            current += -1 if answers[id_] else 0
        if current > best:
            best, best_threshold = current, na_probs[id_]
    return 100.0 * best / len(scores), best_threshold


def mlqa_plain(answers, rows, language):
    """MLQA's scorer: that of SQuAD v1.1 with the language's own normalisation."""
    marks = {c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c)[0] == "P"}
    marks |= set(string.punctuation)

    def words(text):
        text = "".join(c for c in text.lower() if c not in marks)
        if language == "zh":
            result, other = [], ""
            for c in text:
                if "\u4e00" <= c <= "\u9fa5":
                    result, other = [*result, *other.split(), c], ""
                else:
                    other += c
            return [*result, *other.split()]
        articles = {
            "en": r"\b(a|an|the)\b",
            "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
            "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
            "ar": r"\sال^|ال",  # noqa: RUF001
        }[language]
        return re.sub(articles, " ", text).split()

    def f1_of(gold, answer):
        same = sum((collections.Counter(gold) & collections.Counter(answer)).values())
        if same == 0:
            return 0
        precision, recall = same / len(answer), same / len(gold)
        return (2 * precision * recall) / (precision + recall)

    exact = f1 = 0
    for row in rows:
        answer = words(answers[row["id"]])
        golds = [words(gold) for gold in row["answers"]["text"]]
        exact += max(" ".join(gold) == " ".join(answer) for gold in golds)
        f1 += max(f1_of(gold, answer) for gold in golds)
    return {"exact_match": 100.0 * exact / len(rows), "f1": 100.0 * f1 / len(rows)}
