"""Answers equal those of the question-answering pipeline of transformers 4.57.

The default tests read its answers from golden/pipeline. The slow tests run the pipeline itself,
with the Python that the environment variable QA_FLAX_TRANSFORMERS_4 names.

Where qa_flax differs on purpose there is nothing to compare:

- answers of score 0: for contexts with fewer spans than `top_k` the pipeline also returns some that
  are no spans of the context;
- contexts and questions of white space only, which qa_flax refuses;
- questions with the text of the CLS token, such as "[CLS]": the pipeline lets answers begin there;
- byte-level tokenizers with `add_prefix_space`: where a later window begins with a word, the
  pipeline's answers begin with the space before it;
- tokenizers that pad on the left, for which the pipeline allows answers in the question;
- `max_question_len`, which the pipeline accepts but ignores for all fast tokenizers;
- Longformer with questions longer than its window, whose tokens are not all global in qa_flax.
"""

import itertools
import json
import os
from pathlib import Path

import pytest
from conftest import shared_path
from pipeline_cases import (
    LANGUAGES,
    XQUAD_SETTINGS,
    random_calls,
    squad_rows,
    tiny_calls,
    xquad_calls,
)
from pipeline_checkpoints import FAMILY_TOKENIZERS, write_family, write_mini_lm
from reference_pipeline import PYTHON, ask_reference

from qa_flax import QuestionAnswerer

GOLDEN = Path(__file__).parents[1] / "golden" / "pipeline"
# One of each kind of tokenizer and the most used families; the others are slow tests.
DEFAULT_FAMILIES = ("bert", "roberta", "xlm-roberta", "deberta-v2")
FAMILIES = [
    pytest.param(family, marks=[] if family in DEFAULT_FAMILIES else [pytest.mark.slow])
    for family in FAMILY_TOKENIZERS
]
# Every number of rows and padded length is a program of its own to compile.
BATCH_SIZE = 2


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def family_folder(tmp_path_factory, family):
    return write_family(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def tiny(family_folder):
    return QuestionAnswerer(model=str(family_folder))


@pytest.fixture(scope="module")
def mini_lm_folder(tmp_path_factory):
    encoder = shared_path("models", "all-MiniLM-L6-v2")
    return write_mini_lm(encoder, tmp_path_factory.mktemp("mini_lm"))


@pytest.fixture(scope="module")
def mini_lm(mini_lm_folder):
    return QuestionAnswerer(model=str(mini_lm_folder))


@pytest.fixture
def python_of_4_57():
    if PYTHON not in os.environ:
        pytest.skip(f"needs {PYTHON}, the Python of a virtual environment with transformers 4.57")
    return os.environ[PYTHON]


def golden(name):
    """Return the pipeline's answers by the names of calls."""
    answers = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    fields = ("score", "start", "end")
    return {
        call: [dict(zip(fields, values, strict=True)) for values in found]
        for call, found in answers.items()
    }


def ask(answerer, calls):
    """Answer calls by name; those of the same settings are answered together, as lists."""
    answers = {}
    by_settings = {}
    for name, call in calls.items():
        settings = {k: v for k, v in call.items() if k not in ("question", "context")}
        by_settings.setdefault(json.dumps(settings), []).append(name)
    for settings, names in by_settings.items():
        texts = {k: [calls[name][k] for name in names] for k in ("question", "context")}
        results = answerer(**texts, **json.loads(settings), batch_size=BATCH_SIZE)
        for name, result in zip(names, results if len(names) > 1 else [results], strict=True):
            answers[name] = result if isinstance(result, list) else [result]
    return {name: answers[name] for name in calls}


def difference(call, actual, expected):
    """Say what differs between two lists of answers, or return None."""
    actual = [answer for answer in actual if answer["score"]]
    expected = [answer for answer in expected if answer["score"]]
    spans = [[(a["start"], a["end"]) for a in answers] for answers in (actual, expected)]
    if spans[0] != spans[1]:
        return f"spans {spans[0]}, expected {spans[1]}"
    for a, b in zip(actual, expected, strict=True):
        if abs(a["score"] - b["score"]) > 1e-5:
            return f"score {a['score']} of {a['start'], a['end']}, expected {b['score']}"
        if a["answer"] != call["context"][a["start"] : a["end"]]:
            return f"answer {a['answer']!r} is not the text at {a['start'], a['end']}"
    return None


def differences(calls, actual, expected):
    found = {name: difference(calls[name], actual[name], expected[name]) for name in calls}
    return {name: text for name, text in found.items() if text}


PARTS = [False, pytest.param(True, marks=pytest.mark.slow)]


@pytest.mark.parametrize("with_small_windows", PARTS)
def test_tiny_checkpoints_give_the_pipeline_s_answers(tiny, family, with_small_windows):
    expected, calls = golden(family), tiny_calls()
    assert len(expected) > 150
    calls = {n: calls[n] for n in expected if ("max_seq_len" in calls[n]) <= with_small_windows}
    assert not differences(calls, ask(tiny, calls), expected)


def test_xquad_gives_the_pipeline_s_answers(mini_lm):
    # The shortest context of each language that has several windows, in one batch.
    everything, expected = {}, {}
    for language in LANGUAGES:
        found = golden(f"xquad.{language}")
        calls = xquad_calls(shared_path("data", "xquad", f"xquad.{language}.json"))
        names = [name for name in found if name.endswith("/ small windows")]
        name = min(names, key=lambda name: len(calls[name]["context"]))
        everything[f"{language} {name}"] = calls[name]
        expected[f"{language} {name}"] = found[name]
    assert not differences(everything, ask(mini_lm, everything), expected)


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_xquad_in_all_settings_gives_the_pipeline_s_answers(mini_lm, language):
    expected = golden(f"xquad.{language}")
    assert len(expected) > 38
    calls = xquad_calls(shared_path("data", "xquad", f"xquad.{language}.json"))
    calls = {name: calls[name] for name in expected}
    assert not differences(calls, ask(mini_lm, calls), expected)


# ---- with the pipeline itself --------------------------------------------------------------------


def reference(python, folder, calls):
    return dict(zip(calls, ask_reference(python, folder, list(calls.values())), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("language", LANGUAGES)
def test_all_of_xquad_gives_the_pipeline_s_answers(
    python_of_4_57, mini_lm, mini_lm_folder, language
):
    rows = squad_rows(shared_path("data", "xquad", f"xquad.{language}.json"))
    assert len(rows) == 1190
    # Every question with one of the settings, in turn.
    calls = {
        f"{row['id']} / {name}": {"question": row["question"], "context": row["context"], **values}
        for row, (name, values) in zip(rows, itertools.cycle(XQUAD_SETTINGS.items()), strict=False)
    }
    expected = reference(python_of_4_57, mini_lm_folder, calls)
    actual = ask(mini_lm, calls)
    panics = {name for name, answers in expected.items() if answers is None}
    # An English vocabulary has a token for each Arabic letter, so questions are long.
    assert len(panics) <= (60 if language == "ar" else 0)
    assert all(actual[name] for name in panics)
    calls = {name: call for name, call in calls.items() if name not in panics}
    print(f"{language}: {len(calls)} answers compared, {len(panics)} panics")
    assert not differences(calls, actual, expected)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_texts_give_the_pipeline_s_answers(python_of_4_57, tiny, family_folder):
    calls = random_calls(seed=0, count=400)
    expected = reference(python_of_4_57, family_folder, calls)
    assert not differences(calls, ask(tiny, calls), expected)
