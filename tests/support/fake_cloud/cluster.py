"""A fake Kubernetes cluster with JobSet: runs the pods of the applied JobSet on this machine.

A job fails when one of its pods fails. It is then restarted, up to `maxRestarts` times, unless the
policies forbid it (https://jobset.sigs.k8s.io/docs/concepts/). Only the fields of the manifest that
`gke/jobset.yaml` uses are supported. A preempted node kills its pods at once.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import yaml
from cloud import CLOUD, ENVIRONMENT, environment_of, fault, kill_all, state


def main() -> None:
    job_set = yaml.safe_load((CLOUD / "applied.yaml").read_text())
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    key = f"jobset/{job_set['metadata']['name']}"
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job, failure = replicated["template"]["spec"], job_set["spec"]["failurePolicy"]
    assert job["backoffLimit"] == 0, "single pods must not be restarted"
    for start in range(1 + failure["maxRestarts"]):
        homes = [str(CLOUD / "homes" / f"pod-{start}-{n}") for n in range(job["parallelism"])]
        for home in homes:
            Path(home).mkdir(parents=True)
        with state() as resources:
            resources[key] = {"homes": homes, "controller": os.getpid()}
        if start == 0:
            print("created", flush=True)
        statuses = run(job["template"]["spec"], homes)
        if not any(statuses) or is_final(statuses, job, failure):
            break
    with state() as resources:
        resources[key]["terminal state"] = "Failed" if any(statuses) else "Completed"


def run(pod: dict, homes: list[str]) -> list[int]:
    """Run one pod in each home and return their exit statuses; one that fails ends the others."""
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    processes = []
    for n, home in enumerate(homes):
        with (Path(home) / "log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [ENVIRONMENT["python"], ENVIRONMENT["qa-flax"], *container["args"]],
                    cwd=home,
                    env=environment_of(homes, n) | variables,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
    while any(p.poll() is None for p in processes) and not any(p.returncode for p in processes):
        if fault("preempted"):
            for home in homes:
                kill_all(home)
        time.sleep(0.02)
    statuses = [process.poll() for process in processes]
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait(pod["terminationGracePeriodSeconds"])
    return [0 if status is None else status for status in statuses]


def is_final(statuses: list[int], job: dict, failure: dict) -> bool:
    """Whether the policies forbid to restart a job with these exit statuses."""
    fatal = [
        status
        for rule in job["podFailurePolicy"]["rules"]
        if rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
        for status in rule["onExitCodes"]["values"]
    ]
    reason = "PodFailurePolicy" if set(fatal) & set(statuses) else "BackoffLimitExceeded"
    return any(
        rule["action"] == "FailJobSet" and reason in rule["onJobFailureReasons"]
        for rule in failure["rules"]
    )


if __name__ == "__main__":
    main()
