"""The work of `qa-flax demo --study overfitting`: one data set, with and without regularisation.

A model tuned on questions about ships is fine-tuned on 300 questions about people, of which 5% have
a wrong answer. The baseline learns the training set by heart. The regularised run differs from it
in hyperparameters and regularisation only.
"""

import contextlib
import io
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from transformers import AutoTokenizer

from qa_flax import storage
from qa_flax.commands.demo.data import Story, squad_json
from qa_flax.commands.demo.demo import ENCODER, WINDOWS
from qa_flax.commands.demo.study_data import source_stories, target_data
from qa_flax.data.examples import load_examples
from qa_flax.data.features import prepare_train_features
from qa_flax.device import parallel
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.storage import AnyPath
from qa_flax.train.trainer import Trainer
from qa_flax.train.training_arguments import TrainingArguments

START_MODEL: dict[str, Any] = {"num_train_epochs": 1, "learning_rate": 2e-3, "warmup_steps": 30}
# The values were chosen on validation sets, of the seeds 0 to 5.
BASELINE: dict[str, Any] = {"num_train_epochs": 8, "learning_rate": 4e-3, "warmup_steps": 20}
MEANS: dict[str, dict[str, Any]] = {
    "lower rate, cosine": {"learning_rate": 1e-3, "lr_scheduler_type": "cosine"},
    "dropout 0.13": {"hidden_dropout_prob": 0.13, "attention_probs_dropout_prob": 0.13},
    "weight decay 0.1": {"weight_decay": 0.1},
    "label smoothing 0.15": {"label_smoothing_factor": 0.15},
    "layer-wise rates 0.9": {"layerwise_lr_decay": 0.9},
    "averaged weights 0.99": {"ema_decay": 0.99},
}
"""What each run of the ablation adds to the baseline. `REGULARISED` has all of them, and two more
epochs."""
REGULARISED: dict[str, Any] = (
    BASELINE
    | {"num_train_epochs": 10}
    | {k: v for means in MEANS.values() for k, v in means.items()}
)

BATCH, SOURCE_BATCH = 16, 32
SEEDS, SECONDS = 3, 465.0
"""Without a number of seeds: as many as fit into this time together with the ablation."""
EPOCHS_BETWEEN_EVALUATIONS = 2
EVAL_TRAIN_SAMPLES = 200
SETS = ("train", "validation", "test")


@dataclass(frozen=True)
class Accuracies:
    """Mean of start and end accuracy in percent, over the windows that hold an answer."""

    train: float
    validation: float
    test: float = math.nan
    """Of the third set, which only baseline and regularised run are scored on."""


def run_study(
    output_dir: str | Path, first_seed: int = 0, seeds: int | None = None
) -> dict[str, Any]:
    """Run baseline, regularised run and ablation; print the tables, and write the files.

    Args:
        output_dir: folder for the data, the models, the curves and `study.json`.
        first_seed: the first seed of the data and of the training.
        seeds: number of seeds; None: at most `SEEDS`, as many as fit into `SECONDS`.

    Returns:
        The content of `study.json`.
    """
    clock = _Clock(math.inf if seeds else SECONDS)
    print("qa-flax demo: a study of overfitting; it takes up to 8 minutes on two CPU cores\n")
    study = _Study(storage.path(output_dir))
    study.tune_start_model()
    runs: dict[str, list[Accuracies]] = {"baseline": [], "regularised": []}
    done: list[int] = []
    for seed in range(first_seed, first_seed + (seeds or SEEDS)):
        if done and not clock.has_time_for(seeds=1, ablations=len(MEANS)):
            print(f"  {len(done)} of {SEEDS} seeds fit into the time of the study")
            break
        with clock.measured("seed"):
            study.use_seed(seed)
            for name, settings in (("baseline", BASELINE), ("regularised", REGULARISED)):
                runs[name].append(study.run(name, settings, has_curves=not done))
        done.append(seed)
    _print_table(runs, done)
    study.use_seed(first_seed)
    print(
        f"\nEach means alone, on top of the baseline (seed {first_seed})\n"
        f"{'':26}training  validation   gain",
        flush=True,
    )
    _print_row("none", runs["baseline"][0], runs["baseline"][0])
    ablation: dict[str, Accuracies] = {}
    for name, settings in MEANS.items():
        if ablation and not clock.has_time_for(seeds=0, ablations=1):
            print(f"  {name:24} left out, for lack of time")
            continue
        with clock.measured("ablation"):
            ablation[name] = study.run(name, BASELINE | settings, is_ablation=True)
        _print_row(name, ablation[name], runs["baseline"][0])
    _print_row("all of them", runs["regularised"][0], runs["baseline"][0])
    content = {
        "seeds": done,
        **{name: _by_set(results) for name, results in runs.items()},
        "ablation": {
            name: {"train_accuracy": result.train, "validation_accuracy": result.validation}
            for name, result in ablation.items()
        },
        "seconds": round(clock.seconds(), 1),
    }
    study.write_results(content)
    return content


