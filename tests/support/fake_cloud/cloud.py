"""A fake Google Cloud on this machine: the programs `gcloud`, `kubectl`, `curl` and `uv`.

Tests put this folder first on PATH. The environment variable FAKE_CLOUD names the folder with the
cloud's files:

    calls.jsonl         every command that was called
    state.json          the resources that exist
    faults.json         the failures to simulate, see `fault`
    worker_env.json     the environment of the workers' commands
    homes/              one folder for each worker, the HOME of its commands

The commands of workers are really run, as processes of this machine; `cluster.py` runs the pods of
a JobSet. A bucket is a folder, as in `fake_gs.py`. Flags that no script uses are refused.
"""

import fcntl
import glob
import json
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
HERE = Path(__file__).parent
ENVIRONMENT = json.loads((CLOUD / "worker_env.json").read_text())
LOCATION = {"--project", "--zone"}
ALLOWED = {
    "compute tpus queued-resources create": LOCATION
    | {"--node-id", "--accelerator-type", "--runtime-version", "--valid-until-duration"}
    | {"--service-account", "--spot", "--async"},
    "compute tpus queued-resources describe": LOCATION | {"--format"},
    "compute tpus queued-resources delete": LOCATION | {"--force", "--quiet"},
    "compute tpus tpu-vm describe": LOCATION | {"--format"},
    "compute tpus tpu-vm ssh": LOCATION | {"--worker", "--command"},
    "compute tpus tpu-vm scp": LOCATION | {"--worker"},
    "compute instance-templates create": {"--project", "--machine-type", "--image-family"}
    | {"--image-project", "--maintenance-policy", "--scopes", "--service-account"}
    | {"--provisioning-model", "--instance-termination-action"},
    "compute instance-templates delete": {"--project", "--quiet"},
    "compute resource-policies create workload-policy": {"--project", "--region", "--type"}
    | {"--accelerator-topology"},
    "compute resource-policies delete": {"--project", "--region", "--quiet"},
    "compute instance-groups managed create": LOCATION
    | {"--size", "--template", "--default-action-on-vm-failure", "--workload-policy"},
    "compute instance-groups managed wait-until": LOCATION | {"--stable", "--timeout"},
    "compute instance-groups managed list-instances": LOCATION | {"--format"},
    "compute instance-groups managed delete": LOCATION | {"--quiet"},
    "compute ssh": LOCATION | {"--command"},
    "compute scp": LOCATION,
    "secrets versions access": {"--secret", "--project"},
    "storage cp": set(),
}


def main() -> None:
    program, *arguments = sys.argv[1:]
    with (CLOUD / "calls.jsonl").open("a") as file:
        call = {"program": program, "arguments": arguments, "home": os.environ.get("HOME")}
        file.write(json.dumps(call) + "\n")
    sys.exit({"gcloud": gcloud, "kubectl": kubectl, "curl": curl, "uv": uv}[program](arguments))


