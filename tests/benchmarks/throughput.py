"""Compare training and evaluation on the CPU with Hugging Face: windows per second.

    export QA_FLAX_SHARED=DIR
    python tests/benchmarks/throughput.py [--turns 5] [--scores]

The windows have 384 tokens with a stride of 128; training takes 16 in a batch, evaluation 8. Each
side has a process of its own, started with the same environment. They measure in turns, and the
others wait meanwhile, so that other load on the machine slows down all.

Training: each side trains one epoch on the first `--train_windows` windows of the data, in as many
parts as there are turns. Its speed is that of whole updates, and it is compared over the epoch: a
side that groups windows by length trains on the longest in its first turn. A side of qa_flax has
trained the same epoch once before, so that every batch shape is compiled; that training is not
counted. With `--scores` the trained models then answer the questions of the evaluation.

Evaluation: from the windows of the last questions of the data to EM and F1, a part of the questions
in each turn, the same for all sides. The model is untrained, so the scores only show that all sides
compute the same.

- `hf` is run_qa.py as it comes: every window padded to 384 tokens, float32.
- `hf grouped` and `hf sorted` are its fastest settings in float32: windows grouped by length
  (training) or sorted (evaluation), and padded to the longest of the batch.
- `hf bf16` is the same in autocast to bfloat16. It is left out on a CPU without bfloat16.
- `qa_flax` is the trainer with its defaults, `qa_flax grouped` groups by length, and
  `qa_flax packed` puts several windows into a row.

The data must be SQuAD 1.1's: every question has an answer.
"""

import argparse
import collections
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from transformers import AutoTokenizer, EvalPrediction, TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import oracle  # pyright: ignore[reportMissingImports]

SETTINGS = {
    "max_seq_length": 384,
    "doc_stride": 128,
    "train_batch": 16,
    "eval_batch": 8,
    "learning_rate": 1e-4,
    "seed": 42,
}
SIDES = {
    "train": ("hf", "hf grouped", "hf bf16", "qa_flax", "qa_flax grouped", "qa_flax packed"),
    "eval": ("hf", "hf sorted", "hf bf16", "qa_flax", "qa_flax packed"),
}
BEST = {"train": "hf grouped", "eval": "hf sorted"}
CPU_FEATURES = ("avx2", "avx512", "bf16", "vnni", "amx")


def main() -> None:
    shared = Path(os.environ.get("QA_FLAX_SHARED", ""))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=str(shared / "models/all-MiniLM-L6-v2"))
    parser.add_argument("--data", default=str(shared / "data/squadshifts/reddit_v1.0.json"))
    parser.add_argument("--train_windows", type=int, default=512)
    parser.add_argument("--eval_windows", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=list(SIDES))
    names = list(dict.fromkeys(name for sides in SIDES.values() for name in sides))
    parser.add_argument("--sides", nargs="+", choices=names, default=names)
    parser.add_argument("--without_packing", action="store_true")
    parser.add_argument("--scores", action="store_true", help="score the trained models")
    parser.add_argument("--job", nargs=4, help="run a side of qa_flax in this process")
    args = parser.parse_args()
    if args.job:
        run_job(*args.job)
        return
    print(f"CPU: {describe_cpu()}", flush=True)
    with tempfile.TemporaryDirectory() as working:
        folder, file = make_start(args.model, Path(working)), Path(working, "windows.json")
        make_windows(args, folder, file)
        for stage in SIDES if args.only is None else [args.only]:
            wanted = [name for name in SIDES[stage] if name in args.sides]
            if args.without_packing:
                wanted = [name for name in wanted if "packed" not in name]
            results, scores = measure(stage, wanted, folder, file, args)
            print_table(stage, results, scores)


