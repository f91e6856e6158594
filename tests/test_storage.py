"""gs:// wherever a path may be given: the files of a local run, and the same run resumed."""

import json
import subprocess
import sys

import fake_gs
import pytest
import tiny
from processes import environment
from tiny_run import run

from qa_flax import AutoModelForQuestionAnswering, load_examples, storage
from qa_flax.cli import main
from qa_flax.train import checkpoints

TIMES = ("runtime", "per_second", "_time")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The root of the buckets; `gs://stage` holds a model and data."""
    root = fake_gs.register(str(tmp_path_factory.mktemp("buckets")))
    (root / "stage").mkdir(exist_ok=True)
    tiny.model(initializer_range=0.05, hidden_dropout_prob=0.1).save_pretrained("gs://stage/model")
    tiny.tokenizer().save_pretrained(root / "stage" / "model")
    rows = [row for row in tiny.rows() if row["answers"]["text"]]
    (root / "stage" / "data").mkdir()
    (root / "stage" / "data" / "v1.json").write_text(json.dumps({"data": rows}))
    return root


def test_a_run_with_everything_in_a_bucket_is_the_local_run(bucket, tmp_path, caplog):
    arguments = ["--do_train", "--do_eval", "--max_steps=4", "--save_steps=1", "--logging_steps=1"]
    arguments += ["--save_total_limit=2", "--learning_rate=3e-3", "--disable_tqdm=True"]
    local, remote = bucket / "stage", "gs://stage"
    for root, output in ((local, tmp_path / "out"), (remote, "gs://results/out")):
        data = [f"--{name}_file={root}/data/v1.json" for name in ("train", "validation")]
        run(f"{root}/model", output, *data, *arguments)
    assert not list((bucket / "results").rglob("*.tmp"))
    assert same_files(tmp_path / "out", bucket / "results" / "out") >= 14

    # The last one cannot be read, so the one before it is gone on from, to the same end.
    last = bucket / "results" / "out" / "checkpoint-4"
    before = (last / "model.safetensors").read_bytes()
    (last / "run.json").write_text("{}")
    data = [f"--{name}_file={remote}/data/v1.json" for name in ("train", "validation")]
    run("gs://stage/model", "gs://results/out", *data, *arguments)
    assert "gs://results/out/checkpoint-4 is passed over: run.json has 2 bytes, of" in caplog.text
    assert (last / "model.safetensors").read_bytes() == before
    assert checkpoints._problem(last) is None
    assert same_files(tmp_path / "out", bucket / "results" / "out") >= 14
    given = storage.path("gs://results/out")
    assert [p.name for p in checkpoints.all_of(given)] == ["checkpoint-3", "checkpoint-4"]
    loaded = AutoModelForQuestionAnswering.from_pretrained("gs://results/out")
    assert loaded.num_parameters() == 19474


def same_files(one, other):
    """How many files, of those whose bytes do not hold times; all names are the same."""
    names = {
        path.relative_to(one).as_posix()
        for path in one.rglob("*")
        if path.is_file() and "train_state/" not in path.as_posix()
    }
    found = {path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()}
    assert names == {name for name in found if "train_state/" not in name}
    timed = ("results.json", "trainer_state.json", "README.md", "manifest.json", "run.json")
    compared = [name for name in names if not name.endswith(timed)]
    for name in compared:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    return len(compared)


def test_answers_are_scored_from_a_bucket(bucket, capsys):
    answers = {row["id"]: row["context"][:3] for row in tiny.rows() if row["answers"]["text"]}
    (bucket / "stage" / "answers.json").write_text(json.dumps(answers))
    command = ["score", "gs://stage/data/v1.json", "gs://stage/answers.json"]
    main(command)
    printed = capsys.readouterr().out
    main([*command, "--out-file", "gs://stage/scores/v1.json"])
    assert (bucket / "stage" / "scores" / "v1.json").read_text() == printed
    assert len(load_examples("gs://stage/data/v1.json")) == len(answers)


def test_what_is_not_there_is_said(bucket):
    with pytest.raises(FileNotFoundError, match=r"gs://stage/nothing.json does not exist"):
        load_examples("gs://stage/nothing.json")
    with pytest.raises(FileNotFoundError, match=r"gs://stage/no-model does not exist"):
        AutoModelForQuestionAnswering.from_pretrained("gs://stage/no-model")
    with pytest.raises(ValueError, match=r"ftp:// is not known; give a path, or a URL of gs://"):
        storage.path("ftp://host/file")


def test_a_bucket_without_its_library_names_the_command(bucket, monkeypatch):
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"gs://a/b: .*pip install 'qa-flax\[gcs\]'"):
        storage.path("gs://a/b")


def test_the_compilation_cache_may_be_in_a_bucket(bucket):
    """JAX's own, through etils, as JAX_COMPILATION_CACHE_DIR asks for it."""
    program = (
        "import fake_gs; fake_gs.register()\nimport jax; print(jax.jit(lambda x: x * 2 + 1)(3.0))\n"
    )
    more = {
        "JAX_COMPILATION_CACHE_DIR": "gs://cache/steps",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "QA_FLAX_FAKE_GS": str(bucket),
    }
    subprocess.run([sys.executable, "-c", program], env=environment(1) | more, check=True)
    assert list((bucket / "cache" / "steps").iterdir())
