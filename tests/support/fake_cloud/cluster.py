"""A cluster with JobSet, of one machine: the pods of the JobSet that was applied are really run.

A job whose pod fails has failed: it is made anew up to `maxRestarts` times, or not at all where the
policies say so (https://jobset.sigs.k8s.io/docs/concepts/). Of the manifest it knows what
`gke/jobset.yaml` needs. A node that is preempted is gone at once, with its pods.
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
    assert job["backoffLimit"] == 0, "pods are not made anew one by one"
    for start in range(1 + failure["maxRestarts"]):
        homes = [str(CLOUD / "homes" / f"pod-{start}-{n}") for n in range(job["parallelism"])]
        for home in homes:
            Path(home).mkdir(parents=True)
        with state() as found:
            found[key] = {"homes": homes, "controller": os.getpid()}
        if start == 0:
            print("created", flush=True)
        statuses = run(job["template"]["spec"], homes)
        if not any(statuses) or is_final(statuses, job, failure):
            break
    with state() as found:
        found[key]["ended"] = "Failed" if any(statuses) else "Completed"


def run(pod: dict, homes: list[str]) -> list[int]:
    """The exit statuses of a pod in each home; the first that fails ends the others."""
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    pods = []
    for n, home in enumerate(homes):
        with (Path(home) / "log").open("wb") as log:
            pods.append(
                subprocess.Popen(
                    [ENVIRONMENT["python"], ENVIRONMENT["qa-flax"], *container["args"]],
                    cwd=home,
                    env=environment_of(homes, n) | given,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
    while any(one.poll() is None for one in pods) and not any(one.returncode for one in pods):
        if fault("preempted"):
            for home in homes:
                kill_all(home)
        time.sleep(0.02)
    statuses = [one.poll() for one in pods]
    for one in pods:
        if one.poll() is None:
            one.send_signal(signal.SIGTERM)
    for one in pods:
        one.wait(pod["terminationGracePeriodSeconds"])
    return [0 if status is None else status for status in statuses]


def is_final(statuses: list[int], job: dict, failure: dict) -> bool:
    """Whether a policy says that a job with these statuses is not to be made anew."""
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
