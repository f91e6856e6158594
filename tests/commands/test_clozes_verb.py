"""`qa-flax clozes`: from a folder of texts to a file that `--train_file` takes."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from qa_flax import load_examples, prepare_train_features
from qa_flax.cli import main
from qa_flax.commands import run

ROOT = Path(__file__).parents[2]
TEXTS = {
    "rivers.txt": "The Elbe flows through Dresden and Meissen. A bridge spans the Elbe in the old "
    "town. Dresden has many museums, which people like to visit. In spring the water rises.\n",
    "sub/engines.md": "# Engines\n\nCharles Babbage designed an *engine* that could compute. The "
    "plans of Charles Babbage were never finished in his time.\n\n```\ncode\n```\n",
    "data.jsonl": "".join(
        json.dumps({"context": text}) + "\n"
        for text in (
            "Café Zürich sells kinds of cake. The guests love Café Zürich for its orders.",
            "Nothing occurs again.",
        )
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`docs/` with texts and `model/` with a tokenizer, in the current folder."""
    for name, text in TEXTS.items():
        file = tmp_path / "docs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def clozes(*arguments: str) -> int:
    """Run the verb, and return its exit status."""
    try:
        main(["clozes", *arguments, "--tokenizer_name", "model"])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_from_a_folder_to_windows(folder, capsys):
    assert clozes("docs", "--output", "clozes.json") == 0
    out = capsys.readouterr().out
    examples = load_examples("clozes.json", misaligned="refuse", require_answers=True)
    assert "4 texts, 4 passages, " in out
    assert f"{len(examples)} clozes written to clozes.json" in out
    assert set(examples["title"]) == {"rivers", "sub/engines", "data"}
    answers = {text for row in examples for text in row["answers"]["text"]}
    assert {"Elbe", "Dresden", "Charles Babbage", "Café Zürich"} <= answers
    assert all(row["question"].count("[MASK]") == 1 for row in examples)
    windows = prepare_train_features(examples, tiny.tokenizer(), disable_tqdm=True)
    assert len(windows) == len(examples)
    assert min(windows["start_positions"]) > 0
    raw = json.loads(Path("clozes.json").read_text("utf-8"))
    assert raw["version"] == "1.1"
    assert [article["title"] for article in raw["data"]] == ["data", "rivers", "sub/engines"]


def test_sentences_that_stay_and_several_masks(folder, capsys):
    flags = ("--keep_sentence", "--mask", "what", "--mask", "who")
    assert clozes("docs", "--output", "clozes.json", *flags) == 0
    out = capsys.readouterr().out
    examples = load_examples("clozes.json", misaligned="refuse", require_answers=True)
    assert re.search(r"4 passages, \d+ sentences to ask about: \d+ clozes written", out)
    asked = [set(re.findall(r"\w+", row["question"])) for row in examples]
    assert all({"what", "who"} & words for words in asked)
    assert any("who" in words for words in asked)
    assert any("what" in words for words in asked)
    for row in examples:
        (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start : start + len(answer)] == answer
    assert clozes("docs", "--output", "other.json", "--keep_sentence", "--mask", " ") == 2
    assert "it must be a word or a few" in capsys.readouterr().err


def test_the_next_steps_are_commands_that_run_takes(folder, capsys):
    assert clozes("docs", "--output", "my clozes.json", "--max_seq_length", "128") == 0
    commands = re.findall(r"^  qa-flax run (.*)$", capsys.readouterr().out, re.M)
    first, second = (run.parse_arguments(shlex.split(command)) for command in commands)
    assert first[1].train_file == "my clozes.json"
    assert (first[0].model_name_or_path, first[2].num_train_epochs) == ("model", 1)
    assert second[0].model_name_or_path == first[2].output_dir
    assert first[1].max_seq_length == second[1].max_seq_length == 128
    assert first[1].doc_stride < 100


