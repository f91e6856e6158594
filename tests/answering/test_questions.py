"""The forms in which questions may be asked."""

from types import SimpleNamespace

import datasets
import pytest

from qa_flax.answering import questions
from qa_flax.answering.questions import Question, QuestionError, in_blocks, read_call

ROW = {"question": "Who?", "context": "Ada wrote it."}
ASKED = Question("Who?", ("Ada wrote it.",))


def read(*inputs, **keywords) -> list[Question]:
    return list(read_call(inputs, keywords).questions)


@pytest.mark.parametrize(
    "call",
    [
        read_call((ROW,), {}),
        read_call(([ROW],), {}),
        read_call(("Who?", "Ada wrote it."), {}),
        read_call((), ROW),
        read_call((), {"question": ["Who?"], "context": ["Ada wrote it."]}),
        read_call((), {"question": ["Who?"], "context": "Ada wrote it."}),
        read_call((), {"data": ROW}),
        read_call((), {"X": [ROW]}),
        read_call((ROW | {"answers": []},), {}),
        read_call(({"question": ("Who?",), "context": ("Ada wrote it.",)},), {}),
        read_call(([SimpleNamespace(question_text="Who?", context_text="Ada wrote it.")],), {}),
    ],
)
def test_a_single_question_may_be_asked_in_many_forms(call):
    assert list(call.questions) == [ASKED]
    assert call.is_single
    assert not call.is_stream


def test_several_questions():
    assert read(ROW, ROW) == read([ROW, ROW]) == read((ROW, ROW)) == [ASKED, ASKED]
    rows = [ROW | {"id": id_} for id_ in (1, 2)]
    asked = [Question("Who?", ("Ada wrote it.",), id=id_) for id_ in "12"]
    assert read(datasets.Dataset.from_list(rows)) == asked
    assert read(question=["Who?", "Who?"], context="Ada wrote it.") == [ASKED, ASKED]
    call = read_call((), {"question": ["Who?", "Why?"], "context": ["a", "b"]})
    assert list(call.questions) == [Question("Who?", ("a",)), Question("Why?", ("b",))]
    assert not call.is_single
    assert read([]) == []


def test_a_stream_is_read_when_it_is_needed():
    def rows():
        yield ROW
        raise RuntimeError("read too early")

    call = read_call((rows(),), {})
    assert call.is_stream
    assert next(iter(call.questions)) == ASKED


def test_one_question_of_several_contexts():
    assert read(question="Who?", contexts=["a", "b"]) == [Question("Who?", ("a", "b"), (0, 1))]
    named = Question("Who?", ("a", "b"), ("x", "y"))
    assert read(question="Who?", contexts={"x": "a", "y": "b"}) == [named]
    assert read([{"question": "Who?", "contexts": {"x": "a", "y": "b"}}]) == [named]
    two = read(question=["Who?", "Why?"], contexts=["a"])
    assert two == [Question("Who?", ("a",), (0,)), Question("Why?", ("a",), (0,))]


@pytest.mark.parametrize(
    ("inputs", "keywords", "message"),
    [
        ((), {"question": "Who?"}, r'^it has no context; pass question="\.\.\."'),
        ((), {"question": None, "context": "a"}, "^it has no question"),
        ((), {"question": "", "context": "a"}, "^question is empty$"),
        ((), {"question": "Who?", "context": " \n"}, "^context is empty$"),
        ((), {"question": 3, "context": "a"}, "^question is a int; it must be a text$"),
        ((), {"question": "Who?", "context": ["a", "b"]}, r"list of 2 contexts: pass contexts="),
        ((), {"question": ["1", "2"], "context": ["a"]}, "^there are 2 questions and 1 contexts"),
        ((), {"question": "Who?", "contexts": []}, "^contexts is empty"),
        ((), {"question": "Who?", "contexts": "a"}, "^contexts is a str; pass a list"),
        ((), {"question": "Who?", "contexts": ["a", ""]}, r"^contexts\[1\] is empty$"),
        ((), {"question": "Who?", "contexts": {"x": None}}, r"^it has no contexts\['x'\]"),
        ((), {"question": "Who?", "context": "a", "contexts": ["b"]}, "both context and contexts"),
        (([3],), {}, "^it is a int; pass question"),
    ],
)
def test_a_wrong_question_is_refused_in_words(inputs, keywords, message):
    with pytest.raises(QuestionError, match=message) as raised:
        read(*inputs, **keywords)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, KeyError)  # as in the pipeline, where a key was missing


def test_all_wrong_questions_are_listed_once():
    rows = [ROW, {"question": "", "context": "a", "id": "q1"}, ROW, {"context": "a"}]
    with pytest.raises(QuestionError) as raised:
        read(rows)
    lines = str(raised.value).splitlines()
    assert lines[0] == "2 of 4 questions:"
    assert lines[1] == '  - number 1 (id "q1"): question is empty'
    assert lines[2].startswith("  - number 3: it has no question; pass ")


@pytest.mark.parametrize(
    ("inputs", "keywords", "message"),
    [
        ((), {}, "^no question; pass"),
        ((), {"context": "a"}, "^no question; pass"),
        (("Who?",), {}, "^questions are a str; pass"),
        ((3,), {}, "^questions are a int; pass"),
        ((ROW,), ROW, "^got questions twice, also as question, context"),
    ],
)
def test_another_form_is_a_type_error(inputs, keywords, message):
    with pytest.raises(TypeError, match=message):
        read(*inputs, **keywords)


def test_blocks_are_bounded_by_their_questions_and_characters(monkeypatch):
    monkeypatch.setattr(questions, "BLOCK_CHARACTERS", 10)
    asked = [Question("?", ("a",)), Question("?", ("b", "c" * 50, "d", "e", "f", "g"))]
    texts = [[item.context[0] for item in block] for block in in_blocks(asked, 3)]
    assert texts == [["a", "b"], ["c"], ["d", "e", "f"], ["g"]]
    assert list(in_blocks([], 3)) == []


def test_questions_before_a_wrong_one_of_a_stream_are_answered():
    call = read_call((iter([ROW, ROW | {"question": ""}]),), {})
    blocks = in_blocks(call.questions, 3)
    assert [item.question for item in next(blocks)] == [ASKED]
    with pytest.raises(QuestionError, match=r"^number 1: question is empty$"):
        next(blocks)
