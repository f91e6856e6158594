"""Train and evaluate again and again in one process, and watch its memory.

    python tests/soak/memory.py --trainings 50 --evaluations 1000 --minutes 15

Three series: calls of `train()` of equal trainers; calls of which each has a loss function of its
own, so that none can share a compiled step; and calls of `evaluate()` of one trainer. The first
calls fill caches of bounded size, `programs.CACHE_SIZE` compiled steps among them. From then on
the resident memory must not grow: by at most 1 MB a training and 0.02 MB an evaluation, in the
mean of what is left, the slope of a line through the measurements.

One line per ten calls of train() or 100 of evaluate(), one per series, then a summary; the status
is 1 if the memory of a series grew. pytest does not collect this file.
"""

import gc
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import soak_run

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", soak_run.processes.compiler_flags(2))

import jax
import numpy as np
import tiny
import tiny_trainers

from qa_flax.device import programs

PAGE = os.sysconf("SC_PAGE_SIZE")
compilations = 0


def memory() -> float:
    """This process's resident memory in MB."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE / 1e6


def _count(name: str, _seconds: float, **_: Any) -> None:
    global compilations
    compilations += name == "/jax/core/compile/backend_compile_duration"


def watch(
    name: str, calls: Iterator[Callable[[], Any]], until: float, most: float, warm: int
) -> bool | None:
    """Make the calls; whether the memory grew by at most `most` MB a call after `warm` of them.

    None: the time was over before that could be told.
    """
    used, started = [memory()], compilations
    every = max(1, warm)
    for number, call in enumerate(calls, 1):
        with redirect_stdout(io.StringIO()):  # the trainers print what they log
            call()
        used.append(memory())
        if number % every == 0:
            print(f"{name}: {number} calls, {used[-1]:.0f} MB", flush=True)
        if time.monotonic() > until:
            break
    compiled, later = compilations - started, used[warm:]
    if len(later) < 3:
        print(
            f"{name}: {len(used) - 1} calls, too few to tell ({used[0]:.0f} to {used[-1]:.0f} MB)"
        )
        return None
    slope = float(np.polyfit(np.arange(len(later)), later, 1)[0])
    is_flat = slope <= most
    print(
        f"{name}: {len(used) - 1} calls, {compiled} compilations, {used[0]:.0f} MB at the start, "
        f"{later[0]:.0f} after {warm}, {used[-1]:.0f} at the end, {slope:+.3f} MB a call: "
        f"{'flat' if is_flat else 'GROWS'}",
        flush=True,
    )
    return is_flat


@contextmanager
def trainers() -> Iterator[Callable[..., Any]]:
    """A function that builds a trainer of a tiny model in a temporary folder."""
    examples, tokenizer = tiny.examples(answerable=True), tiny.tokenizer()
    windows = tiny_trainers.watched_windows()
    changes = {"save_strategy": "no", "max_steps": 2, "num_train_epochs": 1}
    with tempfile.TemporaryDirectory(prefix="qa_flax-soak-") as folder:

        def build(loss: Any = None, **more: Any) -> Any:
            model = tiny.model(hidden_dropout_prob=0.1, num_hidden_layers=1)
            if loss is None:
                settings = changes | more
                return tiny_trainers.trainer_in(
                    folder, examples, tokenizer, model=model, **settings
                )
            return tiny_trainers.Trainer(
                model,
                tiny_trainers.arguments(folder, **changes),
                train_dataset=windows,
                compute_loss_func=loss,
            )

        yield build


def own_loss(number: int) -> Callable[..., Any]:
    """A loss function that is another for every number."""

    def loss(logits: Any, batch: dict[str, Any]) -> Any:
        scores = jax.nn.log_softmax(logits.start)
        return -scores[:, 0] * (1 + number)

    return loss


def main() -> None:
    """Run the three series."""
    options = soak_run.parser(__doc__, series=3)
    options.add_argument("--trainings", type=int, default=50)
    options.add_argument("--evaluations", type=int, default=1000)
    options = options.parse_args()
    jax.monitoring.register_event_duration_secs_listener(_count)
    begin, share = time.monotonic(), 60 * options.minutes / options.series
    with trainers() as build:
        evaluated = build()
        series = [
            ("equal trainings", (build().train for _ in range(options.trainings)), 1.0, 10),
            (
                "trainings with other losses",
                (build(own_loss(n)).train for n in range(options.trainings)),
                1.0,
                programs.CACHE_SIZE + 4,
            ),
            ("evaluations", (evaluated.evaluate for _ in range(options.evaluations)), 0.02, 100),
        ][: options.series]
        flat = []
        for number, (name, calls, most, warm) in enumerate(series, 1):
            flat.append(watch(name, calls, begin + number * share, most, warm))
    print(
        f"{flat.count(True)} of {len(flat)} series flat, {flat.count(False)} grew, "
        f"{flat.count(None)} too short to tell; {memory():.0f} MB at the end"
    )
    sys.exit(1 if False in flat else 0)


if __name__ == "__main__":
    main()
