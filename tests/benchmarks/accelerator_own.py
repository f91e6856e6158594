"""The part of `accelerator.py` that measures qa_flax, in a process of its own.

It checks that packed logits are those of windows in rows of their own, times evaluations and
updates of the trainer, records a trace of each, and prints a line of JSON for each result.

    python tests/benchmarks/accelerator_own.py JOB
"""

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np
from accelerator_data import UPDATES, Job, arrays_of, config_of, lengths_of, row
from transformers import PrinterCallback, TrainerCallback

from qa_flax import AutoModelForQuestionAnswering, Trainer, TrainingArguments
from qa_flax.data.batches import eval_batches, scatter
from qa_flax.data.packing import packed_eval_batches
from qa_flax.data.windows import Features
from qa_flax.device import parallel
from qa_flax.device.memory import abstract_state, abstract_weights
from qa_flax.device.programs import eval_program, process_eval_program, train_program
from qa_flax.device.step import weights_of
from qa_flax.device.traces import Summary, start_trace, stop_trace
from qa_flax.train.eval_plan import eval_plan
from qa_flax.train.plan import optimizer_of, pads_tables
from qa_flax.train.prediction import predict_windows
from qa_flax.train.train_data import WindowData, wants_packing

TOLERANCE = 0.1
"""How far packed logits may be from unpacked ones in bfloat16, relative to how far they are if each
row is computed as one window, which is computed, too. Rounding gives 0.03 with BERT-base and
BERT-large on a CPU; an attention that ignores the segments gives 0.74 and 0.40."""
CHECK_RANGE = {"base": 0.05, "large": 0.05, "tiny": 0.17}
"""The `initializer_range` of the check: narrower models need larger weights for sharp attention."""
LEAST_FALL = 0.1
"""By how much the loss of training must fall, from 6 for random answers."""
LEAST_FILL = 0.8
"""Of packed rows; rows of one window are half full."""
CHECKED = 16
"""Windows on each core whose logits are compared."""
WARM, TRACED = 8, 8
"""Updates before those that are timed, and updates in the trace."""


def main(text: str) -> None:
    job, channel = Job(**json.loads(text)), Channel()
    try:
        channel.reply(
            {
                "kind": "device",
                "device": jax.devices()[0].device_kind,
                "count": jax.device_count(),
                "backend": jax.default_backend(),
                "jax": jax.__version__,
            }
        )
        Own(job, channel).measure()
    except Exception as error:  # too little memory, say; other rows are measured all the same
        traceback.print_exc()
        reason = str(error).splitlines() or [""]
        channel.reply({"kind": "failed", "reason": f"{type(error).__name__}: {reason[0][:200]}"})
        sys.exit(1)


class Channel:
    """Results on stdout; what the trainer prints goes to stderr."""

    def __init__(self):
        self._replies, sys.stdout = sys.stdout, sys.stderr

    def reply(self, result: dict[str, Any]) -> None:
        print(json.dumps(result), file=self._replies, flush=True)