def make_start(model: str, working: Path) -> Path:
    """Save the checkpoint with a new span head, so that all sides start with the same head."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from qa_flax import AutoModelForQuestionAnswering

    folder = working / "start"
    start = AutoModelForQuestionAnswering.from_pretrained(model, seed=SETTINGS["seed"])
    start.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def make_windows(args: argparse.Namespace, folder: Path, file: Path) -> None:
    """Write settings, questions and Hugging Face's windows, without padding, for all sides."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {name: SETTINGS[name] for name in ("max_seq_length", "doc_stride")}
    rows = oracle.nested_to_rows(args.data)
    # A question has at least one window. The two sets are far apart, so they share no context.
    train_rows, rows = rows[: args.train_windows], rows[args.train_windows :][-args.eval_windows :]
    train = oracle.prepare_plain(
        train_rows, tokenizer, labels=True, label_bug=True, padding=False, **sizes
    )
    train = {name: values[: args.train_windows] for name, values in train.items()}
    windows = oracle.prepare_plain(rows, tokenizer, padding=False, **sizes)
    counts = collections.Counter(windows["example_id"])
    while counts.total() > args.eval_windows:
        del counts[rows.pop()["id"]]
    parts = [rows[turn :: args.turns] for turn in range(args.turns)]
    job = {
        "settings": SETTINGS | {"turns": args.turns},
        "train_rows": train_rows,
        "train": train,
        "eval": [{"rows": part, "windows": windows_of(part, windows)} for part in parts],
    }
    file.write_text(json.dumps(job), "utf-8")
    fill = [sum(map(len, c["input_ids"])) / len(c["input_ids"]) for c in (train, windows)]
    print(
        f"{len(train['input_ids']):,} windows to train on, of {fill[0]:.0f} tokens on average; "
        f"{counts.total():,} to evaluate on, of {fill[1]:.0f} tokens, from {len(rows):,} questions",
        flush=True,
    )


def windows_of(rows: list[dict], windows: dict[str, list]) -> dict[str, list]:
    """The windows of some questions."""
    ids = {row["id"] for row in rows}
    kept = [n for n, example_id in enumerate(windows["example_id"]) if example_id in ids]
    return {name: [values[n] for n in kept] for name, values in windows.items()}


def measure(
    stage: str, names: list[str], folder: Path, file: Path, args: argparse.Namespace
) -> tuple[dict[str, list[dict]], dict[str, dict]]:
    """Run the sides in turns; return the results of each side's turns, and its scores."""
    sides: list[Side] = []
    scores = {}
    try:
        for name in names:
            side = Side(stage, name, folder, file)
            sides.append(side)
            print(f"{stage}, {name}: {side.skip or side.stack}", flush=True)
        sides = [side for side in sides if side.skip is None]
        for side in sides:
            side.ask("warm")
        for turn in range(args.turns):
            # Every other turn backwards, so that no side is always after the same one.
            for side in sides if turn % 2 == 0 else reversed(sides):
                side.results.append(side.ask("turn"))
            speeds = (f"{side.name} {rate(side.results[-1]):.2f}" for side in sides)
            print(f"{stage}, turn {turn + 1}: {', '.join(speeds)}", flush=True)
        if stage == "train" and args.scores:
            scores = {side.name: mean_scores(side.ask("scores")) for side in sides}
    finally:
        for side in sides:
            side.close()
    for side in sides:
        if compiled := sum(result.get("compiled", 0) for result in side.results):
            print(f"{side.name} COMPILED {compiled} programs while it was timed: it is faster")
    if stage == "eval":
        scores = {side.name: mean_scores(side.results) for side in sides}
    return {side.name: side.results for side in sides}, scores


