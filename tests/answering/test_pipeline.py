"""`pipeline("question-answering")`: existing code runs, and what is not honoured is refused."""

import warnings

import pytest
import tiny

from qa_flax import QuestionAnsweringPipeline, pipeline
from qa_flax.answering.pipeline import DEFAULT_MODEL

ROW = {"question": "Who wrote the first program?", "context": tiny.CONTEXTS[0]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_code_of_an_old_notebook_runs(checkpoint, tmp_path):
    qa_model = pipeline("question-answering", model=checkpoint, tokenizer=checkpoint)
    result = qa_model(question=ROW["question"], context=ROW["context"])
    assert result.keys() == {"score", "start", "end", "answer"}
    assert ROW["context"][result["start"] : result["end"]] == result["answer"]
    assert qa_model(ROW) == result
    assert qa_model.predict(ROW) == qa_model.transform(ROW) == result
    qa_model.save_pretrained(tmp_path)
    nlp = pipeline(model=str(tmp_path), device=-1, framework="pt", batch_size=4)
    again = nlp(ROW)  # in batches of another size, which may round otherwise
    assert again.pop("score") == pytest.approx(result.pop("score"), rel=1e-5)
    assert again == result
    assert (nlp.task, str(nlp.device)) == ("question-answering", "cpu")


@pytest.mark.filterwarnings("ignore:device=0")
def test_arguments_of_transformers_4_are_taken(checkpoint):
    expected = pipeline("question-answering", checkpoint)(ROW)
    keywords = {"use_fast": True, "trust_remote_code": True, "config": None, "device_map": None}
    keywords |= {"model_kwargs": {"torch_dtype": "float32", "cache_dir": None}, "device": 0}
    assert pipeline("question-answering", checkpoint, **keywords)(ROW) == expected
    model, tokenizer = tiny.model(), tiny.tokenizer()
    built = QuestionAnsweringPipeline(model=model, tokenizer=tokenizer, task="", modelcard=None)
    assert built(ROW)["answer"] == expected["answer"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"task": "text-generation"}, "task='text-generation' is not supported"),
        ({"framework": "mxnet"}, "framework='mxnet': it must be one of"),
        ({"use_fast": False}, "only fast tokenizers have offsets"),
        ({"device_map": "auto"}, "device_map is not supported here: JAX computes on all"),
        ({"config": "x"}, "config is not supported here: pass model="),
        ({"model_kwargs": {"load_in_8bit": True}}, r"model_kwargs=\{'load_in_8bit': ...\} is not"),
        ({"device": "abacus"}, "device='abacus': it must be -1"),
    ],
)
def test_what_cannot_be_honoured_is_refused(checkpoint, keywords, message):
    keywords = {"task": "question-answering"} | keywords
    with pytest.raises(ValueError, match=message):
        pipeline(model=checkpoint, **keywords)


def test_a_device_where_jax_does_not_compute_is_reported(checkpoint):
    with pytest.warns(UserWarning, match="device=0: JAX computes on cpu instead; see qa-flax env"):
        pipeline("question-answering", checkpoint, device=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for device in (-1, "cpu", None):
            pipeline("question-answering", checkpoint, device=device)


def test_without_a_model_the_default_is_named(caplog):
    with pytest.raises(OSError, match=DEFAULT_MODEL):  # tests have no network
        pipeline("question-answering")
    assert "No model was given" in caplog.text
