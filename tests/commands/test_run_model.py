"""`qa-flax run` refuses model folders whose parts do not belong together, and says what to do."""

import json
import shutil

import pytest
import tiny
from tiny_run import run

from qa_flax import LoraConfig, get_peft_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in `base`, adapters without tokenizer in `adapter`, and the data."""
    parent = tmp_path_factory.mktemp("models")
    tiny.model().save_pretrained(parent / "base")
    tiny.tokenizer().save_pretrained(parent / "base")
    config = LoraConfig(r=2, target_modules=["query"])
    model = get_peft_model(tiny.model(), config)
    model.config.name_or_path = str(parent / "base")
    model.save_pretrained(parent / "adapter")
    rows = [row for row in tiny.rows() if row["answers"]["text"]]
    (parent / "data.json").write_text(json.dumps({"data": rows[:4]}))
    return parent


def message_of(capfd, folder, model, output_dir, *arguments):
    arguments = (f"--train_file={folder / 'data.json'}", "--do_train", *arguments)
    with pytest.raises(SystemExit) as caught:
        run(model, output_dir, *arguments)
    assert caught.value.code == 2
    assert not output_dir.exists()
    error = capfd.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_model_without_its_tokenizer_is_refused(capfd, folder, tmp_path):
    copy = shutil.copytree(folder / "base", tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    message = message_of(capfd, folder, copy, tmp_path / "out")
    assert "has no tokenizer" in message
    assert "or give the model's own tokenizer with --tokenizer_name" in message


def test_windows_longer_than_the_positions_are_refused_first(capfd, folder, tmp_path):
    long = "--max_seq_length=129"
    message = message_of(capfd, folder, folder / "base", tmp_path / "out", long, "--doc_stride=100")
    assert "--max_seq_length is 129, but" in message
    assert "use --max_seq_length 128 or less, with a --doc_stride below 100" in message
    assert "Tokenizing" not in message


def test_the_base_of_adapters_is_named_in_the_words_of_the_command_line(capfd, folder, tmp_path):
    moved = shutil.copytree(folder / "adapter", tmp_path / "moved")
    file = moved / "adapter_config.json"
    file.write_text(file.read_text().replace(str(folder / "base"), "/gone"))
    message = message_of(capfd, folder, moved, tmp_path / "out")
    assert "give the base model's folder or hub id with --base_model_name_or_path" in message
    assert "base_model=" not in message
    given = f"--base_model_name_or_path={folder / 'base'}"
    message = message_of(capfd, folder, folder / "base", tmp_path / "out", given)
    assert "is for adapters, but" in message


@pytest.mark.slow
def test_the_output_of_adapters_without_tokenizer_can_be_run_again(folder, tmp_path):
    arguments = (f"--train_file={folder / 'data.json'}", "--do_train", "--max_steps=1")
    run(folder / "adapter", tmp_path / "first", *arguments)
    assert (tmp_path / "first" / "tokenizer.json").is_file()
    run(tmp_path / "first", tmp_path / "second", *arguments)
