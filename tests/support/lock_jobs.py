"""What `test_folder_lock.py` does in processes of its own, forked before JAX starts any thread.

python lock_jobs.py FOLDER       prints the outcomes of all jobs as JSON
python lock_jobs.py FOLDER hold  holds the lock of the folder until it is killed
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

from qa_flax.distributed import failure
from qa_flax.train import folder_lock
from qa_flax.train.folder_lock import NAME, FolderLockedError, locked


def hold(folder: Path) -> None:
    with locked(folder):
        print("held", flush=True)
        time.sleep(600)


def race(folder: Path, *, stale: bool) -> list[str]:
    """Enter the lock in six processes at once; the winner keeps it until all have tried."""
    folder.mkdir()
    if stale:  # of a process of this host whose id another one has now
        values = json.loads(folder_lock._Owner.new().text(0))
        (folder / NAME).write_text(json.dumps(values | {"process_started": "1", "token": "old"}))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()

    def enter() -> None:
        barrier.wait()
        try:
            with locked(folder):
                results.put("won")
                barrier.wait()
        except FolderLockedError:
            results.put("lost")
            barrier.wait()

    starters = [context.Process(target=enter) for _ in range(6)]
    for process in starters:
        process.start()
    outcomes = sorted(results.get(timeout=60) for _ in starters)
    for process in starters:
        process.join()
    return outcomes + os.listdir(folder)


def fail(folder: Path) -> list:
    """Exit because of a failure, which skips contexts, while the lock is held."""
    if not (process := os.fork()):
        with locked(folder):
            failure.end(7)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), folder.parent.exists()]


def kill(folder: Path) -> dict:
    """Enter a lock whose process is alive, and again after it was killed."""
    if not (process := os.fork()):
        with locked(folder):
            time.sleep(600)
    while not (folder / NAME).exists() or not (folder / NAME).read_text():
        time.sleep(0.01)
    outcome = {"process": process}
    try:
        with locked(folder):
            pass
    except FolderLockedError as error:
        outcome["refused"] = str(error)
    os.kill(process, signal.SIGKILL)
    # Not yet waited for: a zombie has ended.
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    started = time.monotonic()
    with locked(folder):
        outcome["seconds"] = time.monotonic() - started
    os.waitpid(process, 0)
    return outcome | {"left": os.listdir(folder)}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    if sys.argv[2:] == ["hold"]:
        hold(root)
    (root / "killed").mkdir()
    outcomes = {"killed": kill(root / "killed"), "failed": fail(root / "a" / "b")}
    outcomes |= {f"stale {s}": race(root / f"race-{s}", stale=s) for s in (False, True)}
    print(json.dumps(outcomes))