class _Clock:
    """Measures the parts of the study, and decides whether there is time for more."""

    def __init__(self, limit: float):
        self._started, self._limit = time.perf_counter(), limit
        self._latest: dict[str, float] = {}
        self._seeds = 0

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    @contextlib.contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Measure a part, called `seed` or `ablation`; the first one includes compiling."""
        started = time.perf_counter()
        yield
        self._latest[part] = time.perf_counter() - started
        self._seeds += part == "seed"

    def has_time_for(self, seeds: int, ablations: int) -> bool:
        """Whether so many parts fit, if they take as long as the latest of their kind.

        The first seed also compiles and draws curves, which the next ones do not: it counts three
        quarters. A run of the ablation, before there is one, counts a little less than half a seed.
        """
        seed = self._latest["seed"] * (0.75 if self._seeds == 1 else 1.0)
        ablation = self._latest.get("ablation", 0.45 * seed)
        return self.seconds() + seeds * seed + ablations * ablation <= self._limit


class _Study:
    """The start model, the windows of one seed, and the trainings on them."""

    def __init__(self, output: AnyPath):
        self._output, self._start = output, output / "start"
        self._tokenizer = AutoTokenizer.from_pretrained(ENCODER)
        self._seed, self._folder = 0, output
        self._windows: dict[str, Any] = {}

    def tune_start_model(self) -> None:
        """Tune the demo's encoder on the source stories, and save it in `start/`."""
        stories = source_stories(0)
        file = self._write(self._output, "source", stories)
        print(
            f"  start model   BERT with 4 layers, tuned on {_count(stories):,} questions about "
            f"ships, on {parallel.describe_cores()}",
            flush=True,
        )
        trainer = self._trainer(
            ENCODER, self._prepare(file), self._start, SOURCE_BATCH, START_MODEL
        )
        _train(trainer)
        trainer.save_model()

    def use_seed(self, seed: int) -> None:
        """Generate the data of a seed, and write and load its files."""
        data = target_data(seed)
        is_first = self._folder == self._output
        self._seed, self._folder = seed, self._output / f"seed-{seed}"
        stories = {"train": data.train, "validation": data.validation, "test": data.test}
        for name, items in stories.items():
            self._windows[name] = self._prepare(self._write(self._folder, name, items))
        if is_first:
            print(
                f"  training      {_count(data.train)} questions about people, {data.wrong} with a "
                f"wrong answer\n  validation    {_count(data.validation)} questions; third set "
                f"{_count(data.test)}; other stories, all answers right\n\n"
                "Accuracy: percent of start and end tokens that are right\n"
                f"{'':26}training  validation  third set",
                flush=True,
            )

    def run(
        self,
        name: str,
        settings: dict[str, Any],
        *,
        has_curves: bool = False,
        is_ablation: bool = False,
    ) -> Accuracies:
        """Fine-tune the start model with these arguments.

        Args:
            name: of the run, and of its folder.
            settings: training arguments.
            has_curves: whether to evaluate in between, and to draw the curves.
            is_ablation: do not score the third set, print the result or save the model.
        """
        started = time.perf_counter()
        epochs = EPOCHS_BETWEEN_EVALUATIONS
        evaluations = {
            "eval_strategy": "steps",
            "eval_steps": epochs * -(-len(self._windows["train"]) // BATCH),
            "logging_strategy": "steps",
        }
        folder = self._folder / name.replace(" ", "-")
        trainer = self._trainer(
            self._start,
            self._windows["train"],
            folder,
            BATCH,
            settings | (evaluations if has_curves else {}),
        )
        _train(trainer)
        sets = SETS[:2] if is_ablation else SETS
        accuracies = Accuracies(*(self._accuracy(trainer, data) for data in sets))
        if has_curves:
            trainer.save_model()
            trainer.save_state()
        if not is_ablation:
            seconds = time.perf_counter() - started
            print(f"  seed {self._seed}  {name:15}{_columns(accuracies)}   ({seconds:.0f} s)")
        return accuracies

    def write_results(self, content: dict[str, Any]) -> None:
        """Write `study.json`, and print what the folder contains."""
        output, folder = self._output, self._output / f"seed-{content['seeds'][0]}"
        storage.write_text(output / "study.json", storage.json_text(content, indent=2) + "\n")
        files = [
            ("study.json", "the accuracies of all seeds and of the ablation"),
            ("start/", "the start model, for --model_name_or_path"),
            (f"{folder.name}/*.json", "the data of the first seed in SQuAD format"),
            (f"{folder.name}/baseline/", "its model, trainer_state.json and learning_curves.svg"),
            (f"{folder.name}/regularised/", "the same of the regularised run"),
        ]
        print(f"\nFiles in {output}/")
        for names, meaning in files:
            print(f"  {names:24} {meaning}")
        print(
            "\nThe regularised run as a command (for your own data, change the first two lines):\n"
            f"  qa-flax run --model_name_or_path {output}/start --do_train --do_eval \\\n"
            f"    --train_file {folder}/train.json --validation_file {folder}/validation.json \\\n"
            f"    {_flags(REGULARISED)} \\\n"
            f"    --per_device_train_batch_size {BATCH} --eval_strategy epoch "
            f"--eval_train_samples {EVAL_TRAIN_SAMPLES} \\\n"
            f"    --max_seq_length {WINDOWS['max_seq_length']} "
            f"--doc_stride {WINDOWS['doc_stride']} --output_dir {output}/own\n"
            f"\nDone in {content['seconds']:.0f} s."
        )

    # ---- data and trainer ------------------------------------------------------------------------

    def _write(self, folder: AnyPath, name: str, stories: list[Story]) -> AnyPath:
        file = folder / f"{name}.json"
        storage.write_text(file, json.dumps(squad_json(stories, name), indent=1))
        return file

    def _prepare(self, file: AnyPath) -> Any:
        examples = load_examples(file, misaligned="refuse")
        return prepare_train_features(examples, self._tokenizer, **WINDOWS)

    def _trainer(
        self, start: Any, windows: Any, folder: AnyPath, batch: int, settings: dict[str, Any]
    ) -> Trainer:
        common: dict[str, Any] = {
            "output_dir": str(folder),
            "seed": self._seed,
            "per_device_train_batch_size": _per_core(batch),
            "per_device_eval_batch_size": _per_core(8 * batch),
            "eval_train_samples": EVAL_TRAIN_SAMPLES,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        args = TrainingArguments(**(common | settings))
        with _quiet():
            model = AutoModelForQuestionAnswering.from_pretrained(start, seed=self._seed)
            return Trainer(
                model=model,
                args=args,
                train_dataset=windows,
                eval_dataset=self._windows.get("validation"),
                processing_class=self._tokenizer,
            )

    def _accuracy(self, trainer: Trainer, name: str) -> float:
        with _quiet():
            metrics = trainer.evaluate(self._windows[name], metric_key_prefix=name)
        return mean(metrics[f"{name}_accuracy_{side}"] for side in ("start", "end"))


def _train(trainer: Trainer) -> None:
    with _quiet():
        trainer.train()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Print neither the trainer's logs nor its warnings: the study prints its own lines.

    The warnings are those that the study provokes: a new span head, and a gap that opens.
    """
    logger = logging.getLogger("qa_flax")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _per_core(batch: int) -> int:
    return max(1, batch // parallel.core_count())


# ---- tables -----------------------------------------------------------------------------------


def _count(stories: Iterable[Story]) -> int:
    return sum(len(story.questions) for story in stories)


def _by_set(results: Sequence[Accuracies]) -> dict[str, list[float]]:
    return {f"{name}_accuracy": [getattr(r, name) for r in results] for name in SETS}


def _columns(result: Accuracies) -> str:
    return f"{result.train:10.1f}{result.validation:12.1f}{result.test:11.1f}"


def _print_table(runs: dict[str, list[Accuracies]], seeds: Sequence[int]) -> None:
    print(f"\nMean and deviation over the seeds {', '.join(map(str, seeds))}")
    print(f"  {'':14}{'training':>14}{'validation':>14}{'third set':>14}")
    for name, results in runs.items():
        columns = [[getattr(result, key) for result in results] for key in SETS]
        cells = [f"{mean(column):.1f} ±{pstdev(column):.1f}" for column in columns]
        print(f"  {name:14}" + "".join(f"{cell:>14}" for cell in cells))


def _print_row(name: str, result: Accuracies, baseline: Accuracies) -> None:
    gain = result.validation - baseline.validation
    print(f"  {name:24}{result.train:10.1f}{result.validation:12.1f}{gain:+8.1f}", flush=True)


def _flags(settings: dict[str, Any]) -> str:
    """The settings as arguments of `qa-flax run`, three on a line."""
    flags = [f"--{name} {value}" for name, value in settings.items()]
    lines = [" ".join(flags[n : n + 3]) for n in range(0, len(flags), 3)]
    return " \\\n    ".join(lines)