@contextmanager
def state():
    """Lock and load the resources in `state.json`, and save them if they have changed."""
    with (CLOUD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = CLOUD / "state.json"
        before = path.read_text() if path.exists() else "{}"
        resources = json.loads(before)
        yield resources
        if (after := json.dumps(resources)) != before:
            # Not in place, because the process that writes may be killed.
            path.with_suffix(".new").write_text(after)
            path.with_suffix(".new").replace(path)


def fault(name: str) -> dict | None:
    """Take the next fault of this name from `faults.json`, or None if there is none.

    A fault with `when`, a glob pattern, happens only once a matching file exists.
    """
    with state() as resources:
        path = CLOUD / "faults.json"
        faults = json.loads(path.read_text()) if path.exists() else []
        for entry in faults:
            if entry["fault"] == name and ("when" not in entry or glob.glob(entry["when"])):
                faults.remove(entry)
                path.write_text(json.dumps(faults))
                resources.setdefault("past faults", []).append(name)
                return entry
    return None


def fail(message: str, status: int = 1) -> int:
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    return status


def parse(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split into flags with their values, and the other arguments."""
    flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
    return flags, [word for word in words if not word.startswith("--")]


# ---- gcloud --------------------------------------------------------------------------------------


def gcloud(arguments: list[str]) -> int:
    verb = next((v for v in ALLOWED if arguments[: len(v.split())] == v.split()), None)
    if verb is None:
        return fail(f"Invalid choice: {arguments[:4]}", 2)
    flags, names = parse(arguments[len(verb.split()) :])
    if unknown := flags.keys() - ALLOWED[verb]:
        return fail(f"unrecognized arguments: {unknown}", 2)
    if missing := (ALLOWED[verb] & {"--project", "--zone", "--region"}) - flags.keys():
        return fail(f"missing: {missing}", 2)
    if fault(verb):
        return fail("RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProject' has been exceeded.")
    action = verb.split()[-1]
    if verb == "secrets versions access":
        print((CLOUD / "secrets" / flags["--secret"]).read_text(), end="")
        return 0
    if verb == "storage cp":
        target = Path(ENVIRONMENT["env"]["QA_FLAX_FAKE_GS"], names[1].removeprefix("gs://"))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(names[0], target)
        return 0
    if action == "create" or "workload-policy" in verb:
        return create(verb, names[0], flags)
    if action == "delete":
        return delete(verb, names[0])
    if action in ("describe", "list-instances", "wait-until"):
        return describe(verb, names[0])
    return remote(verb, names, flags)


def kind_of(verb: str) -> str:
    """The kind of resource that a command is about; TPUs and instance groups are nodes."""
    return "node" if "tpus" in verb or "managed" in verb else verb.split()[1]


def create(verb: str, name: str, flags: dict[str, str]) -> int:
    with state() as resources:
        key = f"{kind_of(verb)}/{name}"
        if key in resources:
            return fail("ALREADY_EXISTS")
        resources[key] = {"flags": flags, "state": "READY"}
        if kind_of(verb) == "node":
            number = resources["nodes created"] = resources.get("nodes created", 0) + 1
            count = int(flags.get("--size") or ENVIRONMENT["workers"])
            homes = [CLOUD / "homes" / f"{name}-{number}-{n}" for n in range(count)]
            for home in homes:
                home.mkdir(parents=True)
            resources[key] |= {"homes": list(map(str, homes))}
    return 0


def delete(verb: str, name: str) -> int:
    with state() as resources:
        deleted = resources.pop(f"{kind_of(verb)}/{name}", None)
    if deleted is None:
        return fail("NOT_FOUND: Resource was not found")
    for home in deleted.get("homes", []):
        kill_all(home)
        shutil.rmtree(home, ignore_errors=True)
    return 0


def describe(verb: str, name: str) -> int:
    with state() as resources:
        node = resources.get(f"node/{name}")
    if node is None:
        return fail("NOT_FOUND: Resource was not found")
    preempted = node["state"] == "PREEMPTED"
    if "queued" in verb:
        with state() as resources:  # the first request is too early
            key = f"describe requests/{name}"
            requests = resources[key] = resources.get(key, 0) + 1
        waiting = "WAITING_FOR_RESOURCES" if requests == 1 else "ACTIVE"
        print("SUSPENDED" if preempted else waiting)
    elif "tpu-vm" in verb:
        print(node["state"])
    elif "list-instances" in verb:
        for home in node["homes"]:
            status = "TERMINATED" if preempted else "RUNNING"
            print(Path(home).name if "--format=value(name)" in sys.argv else status)
    return 0


def remote(verb: str, names: list[str], flags: dict[str, str]) -> int:
    """`ssh` and `scp` to the workers of a TPU, or to one instance of a group."""
    target = next(n for n in names if ":" in n) if "scp" in verb else names[0]
    with state() as resources:
        nodes = {k.removeprefix("node/"): v for k, v in resources.items() if k.startswith("node/")}
    machine = target.partition(":")[0]
    for name, node in nodes.items():
        homes = node["homes"]
        if name == machine and "tpus" in verb:
            worker = flags.get("--worker", "0")
            workers = range(len(homes)) if worker == "all" else [int(worker)]
        else:
            workers = [n for n, home in enumerate(homes) if Path(home).name == machine]
        if workers and node["state"] == "READY":
            break
    else:
        print(f"ssh: connect to host {machine} port 22: Connection timed out", file=sys.stderr)
        return 255
    if "scp" in verb:
        for n in workers:
            shutil.copy(names[0], Path(homes[n]) / target.partition(":")[2])
        return 0
    return ssh(name, node, workers, flags["--command"])


def ssh(name: str, node: dict, workers, command: str) -> int:
    """Run a command on several workers and return the largest exit status.

    Faults may drop the connection or preempt the node while the log is shown.
    """
    import subprocess  # here, because it is slow to import and few commands need it

    processes = []
    for n in workers:
        processes.append(
            subprocess.Popen(
                ["bash", "-c", command],
                cwd=node["homes"][n],
                env=environment_of(node["homes"], n),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
    while any(process.poll() is None for process in processes):
        if "show" in command and fault("preempted"):
            with state() as resources:
                resources[f"node/{name}"]["state"] = "PREEMPTED"
            for home in node["homes"]:
                kill_all(home)
            return 255
        if "show" in command and fault("ssh drop"):
            for process in processes:
                os.killpg(process.pid, signal.SIGHUP)
            return 255
        time.sleep(0.02)
    return max(process.returncode for process in processes)


def environment_of(homes: list[str], n: int) -> dict[str, str]:
    """The environment of worker `n`, with Slurm's variables, by which JAX detects the processes."""
    job = {"SLURM_JOB_ID": str(ENVIRONMENT["port"]), "SLURM_STEP_NODELIST": "localhost"}
    job |= {"SLURM_NTASKS": str(len(homes)), "SLURM_PROCID": str(n), "SLURM_LOCALID": "0"}
    return ENVIRONMENT["env"] | {"HOME": homes[n], "FAKE_CLOUD": str(CLOUD)} | job


def kill_all(home: str) -> None:
    """Send SIGKILL to all processes of a worker, those whose HOME is `home`."""
    variable = f"\0HOME={home}\0".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            process = int(path.parent.name)
            if variable in b"\0" + path.read_bytes() + b"\0" and process != os.getpid():
                os.kill(process, signal.SIGKILL)
        except (OSError, ValueError):
            continue  # another user's process, or one that has ended


# ---- kubectl, curl, uv ---------------------------------------------------------------------------


def kubectl(arguments: list[str]) -> int:
    verb = arguments[0]
    flags, names = parse(arguments[1:])
    if verb == "apply":
        (CLOUD / "applied.yaml").write_text(sys.stdin.read())
        return start_in_background([ENVIRONMENT["interpreter"], str(HERE / "cluster.py")])
    if verb == "get":
        with state() as resources:
            terminal_state = resources.get("/".join(names), {}).get("terminal state", "")
        assert flags["--output"] == "jsonpath={.status.terminalState}."
        print(f"{terminal_state}.", end="")
    elif verb == "logs":
        labels = dict(pair.split("=") for pair in flags["--selector"].split(","))
        name = labels["jobset.sigs.k8s.io/jobset-name"]
        index = int(labels["batch.kubernetes.io/job-completion-index"])
        with state() as resources:
            home = resources[f"jobset/{name}"]["homes"][index]
        print((Path(home) / "log").read_text(), end="")
    else:
        assert verb == "delete", arguments
        with state() as resources:
            deleted = resources.pop("/".join(names), None)
        if deleted is None:
            return 0 if "--ignore-not-found" in flags else fail("NotFound")
        if "terminal state" not in deleted:
            os.kill(deleted["controller"], signal.SIGKILL)
        for home in deleted["homes"]:
            kill_all(home)
    return 0


def start_in_background(command: list[str]) -> int:
    """Start a process and wait until it prints a line; 1 if it ends before that, else 0."""
    import subprocess

    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    return 0 if process.stdout and process.stdout.readline() else 1


def curl(arguments: list[str]) -> int:
    """Print an installer of uv, a shell script."""
    assert arguments[-1] == "https://astral.sh/uv/install.sh"
    print(f'mkdir -p "$HOME/.local/bin" && cp {HERE / "to_install" / "uv"} "$HOME/.local/bin/uv"')
    return 0


def uv(arguments: list[str]) -> int:
    """Create an environment that runs this interpreter, and `qa-flax` from PYTHONPATH."""
    if arguments[0] == "venv":
        assert "3.12" in arguments
        write_script(Path(arguments[-1]) / "bin" / "python", "")
        return 0
    assert arguments[:2] == ["pip", "install"]
    python = Path(arguments[arguments.index("--python") + 1])
    source = Path(arguments[-1].removesuffix("[tpu]"))
    assert arguments[-1].endswith("[tpu]")
    assert python.exists()
    assert (source / "pyproject.toml").exists()
    if fault("install"):
        return 2
    write_script(python.with_name("qa-flax"), ENVIRONMENT["qa-flax"])
    return 0


def write_script(path: Path, arguments: str) -> None:
    """Write an executable that runs the workers' Python with these arguments first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {ENVIRONMENT["python"]} {arguments} "$@"\n')
    path.chmod(0o755)


if __name__ == "__main__":
    main()