class Own:
    """A model with random weights, and windows like SQuAD's."""

    def __init__(self, job: Job, channel: Channel):
        self._job, self._channel, self._began = job, channel, time.perf_counter()
        self._is_packed = "packed" in job.side
        self._batches = job.batches(jax.default_backend())
        self._per_core = {
            stage: self._batches.windows(stage, is_full=self._is_packed)
            for stage in ("training", "evaluation")
        }
        self._devices = jax.devices()[0].device_kind, jax.device_count()
        count = UPDATES * jax.device_count() * self._per_core["training"]
        self._windows = windows_of(job.model, count)
        self._compiled = Compiled()

    def measure(self) -> None:
        if self._is_packed:
            self._check_packed()
        model = AutoModelForQuestionAnswering.from_config(config_of(self._job.model), seed=0)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(model, Path(folder))
            # The evaluation comes first, because the memory's peak is never reset.
            self._evaluate(trainer, Path(folder))
            self._train(trainer)

    def _trainer(self, model: Any, folder: Path) -> Trainer:
        self._phases = Phases(self._job.seconds, self._compiled, folder)
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                str(folder),
                num_train_epochs=10_000,  # until the phases end
                per_device_train_batch_size=self._per_core["training"],
                per_device_eval_batch_size=self._per_core["evaluation"],
                learning_rate=1e-3 if self._job.model == "tiny" else 1e-4,
                bf16=True,
                bf16_full_eval=True,
                packing=self._is_packed,
                include_num_input_tokens_seen="non_padding",  # how many windows an update had
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                log_level="error",
            ),
            train_dataset=self._windows,
            eval_dataset=self._windows,
            callbacks=[self._phases],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    # ---- the check -------------------------------------------------------------------------------

    def _check_packed(self) -> None:
        """Compare logits of packed windows with those of windows in rows of their own.

        Raises:
            ValueError: they differ by more than rounding.
        """
        self._say("check of packed logits")
        # With BERT's weights of 0.02 all tokens get nearly the same attention, and a mistake in it
        # would be lost in the rounding.
        config = config_of(self._job.model, initializer_range=CHECK_RANGE[self._job.model])
        model = AutoModelForQuestionAnswering.from_config(config, seed=0)
        windows = windows_of(self._job.model, CHECKED * jax.device_count())
        found = packed_differences(model, windows)
        self._channel.reply({"kind": "check", "model": self._job.model, **found})
        if not found["packed"] <= TOLERANCE * found["mixed"]:  # also of NaN
            raise ValueError(
                f"packed logits differ from unpacked ones by {found['packed']:.4f}, and by "
                f"{found['mixed']:.4f} if each row is one window; the first must be at most "
                f"{TOLERANCE} of the second"
            )

    # ---- evaluation ------------------------------------------------------------------------------

    def _evaluate(self, trainer: Trainer, folder: Path) -> None:
        """Time evaluations of all windows: from windows to logits and loss on the host."""
        self._say("evaluation")
        metrics = trainer.evaluate()  # compiles
        loss, fill = metrics["eval_loss"], metrics["eval_fill"]
        if not np.isfinite(loss):
            raise ValueError(f"the evaluation's loss is {loss}")
        self._require_packed(fill)
        compiled, done, began = self._compiled.count, 0, time.perf_counter()
        while time.perf_counter() - began < self._job.seconds:
            trainer.evaluate()
            done += len(self._windows)
        seconds = time.perf_counter() - began
        compiled = self._compiled.count - compiled
        start_trace(folder)
        trainer.evaluate()
        summary = stop_trace(folder)
        memory = peak_memory(lambda: compiled_eval(trainer, self._windows))
        further = {"loss": loss, "fill": fill, "compiled": compiled, **memory}
        self._reply("evaluation", done, seconds, summary, further)

    # ---- training --------------------------------------------------------------------------------

    def _train(self, trainer: Trainer) -> None:
        """Time updates, from windows to weights, and check that the loss falls.

        Raises:
            ValueError: it does not.
        """
        self._say("training")
        fill = trainer.train().metrics["train_fill"]
        self._require_packed(fill)
        phases = self._phases
        first, last = phases.losses[0], phases.losses[-1]
        if not last < first - LEAST_FALL:  # also of NaN
            raise ValueError(f"the training's loss was {first:.3f} at first, {last:.3f} at last")
        mean = lengths_of(len(self._windows)).mean()
        memory = peak_memory(lambda: compiled_train(trainer, self._windows))
        further = {"losses": [first, last], "fill": fill, "updates": phases.updates, **memory}
        windows = phases.tokens / mean
        self._reply("training", windows, phases.seconds, phases.summary, further)

    def _require_packed(self, fill: float) -> None:
        """Raise ValueError if rows should be packed and are not: `fill` is their part of tokens."""
        if self._is_packed and fill < LEAST_FILL:
            raise ValueError(f"packing had no effect: {fill:.0%} of the positions hold tokens")

    def _say(self, stage: str) -> None:
        after = f"{time.perf_counter() - self._began:.0f} s"
        print(f"  {stage}, after {after}", file=sys.stderr, flush=True)

    def _reply(
        self, stage: str, windows: float, seconds: float, summary: Summary | None, further: dict
    ) -> None:
        found = row(self._job, stage, windows, seconds, self._devices, **further)
        found |= {"windows_at_once": self._per_core[stage], "kind": "row"}
        if summary is not None:
            longest = summary.gaps[0].seconds if summary.gaps else 0.0
            found |= {"busy": summary.busy, "longest_gap": longest}
        self._channel.reply(found)


