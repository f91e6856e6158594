"""Kill runs with `kill -9` at random moments, resume them, and compare the results bit for bit.

    python tests/soak/kills.py --series 40 --minutes 15 --seed 0

Each series starts one `qa-flax run` of a tiny model, with one process and two in turn, and kills it
one to three times: while it trains, saves a checkpoint, deletes an old one, evaluates, or saves
the final model. With two processes, all are killed at once or one alone; the other must then end
by itself. The last start runs to the end. Final weights, those of the checkpoints that are left,
and every `trainer_state.json` (without times) must equal those of a run that nobody killed, and no
temporary file may be left.

One line per series, then a summary; the status is 1 if a series failed. A start takes about ten
seconds of one core. pytest does not collect this file.
"""

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import soak_run
from soak_run import Run

from qa_flax.messages import first_few

ENDED = "ended before"
PEER_SECONDS = 60.0  # by then the other process must have noticed


def _has_begun(run: Run) -> bool:
    return "\nTraining " in run.text()


def _is_evaluating(run: Run) -> bool:
    """Whether the latest line is the loss of an update after which the run evaluates."""
    lines = run.text().splitlines()
    epochs = ("0.6", "1.2", "1.8", "2.4")
    return (
        bool(lines)
        and lines[-1].startswith("{'loss'")
        and lines[-1].endswith(tuple(f"'epoch': '{epoch}'}}" for epoch in epochs))
    )


# What can be seen from outside when a stage begins. Before a process has joined the others, its
# end cannot be noticed: they wait for it, as for one that is started late.
STAGES: dict[str, Callable[[Run, Path], bool]] = {
    "training": lambda run, output: _has_begun(run),
    "saving": lambda run, output: any(output.glob(".checkpoint-*.new")),
    "rotating": lambda run, output: (
        any(output.glob(".checkpoint-*.deleted"))
        or len(soak_run.checkpoints_in(output)) > soak_run.CHECKPOINTS
    ),
    "evaluating": lambda run, output: _is_evaluating(run),
    "final save": lambda run, output: _has_begun(run) and (output / "model.safetensors").exists(),
}


def kill_once(run: Run, output: Path, stage: str, rng: random.Random) -> str:
    """Wait for the stage, and a random moment more, and kill; what happened, in words."""
    while run.is_running() and not STAGES[stage](run, output):
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 4.0 if stage == "training" else 0.05))
    if not run.is_running():
        run.wait()
        return ENDED
    victims = run.processes if rng.random() < 0.5 else [rng.choice(run.processes)]
    for process in victims:
        process.kill()
    killed = time.monotonic()
    statuses = run.wait(PEER_SECONDS)
    if len(victims) == len(run.processes):
        return stage
    others = [s for p, s in zip(run.processes, statuses, strict=True) if p not in victims]
    if others != [1]:
        raise AssertionError(f"after a kill while {stage} the other process ended with {others}")
    return f"{stage} (the other ended after {time.monotonic() - killed:.0f} s)"


def series(folder: Path, number: int, count: int, expected: dict[str, str], seed: int) -> list[str]:
    """Kill one run several times and let it end; the stages. `AssertionError`: what went wrong."""
    rng = random.Random(f"{seed}-{number}")
    output, stages = folder / f"series-{number}", []
    kills = rng.randint(1, 3)
    while len(stages) < kills:
        stage = rng.choice(list(STAGES))
        happened = kill_once(Run(folder, output, count), output, stage, rng)
        if happened == ENDED:  # nothing is left to be killed: from the beginning
            shutil.rmtree(output)
            stages = []
        else:
            stages.append(happened)
    last = Run(folder, output, count)
    statuses = last.wait()
    if any(statuses):
        raise AssertionError(f"the last start ended with {statuses}: {last.text()[-600:]}")
    if different := soak_run.differences(expected, soak_run.fingerprint(output)):
        raise AssertionError(f"after {stages} not the same: {first_few(different)}")
    if left := soak_run.temporary_files(output):
        raise AssertionError(f"after {stages} temporary files are left: {', '.join(left)}")
    return stages


def main() -> None:
    """Run the series until their number or the time is reached."""
    options = soak_run.parser(__doc__, series=40)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="in turn")
    options = options.parse_args()
    until = time.monotonic() + 60 * options.minutes
    done, kills, failed = 0, Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="qa_flax-soak-") as name:
        folder, expected = Path(name), {}
        soak_run.prepare(folder)
        while done < options.series and time.monotonic() < until:
            count = options.processes[done % len(options.processes)]
            try:
                if count not in expected:
                    run = Run(folder, folder / f"whole-{count}", count)
                    if any(run.wait()):
                        sys.exit(f"the uninterrupted run failed: {run.text()[-2000:]}")
                    expected[count] = soak_run.fingerprint(folder / f"whole-{count}")
                stages = series(folder, done, count, expected[count], options.seed)
                kills.update(stage.partition(" (")[0] for stage in stages)
                print(
                    f"series {done}, {count} process(es): same after {'; '.join(stages)}",
                    flush=True,
                )
            except AssertionError as error:
                failed += 1
                print(f"series {done}, {count} process(es): FAILED: {error}", flush=True)
            done += 1
    moments = ", ".join(f"{number} {stage}" for stage, number in sorted(kills.items()))
    print(f"{done - failed} of {done} series resumed bit for bit (kills: {moments})")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