def test_neither_the_order_of_texts_nor_a_repetition_changes_the_file(folder, capsys):
    names = ["docs/rivers.txt", "docs/sub", "docs/data.jsonl"]
    for order, output in ((names, "a.json"), (names[::-1], "b.json")):
        assert clozes(*order, "--output", output) == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    # The output is in the folder that is read, and is not one of the texts.
    for _ in range(2):
        assert clozes("docs", "--output", "docs/clozes.json", "--overwrite_output") == 0
    assert "left out" not in capsys.readouterr().err
    ids = [load_examples(file)["id"][:] for file in ("a.json", "docs/clozes.json")]
    assert sorted(ids[0]) == sorted(ids[1])
    assert clozes("docs", "--output", "c.json", "--seed", "1", "--max_clozes", "2") == 0
    assert len(load_examples("c.json")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["docs", "--output", "c.jsonl"], "give a name that ends in .json"),
        (["docs", "--output", "x.json/"], "is a folder"),
        (["docs", "--output", "old.json"], "exists already; add --overwrite_output"),
        (
            ["docs/data.jsonl", "old.json", "--output", "old.json", "--overwrite_output"],
            "--output old.json would overwrite old.json, which is read",
        ),
        (["docs", "--output", "c.json", "--max_clozes", "0"], "--max_clozes is 0; it must be"),
        (["docs", "--output", "c.json", "--max_seq_length", "12"], "at least --max_seq_length"),
        (["docs", "--output", "c.json", "--mask", " "], "it must be a word or a few, in one line"),
        (["dosc/rivers.txt", "--output", "c.json"], "there is no folder"),
        (["docs/river.txt", "--output", "c.json"], "Did you mean docs/rivers.txt"),
        (["docs", "--output", "c.json", "--context", "x"], "instead of --context, name the files"),
        (["docs", "--output", "c.json", "--output_dir", "x"], "use --output with the name of a"),
        (["empty.txt", "--output", "c.json"], "empty.txt is empty"),
        (["columns.csv", "--output", "c.json"], "is given with --context_column"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_invalid_input_is_one_message(folder, capsys, arguments, message):
    Path("old.json").write_text("{}")
    Path("x.json").mkdir()
    Path("empty.txt").write_text("")
    Path("columns.csv").write_text("text,label\na,b\n")
    assert clozes(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("c.json").exists()
    assert Path("old.json").read_text() == "{}"


def test_a_tokenizer_without_mask_token(folder, capsys):
    config = json.loads(Path("model/tokenizer_config.json").read_text())
    config["mask_token"] = None
    Path("model/tokenizer_config.json").write_text(json.dumps(config))
    assert clozes("docs", "--output", "c.json") == 2
    assert "has no mask token" in (error := capsys.readouterr().err)
    assert "--mask what" in error
    assert clozes("docs", "--output", "c.json", "--mask", "what") == 0
    assert all(" what " in f" {row['question']} " for row in load_examples("c.json"))


def test_nothing_found_is_status_1_and_says_what_to_do(folder, capsys):
    Path("short.txt").write_text("One sentence only.\n")
    assert clozes("short.txt", "--output", "c.json") == 1
    error = capsys.readouterr().err
    assert "no clozes could be made of 1 text with 1 passage: 1 of the passages" in error
    assert "Give longer texts" in error
    assert not Path("c.json").exists()


def test_what_is_left_out_is_named(folder, capsys, caplog):
    Path("docs/empty.txt").write_text("")
    Path("docs/picture.png").write_bytes(b"\x89PNG")
    assert clozes("docs", "--output", "c.json") == 0
    assert "docs/empty.txt is empty" in caplog.text
    assert "neither text nor data: 1 .png" in capsys.readouterr().out


def test_help_names_every_argument(capsys):
    assert clozes("--help") == 0
    out = capsys.readouterr().out
    for flag in ("DOCS", "--tokenizer_name", "--output", "--mask", "--max_clozes", "--seed"):
        assert flag in out


@pytest.mark.slow
def test_it_needs_neither_jax_nor_torch(folder):
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('jax', 'flax', 'optax', 'torch')))\n"
        "from qa_flax.cli import main\n"
        "main(['clozes', 'docs', '--tokenizer_name', 'model', '--output', 'c.json'])\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "clozes written to c.json" in finished.stdout
