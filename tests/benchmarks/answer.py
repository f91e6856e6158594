"""Time `QuestionAnswerer` and the question-answering pipeline of transformers 4.57 on the CPU.

    export QA_FLAX_SHARED=DIR QA_FLAX_TRANSFORMERS_4=VENV/bin/python
    python tests/benchmarks/answer.py [--questions 1000] [--repeats 3]

The questions are the first of `data/squadshifts/reddit_v1.0.json` of the shared data. The model is
all-MiniLM-L6-v2 with a random span head. Each side has a process of its own, started with the same
environment; they run in turn, so that other load on the machine slows down both, and the other side
waits meanwhile. Each time is the best of `--repeats`, after a first run that is not counted.

The second line is everything but the forward pass: in both processes the model is replaced by one
that returns the logits of an earlier run at no cost. The answers are compared first.
`tests/golden/make_pipeline_golden.py` says how to make the virtual environment of 4.57.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import jax
from pipeline_cases import squad_rows
from pipeline_checkpoints import write_mini_lm
from reference_pipeline import PYTHON

from qa_flax import QuestionAnswerer
from qa_flax.answering import forward


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer_batch_size", type=int, default=None, help="the pipeline's")
    args = parser.parse_args()
    shared = Path(os.environ["QA_FLAX_SHARED"])
    rows = squad_rows(shared / "data/squadshifts/reddit_v1.0.json")[: args.questions]
    with tempfile.TemporaryDirectory() as working:
        folder = write_mini_lm(shared / "models/all-MiniLM-L6-v2", Path(working, "model"))
        questions = Path(working, "questions.json")
        questions.write_text(json.dumps(rows), "utf-8")
        sides = [Peer(folder, questions, args.peer_batch_size), Own(folder, rows)]
        for side in sides:
            print(f"{side.name}: {side.stack}", flush=True)
        times = {name: best_times(sides, name, args.repeats) for name in ("all", "host")}
        compare(*(side.answers() for side in sides))
    print(f"\n| {len(rows):,} questions | {sides[0].name} | {sides[1].name} | ratio |")
    print("|---|---|---|---|")
    rates = [len(rows) / seconds for seconds in times["all"]]
    print(
        f"| questions per second | {rates[0]:.1f} | {rates[1]:.1f} | {rates[1] / rates[0]:.2f}x |"
    )
    slow, fast = (1000 * seconds / len(rows) for seconds in times["host"])
    what = "ms per question, without the forward pass"
    print(f"| {what} | {slow:.2f} | {fast:.3f} | {slow / fast:.1f}x |")


def best_times(sides, name, repeats):
    """Return the best seconds of each side, which run in turn."""
    times = [[side.run(name) for side in sides] for _ in range(repeats + 1)]
    return [min(column) for column in zip(*times[1:], strict=True)]


def compare(expected, actual):
    """Print how many answers differ; float32 rounding may swap two of almost the same score.

    Raises:
        AssertionError: more differ than rounding explains.
    """
    different = [
        (a, b)
        for a, b in zip(expected, actual, strict=True)
        if (a["start"], a["end"]) != (b["start"], b["end"]) or abs(a["score"] - b["score"]) > 1e-5
    ]
    print(f"{len(different)} of {len(expected)} answers differ by more than 1e-5", flush=True)
    if len(different) > len(expected) // 500:
        raise AssertionError(f"the answers differ: {different[:5]}")


class Own:
    """`QuestionAnswerer` in this process."""

    name = "qa_flax"

    def __init__(self, folder, rows):
        self.answerer = QuestionAnswerer(str(folder))
        self.texts = {name: [row[name] for row in rows] for name in ("question", "context")}
        self.stack = f"jax {jax.__version__}, {jax.device_count()} device(s), {os.cpu_count()} CPUs"
        self.outputs = []
        self.results = []

    def run(self, name):
        """Return the seconds to answer all questions; "host" needs an earlier "all"."""
        if name == "all":
            started = time.perf_counter()
            self.results = self.answerer(**self.texts)
            return time.perf_counter() - started
        own, at_once = self.answerer._forward, forward.CALLS_AT_ONCE
        forward.CALLS_AT_ONCE = 1  # so that the order of the calls is the same again
        loop = own._loop
        if not self.outputs:
            own._loop = lambda *arguments: self._recorded(loop(*arguments))
            self.answerer(**self.texts)
        replay = iter(self.outputs)
        own._loop = lambda *arguments: next(replay)
        started = time.perf_counter()
        self.answerer(**self.texts)
        seconds = time.perf_counter() - started
        own._loop, forward.CALLS_AT_ONCE = loop, at_once
        return seconds

    def _recorded(self, logits):
        self.outputs.append(jax.block_until_ready(logits))
        return logits

    def answers(self):
        return self.results


class Peer:
    """The pipeline, in the Python of a virtual environment with transformers 4.57."""

    name = "pipeline of transformers 4.57"

    def __init__(self, folder, questions, batch_size):
        program = Path(__file__).with_name("answer_peer.py")
        command = [os.environ[PYTHON], program, folder, questions]
        self.process = subprocess.Popen(
            command if batch_size is None else [*command, str(batch_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stack = self._reply()["stack"]

    def run(self, name):
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return self._reply()

    def answers(self):
        return self.run("answers")

    def _reply(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with status {self.process.wait()}")
        return json.loads(line)


if __name__ == "__main__":
    main()
