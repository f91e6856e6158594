"""A cloud of one machine: `gcloud`, `kubectl`, `curl` and `uv`, where they come first on PATH.

FAKE_CLOUD is a folder: `calls.jsonl` gets every command, `state.json` holds what exists,
`faults.json` says what goes wrong. A worker is a folder that its commands have as HOME; they are
really run, with nothing of the caller's environment but what `worker_env.json` holds. What runs on
the cluster is `cluster.py`'s. A bucket is a folder, as in `fake_gs.py`. A flag that no script needs
is refused.
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
PLACE = {"--project", "--zone"}
ALLOWED = {
    "compute tpus queued-resources create": PLACE
    | {"--node-id", "--accelerator-type", "--runtime-version", "--valid-until-duration"}
    | {"--service-account", "--spot", "--async"},
    "compute tpus queued-resources describe": PLACE | {"--format"},
    "compute tpus queued-resources delete": PLACE | {"--force", "--quiet"},
    "compute tpus tpu-vm describe": PLACE | {"--format"},
    "compute tpus tpu-vm ssh": PLACE | {"--worker", "--command"},
    "compute tpus tpu-vm scp": PLACE | {"--worker"},
    "compute instance-templates create": {"--project", "--machine-type", "--image-family"}
    | {"--image-project", "--maintenance-policy", "--scopes", "--service-account"}
    | {"--provisioning-model", "--instance-termination-action"},
    "compute instance-templates delete": {"--project", "--quiet"},
    "compute resource-policies create workload-policy": {"--project", "--region", "--type"}
    | {"--accelerator-topology"},
    "compute resource-policies delete": {"--project", "--region", "--quiet"},
    "compute instance-groups managed create": PLACE
    | {"--size", "--template", "--default-action-on-vm-failure", "--workload-policy"},
    "compute instance-groups managed wait-until": PLACE | {"--stable", "--timeout"},
    "compute instance-groups managed list-instances": PLACE | {"--format"},
    "compute instance-groups managed delete": PLACE | {"--quiet"},
    "compute ssh": PLACE | {"--command"},
    "compute scp": PLACE,
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
    """What exists, for one process at a time."""
    with (CLOUD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = CLOUD / "state.json"
        before = path.read_text() if path.exists() else "{}"
        found = json.loads(before)
        yield found
        if (after := json.dumps(found)) != before:
            path.with_suffix(".new").write_text(after)  # whoever writes may be killed
            path.with_suffix(".new").replace(path)


def fault(name: str) -> dict | None:
    """The next fault of this kind, which is then used up; None once there is no more."""
    with state() as found:
        path = CLOUD / "faults.json"
        faults = json.loads(path.read_text()) if path.exists() else []
        for entry in faults:
            if entry["fault"] == name and ("when" not in entry or glob.glob(entry["when"])):
                faults.remove(entry)
                path.write_text(json.dumps(faults))
                found.setdefault("happened", []).append(name)
                return entry
    return None


def refuse(message: str, status: int = 1) -> int:
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    return status


# ---- gcloud --------------------------------------------------------------------------------------


def gcloud(arguments: list[str]) -> int:
    verb = next((v for v in ALLOWED if arguments[: len(v.split())] == v.split()), None)
    if verb is None:
        return refuse(f"Invalid choice: {arguments[:4]}", 2)
    rest = arguments[len(verb.split()) :]
    flags = dict(r.partition("=")[::2] for r in rest if r.startswith("--"))
    names = [r for r in rest if not r.startswith("--")]
    if unknown := flags.keys() - ALLOWED[verb]:
        return refuse(f"unrecognized arguments: {unknown}", 2)
    if missing := (ALLOWED[verb] & {"--project", "--zone", "--region"}) - flags.keys():
        return refuse(f"missing: {missing}", 2)
    if fault(verb):
        return refuse(
            "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProject' has been exceeded."
        )
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
    return "node" if "tpus" in verb or "managed" in verb else verb.split()[1]


def create(verb: str, name: str, flags: dict[str, str]) -> int:
    with state() as found:
        key = f"{kind_of(verb)}/{name}"
        if key in found:
            return refuse("ALREADY_EXISTS")
        found[key] = {"flags": flags, "state": "READY"}
        if kind_of(verb) == "node":
            found["made"] = found.get("made", 0) + 1
            count = int(flags.get("--size") or ENVIRONMENT["workers"])
            homes = [CLOUD / "homes" / f"{name}-{found['made']}-{n}" for n in range(count)]
            for home in homes:
                home.mkdir(parents=True)
            found[key] |= {"homes": list(map(str, homes))}
    return 0


def delete(verb: str, name: str) -> int:
    with state() as found:
        gone = found.pop(f"{kind_of(verb)}/{name}", None)
    if gone is None:
        return refuse("NOT_FOUND: Resource was not found")
    for home in gone.get("homes", []):
        kill_all(home)
        shutil.rmtree(home, ignore_errors=True)
    return 0


def describe(verb: str, name: str) -> int:
    with state() as found:
        node = found.get(f"node/{name}")
    if node is None:
        return refuse("NOT_FOUND: Resource was not found")
    lost = node["state"] == "PREEMPTED"
    if "queued" in verb:
        with state() as found:  # the first look is too early
            looks = found[f"looks/{name}"] = found.get(f"looks/{name}", 0) + 1
        print("SUSPENDED" if lost else "WAITING_FOR_RESOURCES" if looks == 1 else "ACTIVE")
    elif "tpu-vm" in verb:
        print(node["state"])
    elif "list-instances" in verb:
        for home in node["homes"]:
            running = "TERMINATED" if lost else "RUNNING"
            print(Path(home).name if "--format=value(name)" in sys.argv else running)
    return 0


def remote(verb: str, names: list[str], flags: dict[str, str]) -> int:
    target = next(n for n in names if ":" in n) if "scp" in verb else names[0]
    with state() as found:
        nodes = {k.removeprefix("node/"): v for k, v in found.items() if k.startswith("node/")}
    named = target.partition(":")[0]
    for name, node in nodes.items():
        homes = node["homes"]
        if name == named and "tpus" in verb:
            worker = flags.get("--worker", "0")
            wanted = range(len(homes)) if worker == "all" else [int(worker)]
        else:
            wanted = [n for n, home in enumerate(homes) if Path(home).name == named]
        if wanted and node["state"] == "READY":
            break
    else:
        print(f"ssh: connect to host {named} port 22: Connection timed out", file=sys.stderr)
        return 255
    if "scp" in verb:
        for n in wanted:
            shutil.copy(names[0], Path(homes[n]) / target.partition(":")[2])
        return 0
    return ssh(name, node, wanted, flags["--command"])


def ssh(name: str, node: dict, workers, command: str) -> int:
    """Run it on each; the statuses' largest. The connection may drop and the workers be lost."""
    import subprocess  # slow to import, and few commands need it

    started = []
    for n in workers:
        started.append(
            subprocess.Popen(
                ["bash", "-c", command],
                cwd=node["homes"][n],
                env=environment_of(node["homes"], n),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        )
    while any(process.poll() is None for process in started):
        if "show" in command and fault("preempted"):
            with state() as found:
                found[f"node/{name}"]["state"] = "PREEMPTED"
            for home in node["homes"]:
                kill_all(home)
            return 255
        if "show" in command and fault("ssh drop"):
            for process in started:
                os.killpg(process.pid, signal.SIGHUP)
            return 255
        time.sleep(0.02)
    return max(process.returncode for process in started)


def environment_of(homes: list[str], n: int) -> dict[str, str]:
    """A worker's; JAX finds the processes by it, as it does on a TPU by other means."""
    job = {"SLURM_JOB_ID": str(ENVIRONMENT["port"]), "SLURM_STEP_NODELIST": "localhost"}
    job |= {"SLURM_NTASKS": str(len(homes)), "SLURM_PROCID": str(n), "SLURM_LOCALID": "0"}
    return ENVIRONMENT["env"] | {"HOME": homes[n], "FAKE_CLOUD": str(CLOUD)} | job


def kill_all(home: str) -> None:
    """SIGKILL to whatever runs on a worker, which its HOME tells."""
    mark = f"\0HOME={home}\0".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in b"\0" + path.read_bytes() + b"\0" and int(path.parent.name) != os.getpid():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue  # another user's, or gone


# ---- the others ----------------------------------------------------------------------------------


def kubectl(arguments: list[str]) -> int:
    verb, *rest = arguments
    flags = dict(r.partition("=")[::2] for r in rest if r.startswith("--"))
    names = [r for r in rest if not r.startswith("--")]
    if verb == "apply":
        (CLOUD / "applied.yaml").write_text(sys.stdin.read())
        return in_background([ENVIRONMENT["interpreter"], str(HERE / "cluster.py")])
    if verb == "get":
        with state() as found:
            ended = found.get("/".join(names), {}).get("ended", "")
        assert flags["--output"] == "jsonpath={.status.terminalState}."
        print(f"{ended}.", end="")
    elif verb == "logs":
        chosen = dict(pair.split("=") for pair in flags["--selector"].split(","))
        name = chosen["jobset.sigs.k8s.io/jobset-name"]
        number = int(chosen["batch.kubernetes.io/job-completion-index"])
        with state() as found:
            home = found[f"jobset/{name}"]["homes"][number]
        print((Path(home) / "log").read_text(), end="")
    else:
        assert verb == "delete", arguments
        with state() as found:
            gone = found.pop("/".join(names), None)
        if gone is None:
            return 0 if "--ignore-not-found" in flags else refuse("NotFound")
        if "ended" not in gone:
            os.kill(gone["controller"], signal.SIGKILL)
        for home in gone["homes"]:
            kill_all(home)
    return 0


def in_background(command: list[str]) -> int:
    """Start it; 0 once it says, by the first line it prints, that it is on its way."""
    import subprocess

    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    return 0 if process.stdout and process.stdout.readline() else 1


def curl(arguments: list[str]) -> int:
    """uv's installer, a shell script."""
    assert arguments[-1] == "https://astral.sh/uv/install.sh"
    print(f'mkdir -p "$HOME/.local/bin" && cp {HERE / "later" / "uv"} "$HOME/.local/bin/uv"')
    return 0


def uv(arguments: list[str]) -> int:
    """An environment of this very interpreter; `qa-flax` is the package on PYTHONPATH."""
    if arguments[0] == "venv":
        assert "3.12" in arguments
        script(Path(arguments[-1]) / "bin" / "python", "")
        return 0
    assert arguments[:2] == ["pip", "install"]
    python = Path(arguments[arguments.index("--python") + 1])
    source = Path(arguments[-1].removesuffix("[tpu]"))
    assert arguments[-1].endswith("[tpu]")
    assert python.exists()
    assert (source / "pyproject.toml").exists()
    if fault("install"):
        return 2
    script(python.with_name("qa-flax"), ENVIRONMENT["qa-flax"])
    return 0


def script(path: Path, words: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {ENVIRONMENT["python"]} {words} "$@"\n')
    path.chmod(0o755)


if __name__ == "__main__":
    main()
