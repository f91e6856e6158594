"""`gs://` URLs in place of paths: a run, resuming it, scoring, and JAX's compilation cache."""

import contextlib
import errno
import json
import subprocess
import sys

import fake_gs
import limits
import pytest
import tiny
from processes import environment
from tiny_run import run

from qa_flax import AutoModelForQuestionAnswering, load_examples, storage
from qa_flax.cli import main
from qa_flax.models.save import save_tokenizer
from qa_flax.train import checkpoints

TIMES = ("runtime", "per_second", "_time")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The local folder of all buckets; `gs://stage` has a model and data. May be made again."""
    root = fake_gs.register(str(tmp_path_factory.mktemp("buckets")))
    (root / "stage").mkdir(exist_ok=True)
    tiny.model(initializer_range=0.05, hidden_dropout_prob=0.1).save_pretrained("gs://stage/model")
    tiny.tokenizer().save_pretrained(root / "stage" / "model")
    rows = [row for row in tiny.rows() if row["answers"]["text"]]
    (root / "stage" / "data").mkdir(exist_ok=True)
    (root / "stage" / "data" / "v1.json").write_text(json.dumps({"data": rows}))
    return root


def test_a_run_in_a_bucket_writes_the_files_of_a_local_run_and_resumes(bucket, tmp_path, caplog):
    arguments = ["--do_train", "--do_eval", "--max_steps=4", "--save_steps=1", "--logging_steps=1"]
    arguments += ["--save_total_limit=2", "--learning_rate=3e-3", "--disable_tqdm=True"]
    local, remote = bucket / "stage", "gs://stage"
    for root, output in ((local, tmp_path / "out"), (remote, "gs://results/out")):
        data = [f"--{name}_file={root}/data/v1.json" for name in ("train", "validation")]
        run(f"{root}/model", output, *data, *arguments)
    assert not list((bucket / "results").rglob("*.tmp"))
    assert same_files(tmp_path / "out", bucket / "results" / "out") >= 14

    # The latest checkpoint is corrupt: the run resumes from the one before, with the same result.
    latest = bucket / "results" / "out" / "checkpoint-4"
    weights = (latest / "model.safetensors").read_bytes()
    (latest / "run.json").write_text("{}")
    data = [f"--{name}_file={remote}/data/v1.json" for name in ("train", "validation")]
    run("gs://stage/model", "gs://results/out", *data, *arguments)
    assert "Skipping gs://results/out/checkpoint-4: run.json has 2 bytes, expected" in caplog.text
    assert (latest / "model.safetensors").read_bytes() == weights
    assert checkpoints._problem(latest) is None
    assert same_files(tmp_path / "out", bucket / "results" / "out") >= 14
    output = storage.path("gs://results/out")
    assert [p.name for p in checkpoints.list_checkpoints(output)] == [
        "checkpoint-3",
        "checkpoint-4",
    ]
    loaded = AutoModelForQuestionAnswering.from_pretrained("gs://results/out")
    assert loaded.num_parameters() == 19474


def same_files(local, remote):
    """Compare names and, where they hold no times, bytes of all files; how many were compared."""

    def names_in(folder):
        files = [path for path in folder.rglob("*") if path.is_file()]
        names = {path.relative_to(folder).as_posix() for path in files}
        return {name for name in names if "train_state/" not in name}

    names = names_in(local)
    assert names == names_in(remote)
    with_times = ("results.json", "trainer_state.json", "README.md", "manifest.json", "run.json")
    compared = [name for name in names if not name.endswith(with_times)]
    for name in compared:
        contents = [(folder / name).read_bytes() for folder in (local, remote)]
        if name.endswith("_report.json"):  # it names the data file and the model
            contents = [json.loads(content)["questions"] for content in contents]
        assert contents[0] == contents[1], name
    return len(compared)


def test_the_score_command_reads_and_writes_buckets(bucket, capsys):
    answers = {row["id"]: row["context"][:3] for row in tiny.rows() if row["answers"]["text"]}
    (bucket / "stage" / "answers.json").write_text(json.dumps(answers))
    command = ["score", "gs://stage/data/v1.json", "gs://stage/answers.json"]
    main(command)
    printed = capsys.readouterr().out
    main([*command, "--out-file", "gs://stage/scores/v1.json"])
    assert (bucket / "stage" / "scores" / "v1.json").read_text() == printed
    assert len(load_examples("gs://stage/data/v1.json")) == len(answers)


def test_missing_urls_and_unsupported_schemes_are_errors(bucket):
    with pytest.raises(FileNotFoundError, match=r"gs://stage/nothing.json does not exist"):
        load_examples("gs://stage/nothing.json")
    with pytest.raises(FileNotFoundError, match=r"gs://stage/no-model does not exist"):
        AutoModelForQuestionAnswering.from_pretrained("gs://stage/no-model")
    with pytest.raises(
        ValueError, match=r"ftp:// is not supported; use a local path, or a URL with gs://"
    ):
        storage.path("ftp://host/file")


def test_a_missing_library_is_reported_with_the_command_that_installs_it(bucket, monkeypatch):
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"gs://a/b: .*pip install 'qa-flax\[gcs\]'"):
        storage.path("gs://a/b")


def test_the_compilation_cache_may_be_in_a_bucket(bucket):
    """JAX reads JAX_COMPILATION_CACHE_DIR and writes through etils."""
    program = (
        "import fake_gs; fake_gs.register()\nimport jax; print(jax.jit(lambda x: x * 2 + 1)(3.0))\n"
    )
    variables = {
        "JAX_COMPILATION_CACHE_DIR": "gs://cache/steps",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "QA_FLAX_FAKE_GS": str(bucket),
    }
    subprocess.run([sys.executable, "-c", program], env=environment(1) | variables, check=True)
    assert list((bucket / "cache" / "steps").iterdir())


def test_numbers_that_json_does_not_have_are_null():
    values = {"a": float("nan"), "b": [1.5, float("inf"), (None, -float("inf"))], "c": {"d": "NaN"}}
    text = storage.json_text(values, sort_keys=True)
    assert text == '{"a": null, "b": [1.5, null, [null, null]], "c": {"d": "NaN"}}'


def test_a_file_in_a_bucket_that_is_not_completed_has_another_name(bucket):
    file = storage.path("gs://stage/late/file.txt")
    for text, raises in (("", True), ("half", True), ("whole", False)):
        with contextlib.suppress(KeyboardInterrupt), storage.completing(file) as path:
            path.write_text(text)
            if raises:
                raise KeyboardInterrupt
        names = [entry.name for entry in (bucket / "stage" / "late").glob("*")]
        expected = {"": [], "half": ["file.txt.partial"], "whole": ["file.txt"]}
        assert names == expected[text]
    assert file.read_text() == "whole"


def test_a_file_that_cannot_be_written_is_one_error_with_what_to_do(tmp_path):
    """Python's own error names no file here; safetensors and tokenizers have types of their own."""
    (tmp_path / "a.json").write_text("before")
    model, file_tokenizer = tiny.model(), tiny.tokenizer()
    writers = {
        "a.json": lambda: storage.write_text(tmp_path / "a.json", "x" * 9000),
        "model/model.safetensors": lambda: model.save_pretrained(tmp_path / "model"),
        "folder": lambda: save_tokenizer(file_tokenizer, tmp_path / "folder"),
    }
    (tmp_path / "folder").mkdir()
    for name, write in writers.items():
        with limits.file_size(2000), pytest.raises(OSError, match="File too large; raise") as error:
            write()
        assert error.value.errno == errno.EFBIG
        assert error.value.filename == str(tmp_path / name)
    assert (tmp_path / "a.json").read_text() == "before"
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list((tmp_path / "model").iterdir())


def test_errors_that_are_none_of_writing_stay_as_they_are(tmp_path):
    for error in (
        ValueError("no"),
        FileNotFoundError(2, "no", "file"),
        OSError("no"),
        KeyError(28),
    ):
        with pytest.raises(type(error)) as raised, storage.write_errors(tmp_path):
            raise error
        assert raised.value is error


def test_a_file_in_pieces_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "folder" / "a.txt"
    storage.write_texts(file, (f"{n}ü\n" for n in range(3)))
    assert file.read_text("utf-8") == "0ü\n1ü\n2ü\n"

    def broken():
        yield "half"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        storage.write_texts(file, broken())
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]
    assert file.read_text("utf-8").startswith("0")
