"""`qa-flax export`: the ONNX file has the model's answers, at any length; else there is no file."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from qa_flax import AutoModelForQuestionAnswering, QuestionAnswerer
from qa_flax.cli import main
from qa_flax.commands.export import job

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
# Why PyTorch's models of these families have no ONNX file for batches of any size.
REFUSED = {
    "big_bird": "it chooses its attention by the length",
    "longformer": "the shapes in its attention depend on where the question ends",
    "mbart": "onnxruntime cannot run the file",
}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    tiny.model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def status_and_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["export", *map(str, arguments), "--format=onnx"])
    return stopped.value.code, capsys.readouterr().err


def test_what_cannot_be_exported_is_refused_before_any_work(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job, "find_spec", lambda name: None if name.startswith("onnx") else name)
    missing = "exporting to ONNX needs onnx, onnxscript, onnxruntime: pip install 'qa-flax[onnx]'"
    for arguments, message in [
        ((model,), missing),
        ((model, "--output=x.bin"), "a local file whose name ends in .onnx"),
        ((model, f"--output={tmp_path}"), "a local file whose name ends in .onnx"),
        (("someone/model",), "is not a local folder, so say where to write: --output FILE"),
    ]:
        status, error = status_and_error(capsys, *arguments)
        assert status == 2
        assert message in error
    assert not (model / "onnx").exists()


def test_the_batches_of_the_check_have_padding_and_every_length_up_to_the_models():
    batches = job.sample_batches(tiny.model(), tiny.tokenizer())
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert lengths == [9, 24, 61, 128]
    for batch in batches:
        assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
        assert all(array.dtype == np.int64 for array in batch.values())
        assert batch["input_ids"].max() < tiny.VOCABULARY
    assert any((batch["attention_mask"] == 0).any() for batch in batches)
    assert job.sample_batches(tiny.model(), tiny.tokenizer())[2]["input_ids"].tolist() == (
        batches[2]["input_ids"].tolist()
    ), "each call draws the same"


# ---- with the packages ---------------------------------------------------------------------------


def export(source, *arguments):
    for name in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the onnx extra")
    main(["export", str(source), "--format", "onnx", *map(str, arguments)])


def answers_by_onnxruntime(folder, examples):
    """The best spans, as a plain script computes them: docs/sharing.md shows it."""
    import onnxruntime
    from transformers import AutoTokenizer

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = {value.name for value in session.get_inputs()}
    found = []
    for row in examples:
        encoded = tokenizer(
            row["question"], row["context"], return_offsets_mapping=True, return_tensors="np"
        )
        inputs = {name: encoded[name].astype(np.int64) for name in names}
        start, end = (logits[0] for logits in session.run(["start_logits", "end_logits"], inputs))
        is_context = np.array([part == 1 for part in encoded.sequence_ids(0)])
        scores = np.where(is_context, start, -np.inf)[:, None] + np.where(is_context, end, -np.inf)
        scores = np.where(np.tri(len(start), k=-1, dtype=bool), -np.inf, scores)
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        offsets = encoded["offset_mapping"][0]
        begin, stop = int(offsets[first][0]), int(offsets[last][1])
        found.append((begin, stop, row["context"][begin:stop]))
    return found


@pytest.mark.slow
def test_answers_and_offsets_are_the_models(model, capsys):
    export(model)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("onnxruntime's logits differ from the model's by at most ")
    assert lines[1].startswith("Inputs: input_ids, attention_mask, token_type_ids, int64 [batch, ")
    assert lines[2].startswith(f"{model / 'onnx' / 'model.onnx'} written (")
    names = {path.name for path in (model / "onnx").iterdir()}
    assert names == {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"}
    saved, beside = (
        json.loads((f / "tokenizer.json").read_text()) for f in (model, model / "onnx")
    )
    assert saved == beside, "the check left its length in the tokenizer"
    examples = [row for row in tiny.rows() if len(row["context"]) < 200]
    expected = QuestionAnswerer(model)(
        [{"question": row["question"], "context": row["context"]} for row in examples],
        max_answer_len=200,
        align_to_words=False,
    )
    found = answers_by_onnxruntime(model / "onnx", examples)
    assert found == [(a["start"], a["end"], a["answer"]) for a in expected]


@pytest.mark.slow
def test_output_opset_and_adapters(model, tmp_path, capsys):
    from qa_flax import LoraConfig, get_peft_model

    base = AutoModelForQuestionAnswering.from_pretrained(model)
    adapters = get_peft_model(base, LoraConfig(r=2, target_modules=["query"]))
    adapters.save_pretrained(tmp_path / "adapters")
    file = tmp_path / "new" / "qa.onnx"
    export(tmp_path / "adapters", "--output", file, "--opset", 18)
    assert "opset 18" in capsys.readouterr().out
    assert file.is_file()
    status, error = status_and_error(capsys, model, "--opset=3")
    assert (status, "--opset is 3; it must be from 18 to" in error) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_exported_or_refused_with_a_reason(family, tmp_path, capsys):
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    AutoModelForQuestionAnswering.from_pretrained(GOLDEN / family).save_pretrained(
        tmp_path / "model"
    )
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model")
    for name in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the onnx extra")
    file = tmp_path / "onnx" / "model.onnx"
    if family in REFUSED:
        with pytest.raises(ValueError, match=f"cannot be exported to ONNX: .*{REFUSED[family]}"):
            job.export_onnx(model, tiny.tokenizer(), file)
        assert not file.parent.exists()
        return
    lines = job.export_onnx(model, tiny.tokenizer(), file)
    assert file.is_file()
    assert float(lines[0].split("at most ")[1].split(",")[0]) < 1e-4
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_file_with_other_weights_does_not_pass_the_check(model, tmp_path):
    export(model)
    other = tiny.model(seed=5)
    batches = job.sample_batches(other, tiny.tokenizer())
    with pytest.raises(ValueError, match=r"start_logits of onnxruntime differ by up to"):
        job.check_file(model / "onnx" / "model.onnx", other, batches, "bert")