class Side:
    """The process of a side."""

    def __init__(self, stage: str, name: str, folder: Path, file: Path):
        self.name, self.results = name, []
        program = [__file__, "--job"]
        if name.startswith("hf"):
            program = [str(Path(__file__).with_name("throughput_torch.py"))]
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        offline = {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, *program, stage, name, str(folder), str(file)],
            env=os.environ | offline | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ready = self._reply()
        self.stack, self.skip = ready["stack"], ready["skip"]

    def ask(self, command: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self._reply()

    def close(self) -> None:
        self.process.kill()  # after an error it may be in the middle of an epoch
        self.process.wait()

    def _reply(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)


def rate(result: dict[str, Any], seconds: str = "seconds") -> float:
    return result["windows"] / result[seconds]


def total(results: list[dict[str, Any]]) -> dict[str, float]:
    return {name: sum(result[name] for result in results) for name in ("windows", "seconds")}


def mean_scores(results: list[dict[str, Any]]) -> dict[str, float]:
    """The scores of all questions, from those of each part."""
    total = sum(result["questions"] for result in results)
    return {
        name: sum(result[name] * result["questions"] for result in results) / total
        for name in ("exact_match", "f1")
    }


def print_table(stage: str, sides: dict[str, list[dict]], scores: dict[str, dict]) -> None:
    medians = {name: median(map(rate, results)) for name, results in sides.items()}
    of_all = {name: rate(total(results)) for name, results in sides.items()}
    compared = of_all if stage == "train" else medians
    peers = ["hf", BEST[stage]]
    columns = ["windows/s, median", "min-max", "all turns", *(f"to {peer}" for peer in peers)]
    if stage == "eval":
        columns.append("forward passes alone")
    if scores:
        columns += ["EM", "F1"]
    print(f"\n| {'training' if stage == 'train' else 'evaluation'} | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name, results in sides.items():
        rates = [rate(result) for result in results]
        range_ = f"{min(rates):.2f}-{max(rates):.2f}"
        values = [f"{medians[name]:.2f}", range_, f"{of_all[name]:.2f}"]
        for peer in peers:
            values.append(f"{compared[name] / compared[peer]:.2f}x" if peer in compared else "")
        if stage == "eval":
            values.append(f"{median(rate(result, 'forward') for result in results):.2f}")
        if scores:
            values += [f"{scores[name][key]:.2f}" for key in ("exact_match", "f1")]
        print(f"| {name} | {' | '.join(values)} |")
    print(flush=True)


def describe_cpu() -> str:
    """The model of the CPU, and which vector and matrix instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [f for f in info.get("flags", "").split() if any(part in f for part in CPU_FEATURES)]
    return f"{info.get('model name')}, {os.cpu_count()} cores, flags {' '.join(flags) or 'unknown'}"


# ---- a side of qa_flax, in its own process -------------------------------------------------------


def run_job(stage: str, side: str, folder: str, file: str) -> None:
    """Answer each line of stdin with one of JSON, as `throughput_torch.py` does."""
    channel = Channel()
    import jax

    own = Own(stage, side, folder, json.loads(Path(file).read_text("utf-8")), channel)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    stack = f"jax {jax.__version__}, {jax.device_count()} device(s), {cpus} threads"
    channel.reply({"stack": stack, "skip": None})
    turn = 0
    while command := channel.command():
        if command == "warm":
            own.warm_up()
        elif command == "scores":
            channel.reply([own.evaluate(part) for part in own.parts])
        elif stage == "train":
            own.train()  # it answers this and the next turns
        else:
            channel.reply(own.evaluate(own.parts[turn % len(own.parts)]))
            turn += 1


class Channel:
    """Commands from stdin and replies to stdout. Trainers print too, which goes nowhere."""

    def __init__(self):
        self._replies, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115

    def command(self) -> str:
        """Wait for the next command; "" at the end."""
        return sys.stdin.readline().strip()

    def reply(self, value: Any) -> None:
        print(json.dumps(value), file=self._replies, flush=True)


class Own:
    """The trainer of qa_flax, with the windows that it trains on and is evaluated on."""

    def __init__(self, stage: str, side: str, folder: str, job: dict, channel: Channel):
        import qa_flax

        self._stage, self._channel = stage, channel
        settings = job["settings"]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        sizes = settings["max_seq_length"], settings["doc_stride"]
        train = qa_flax.prepare_train_features(
            qa_flax.load_examples(job["train_rows"]), tokenizer, *sizes, disable_tqdm=True
        ).select(range(len(job["train"]["input_ids"])))
        check_windows(train, job["train"])
        self.parts = []
        for part in job["eval"]:
            examples = qa_flax.load_examples(part["rows"])
            windows = qa_flax.prepare_validation_features(
                examples, tokenizer, *sizes, disable_tqdm=True
            )
            check_windows(windows, part["windows"])
            self.parts.append((examples, windows))
        own: dict[str, Any] = {}
        if "grouped" in side:
            own["train_sampling_strategy"] = "group_by_length"
        if "packed" in side:
            # The number of windows in an update is read from its number of tokens.
            own |= {"packing": True, "include_num_input_tokens_seen": "non_padding"}
        self._compiled = Compiled()
        self._parts_of_epoch = PartsOfEpoch(job, channel, self._compiled, "packed" in side)
        self._trainer = qa_flax.QuestionAnsweringTrainer(
            model_init=lambda: qa_flax.AutoModelForQuestionAnswering.from_pretrained(folder),
            args=qa_flax.TrainingArguments(
                output_dir="unused",
                num_train_epochs=1,
                per_device_train_batch_size=settings["train_batch"],
                per_device_eval_batch_size=settings["eval_batch"],
                learning_rate=settings["learning_rate"],
                seed=settings["seed"],
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                log_level="error",
                **own,
            ),
            train_dataset=train,
            post_process_function=post_process,
            compute_metrics=score,
            callbacks=[self._parts_of_epoch],
        )

    def warm_up(self) -> None:
        """Compile everything, by doing all of the work once."""
        if self._stage == "train":
            self._trainer.train()
        else:
            for part in self.parts:
                self.evaluate(part)
        self._channel.reply(None)

    def train(self) -> None:
        """Train an epoch, and answer the turn that has begun and those after it."""
        self._parts_of_epoch.is_timed = True
        self._trainer.train()
        self._parts_of_epoch.is_timed = False

    def evaluate(self, part: tuple[Any, Any]) -> dict[str, Any]:
        """Windows -> logits -> answers -> scores, with the time of it all and of the first step."""
        examples, windows = part
        compiled, began = self._compiled.count, perf_counter()
        metrics = self._trainer.evaluate(windows, examples)
        return {
            "windows": len(windows),
            "questions": len(examples),
            "seconds": perf_counter() - began,
            "forward": metrics["eval_runtime"],
            "exact_match": metrics["eval_exact_match"],
            "f1": metrics["eval_f1"],
            "compiled": self._compiled.count - compiled,
        }


def check_windows(own: Any, expected: dict[str, list]) -> None:
    """Require that the windows are those of Hugging Face.

    Raises:
        ValueError: they differ, so that the sides would not do the same work.
    """
    tokens = [
        [t for t, m in zip(*row, strict=True) if m] for row in zip(*columns(own), strict=True)
    ]
    if tokens != expected["input_ids"]:
        raise ValueError("the windows differ from Hugging Face's")


def columns(windows: Any) -> list[list[list[int]]]:
    return [windows[name][:] for name in ("input_ids", "attention_mask")]


def post_process(examples: Any, windows: Any, logits: Any) -> EvalPrediction:
    from qa_flax import postprocess_qa_predictions

    answers = postprocess_qa_predictions(examples, windows, logits)
    predictions: Any = [{"id": id_, "prediction_text": text} for id_, text in answers.items()]
    references: Any = [{"id": row["id"], "answers": row["answers"]} for row in examples]
    return EvalPrediction(predictions, references)


def score(scored: EvalPrediction) -> dict[str, float]:
    from qa_flax import squad_metric

    predictions: Any = scored.predictions
    references: Any = scored.label_ids
    return squad_metric(predictions, references)


class Compiled:
    """Counts the programs that XLA compiles in this process."""

    def __init__(self):
        import jax

        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


class PartsOfEpoch(TrainerCallback):
    """Cuts an epoch into parts. After each it replies and waits for the command to do the next.

    A part ends when the losses of all its updates are on the host, for which the trainer waits
    before it logs. The time to build the batches is counted.
    """

    def __init__(self, job: dict, channel: Channel, compiled: Compiled, is_packed: bool):
        import jax

        self.is_timed = False
        self._turns = job["settings"]["turns"]
        self._batch = job["settings"]["train_batch"] * jax.device_count()
        lengths = [len(tokens) for tokens in job["train"]["input_ids"]]
        self._windows, self._tokens = len(lengths), sum(lengths)
        self._channel, self._compiled, self._is_packed = channel, compiled, is_packed
        self._ends: list[int] = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        if self.is_timed:
            updates, turns = state.max_steps, self._turns
            if updates < turns:
                raise ValueError(f"{updates} updates cannot be cut into {turns} turns")
            self._ends = [updates * (turn + 1) // turns for turn in range(turns)]
            self._begin(0.0)

    def on_step_end(self, args, state, control, **kwargs):
        if self._ends and state.global_step == self._ends[0]:
            control.should_log = True

    def on_log(self, args, state, control, **kwargs):
        if not self._ends or state.global_step != self._ends[0]:
            return
        seconds, done = perf_counter() - self._began, self._windows_done(state)
        windows, compiled = done - self._done, self._compiled.count - self._compiled_before
        self._channel.reply({"windows": windows, "seconds": seconds, "compiled": compiled})
        del self._ends[0]
        if self._ends:
            self._channel.command()
            self._begin(done)
        elif round(done, 6) != self._windows:
            raise ValueError(f"the epoch had {done} windows instead of {self._windows}")

    def _begin(self, done: float) -> None:
        self._done, self._compiled_before = done, self._compiled.count
        self._began = perf_counter()

    def _windows_done(self, state) -> float:
        if self._is_packed:  # An update has as many windows as fit, so its share of all tokens.
            return self._windows * state.num_input_tokens_seen / self._tokens
        return min(self._windows, state.global_step * self._batch)


if __name__ == "__main__":
    main()