class Compiled:
    """Counts the programs that XLA compiles in this process."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


class Mark(NamedTuple):
    """Where a phase began."""

    update: int
    tokens: int
    compiled: int
    seconds: float


class Phases(TrainerCallback):
    """Cuts a training into updates that warm up, are timed, and are recorded.

    A phase ends when the losses of its updates are on the host, for which the trainer waits before
    it logs. Updates during which a program was compiled are timed again.
    """

    def __init__(self, seconds: float, compiled: Compiled, folder: Path):
        self._least, self._counter, self._folder = seconds, compiled, folder
        self._phase, self._mark = "first", Mark(0, 0, 0, 0.0)
        self.losses: list[float] = []
        self.tokens, self.seconds, self.updates = 0, 0.0, 0
        self.summary: Summary | None = None

    def on_step_end(self, args, state, control, **kwargs):
        updates = state.global_step - self._mark.update
        if self._phase == "timed":
            control.should_log = time.perf_counter() - self._mark.seconds >= self._least
        else:
            control.should_log = (
                updates >= {"first": 1, "warm": WARM, "traced": TRACED}[self._phase]
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None or "loss" not in logs:
            return
        now, mark = self._now(state), self._mark
        self.losses.append(logs["loss"])
        if self._phase == "timed" and now.compiled == mark.compiled:
            self.updates, self.tokens = now.update - mark.update, now.tokens - mark.tokens
            self.seconds = now.seconds - mark.seconds
            start_trace(self._folder)
            self._phase = "traced"
        elif self._phase == "traced":
            self.summary = stop_trace(self._folder)
            control.should_training_stop = True
        else:
            self._phase = "warm" if self._phase == "first" else "timed"
        self._mark = self._now(state)

    def _now(self, state: Any) -> Mark:
        tokens, compiled = state.num_input_tokens_seen, self._counter.count
        return Mark(state.global_step, tokens, compiled, time.perf_counter())


# ---- windows and logits --------------------------------------------------------------------------


def windows_of(model: str, count: int) -> Features:
    arrays: dict[str, Any] = arrays_of(model, count)
    return Features([str(n) for n in range(count)], **arrays)


def packed_differences(model: Any, windows: Features) -> dict[str, float]:
    """How far the logits of packed windows are from those of windows in rows of their own.

    Returns:
        `packed`: of the packed rows; `mixed`: of the same rows as if each were one window. Both are
        the root of the mean square, relative to that of the logits.
    """
    step = process_eval_program(model.graphdef("bfloat16"))
    weights = parallel.put_replicas(weights_of(model))
    per_core = -(-len(windows) // parallel.process_core_count())
    alone: Any = predict_windows(step, weights, windows, per_core, None, lambda: None).logits
    is_token = windows.attention_mask > 0
    logits = alone[0][is_token]
    return {
        name: rms(packed_starts(step, weights, windows, per_core, is_mixed)[is_token] - logits)
        / rms(logits)
        for name, is_mixed in (("packed", False), ("mixed", True))
    }


def packed_starts(
    step: Any, weights: Any, windows: Features, per_core: int, is_mixed: bool
) -> np.ndarray:
    """Start logits [N, L] of packed windows; `is_mixed`: each row as if it were one window."""
    plan, cores = eval_plan(windows, per_core, packs=True), parallel.process_core_count()
    assert plan.packed is not None
    starts = np.zeros((len(windows), windows.padded_length), np.float32)
    for batch in packed_eval_batches(windows, *plan.packed, cores, *plan.shape):
        arrays = dict(batch.arrays)
        if is_mixed:
            arrays["segment_ids"] = np.minimum(arrays["segment_ids"], 1)
        output = parallel.gather(step(weights, parallel.put(arrays)))
        scatter(batch, output.logits.start, starts, 0.0)
    return starts


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


# ---- memory --------------------------------------------------------------------------------------


def peak_memory(compiled: Callable[[], Any]) -> dict[str, Any]:
    """The most bytes of a core's memory that were in use, as far as the device counts them.

    Args:
        compiled: returns the step, whose plan is taken if the device does not count.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return {"peak_bytes": stats["peak_bytes_in_use"], "memory_from": "device"}
    plan = compiled().memory_analysis()
    size = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return {"peak_bytes": size - plan.alias_size_in_bytes, "memory_from": "compiler"}


def compiled_eval(trainer: Trainer, windows: Features) -> Any:
    """The step of the widest batch; it is in the cache of programs."""
    args, model, cores = trainer.args, trainer.model, parallel.process_core_count()
    per_core = args.per_device_eval_batch_size
    plan = eval_plan(windows, per_core, wants_packing(args))
    if plan.packed is None:
        batches = eval_batches(windows, cores, per_core, None, plan.widths)
    else:
        batches = packed_eval_batches(windows, *plan.packed, cores, *plan.shape)
    step = eval_program(model.graphdef("bfloat16"), None)
    weights = abstract_weights(model, False, is_padded=parallel.has_tiles())
    return step.compile(on_cores(weights), shapes_of(next(batches).arrays))


def compiled_train(trainer: Trainer, windows: Features) -> Any:
    """The step of the largest batch; it is in the cache of programs."""
    args, model = trainer.args, trainer.model
    optimizer = optimizer_of(args, model)
    state = abstract_state(model, optimizer, False, is_padded=pads_tables(args))
    batches = WindowData(windows).shapes(args, 0, range(UPDATES))
    key = parallel.put_key(parallel.run_key(args.seed))
    rate = jax.ShapeDtypeStruct((), np.float32)
    largest = max(batches, key=lambda batch: batch["input_ids"].shape)
    step = train_program(model.graphdef("bfloat16"), optimizer, 0.0)
    return step.compile(on_cores(state), largest, on_cores(rate), key)


def on_cores(tree: Any) -> Any:
    """Shapes of arrays with an axis of the cores before their own."""
    cores = parallel.process_core_count()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((cores, *x.shape), x.dtype), tree)


def shapes_of(arrays: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}


if __name__ == "__main__":
    main(sys.argv[1])
