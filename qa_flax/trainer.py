"""The Hugging Face Trainer contract over the stages; nothing numeric here."""

import inspect
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    PrinterCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import EvalPrediction, PredictionOutput, TrainOutput, speed_metrics

from qa_flax import parallel
from qa_flax.arguments import check_training_arguments
from qa_flax.batches import batch_count, train_batches
from qa_flax.models.hf import AutoModelForQuestionAnswering
from qa_flax.optim import count_updates, make_optimizer, make_schedule
from qa_flax.prediction import predict_windows, reduction
from qa_flax.spans import Settings
from qa_flax.step import Reduction, TrainState, make_eval_step, make_train_step
from qa_flax.training import Training, TrainingProgress
from qa_flax.windows import Features, Windows

Dataset = datasets.Dataset | Windows
"""What the trainer takes as a data set: Hugging Face style columns, or this package's windows."""


class Trainer:
    """Fine-tune a question answering model on every core, and compute its logits.

    Takes the arguments of transformers' Trainer by the same names. The model is trained in place:
    after `train()`, `trainer.model` holds the new parameters.

    Args:
        model: from `AutoModelForQuestionAnswering.from_pretrained`.
        args: transformers' `TrainingArguments`; a value that cannot be honoured is refused by name.
        data_collator: accepted so that a script need not change; `batches.py` pads.
        train_dataset: windows with `start_positions` and `end_positions`.
        eval_dataset: windows to evaluate; labels are optional.
        processing_class: the tokenizer, saved beside the model. `tokenizer` is its older name.
        compute_metrics: called with an `EvalPrediction`, returns a dict.
        callbacks: `TrainerCallback` objects or classes.

    Raises:
        ValueError: an argument is missing or not supported.
    """

    def __init__(
        self,
        model: AutoModelForQuestionAnswering,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[Any], dict[str, Any]] | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
    ):
        parallel.require_one_host()
        _require_model(model)
        self.args = TrainingArguments(output_dir="trainer_output") if args is None else args
        check_training_arguments(self.args)
        self.model = model
        self.data_collator = data_collator
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.processing_class = processing_class if processing_class is not None else tokenizer
        self.compute_metrics = compute_metrics
        self.state = TrainerState(
            is_local_process_zero=parallel.is_main_host(),
            is_world_process_zero=parallel.is_main_host(),
        )
        self.control = TrainerControl()
        bar = PrinterCallback if self.args.disable_tqdm else TrainingProgress
        self.callback_handler = CallbackHandler(
            [DefaultFlowCallback, bar, *(callbacks or [])],
            self.model,
            self.processing_class,
            None,
            None,
        )
        self._device_params: Any = None  # while training: the parameters on the cores
        self._eval_steps: dict[Reduction | None, Callable] = {}
        self._graphdef, _ = nnx.split(self._computing_model())
        self._notify("on_init_end")

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The older name of `processing_class`."""
        return self.processing_class

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback, or one of the given class."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: TrainerCallback | type[TrainerCallback]):
        """Remove a callback, or the first of the given class, and return it."""
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Remove a callback, or the first of the given class."""
        self.callback_handler.remove_callback(callback)

    # ---- train -----------------------------------------------------------------------------------

    def train(self) -> TrainOutput:
        """Fine-tune for `num_train_epochs` (or `max_steps`) and return transformers' `TrainOutput`.

        Raises:
            ValueError: there is no training set, or its windows have no labels.
            FloatingPointError: the loss is not finite; the message names the step.
        """
        args, windows = self.args, self._training_windows()
        cores, per_core = parallel.core_count(), args.per_device_train_batch_size
        per_epoch, total = count_updates(
            len(windows), cores * per_core, float(args.num_train_epochs), args.max_steps
        )
        schedule, optimizer = self._schedule_and_optimizer(total)
        params = _parameters(self.model)
        step = make_train_step(self._graphdef, optimizer)
        run = Training(
            parallel.put_copies(TrainState(jnp.int32(0), params, optimizer.init(params))),
            parallel.over_cores(step, (0, 0, None), (0, None), donate=True),
            parallel.run_key(args.seed),
            lambda step: float(np.asarray(schedule(step))),
        )
        self._begin_training(total, math.ceil(total / per_epoch))
        started = time.time()
        try:
            self._device_params = run.state.params
            self._notify("on_train_begin")
            if args.eval_on_start:
                self.evaluate()
            self._run_epochs(run, windows, per_epoch)
        finally:
            # Also after an error or Ctrl-C: what was learnt so far is the caller's.
            self._device_params = None
            if (learnt := run.params()) is not None:
                self._take_over(learnt)
        rows = args.max_steps * cores * per_core if args.max_steps > 0 else None
        metrics = speed_metrics(
            "train",
            started,
            num_samples=rows or round(len(windows) * args.num_train_epochs),
            num_steps=total,
        )
        metrics["total_flos"] = self.state.total_flos
        metrics["train_loss"] = run.mean_loss()
        self.log(metrics)
        self._notify("on_train_end")
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

    def _schedule_and_optimizer(
        self, total: int
    ) -> tuple[optax.Schedule, optax.GradientTransformation]:
        args = self.args
        schedule = make_schedule(
            getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type),
            float(args.learning_rate),
            args.get_warmup_steps(total),
            total,
        )
        optimizer = make_optimizer(
            schedule,
            weight_decay=float(args.weight_decay),
            adam_beta1=float(args.adam_beta1),
            adam_beta2=float(args.adam_beta2),
            adam_epsilon=float(args.adam_epsilon),
            max_grad_norm=float(args.max_grad_norm or 0),
        )
        return schedule, optimizer

    def _training_windows(self) -> Windows:
        if self.train_dataset is None or not len(self.train_dataset):
            raise ValueError("train() needs a train_dataset with at least one window")
        windows = _as_windows(self.train_dataset)
        if windows.start_positions is None or windows.end_positions is None:
            raise ValueError(
                "the train_dataset has no start_positions and end_positions; make it with "
                "prepare_train_features(examples, tokenizer)"
            )
        return windows

    def _begin_training(self, total: int, epochs: int) -> None:
        self.state = TrainerState(
            max_steps=total,
            num_train_epochs=epochs,
            train_batch_size=self.args.per_device_train_batch_size,
            is_local_process_zero=parallel.is_main_host(),
            is_world_process_zero=parallel.is_main_host(),
        )
        self.state.compute_steps(self.args, total)
        self.control = TrainerControl()

    def _run_epochs(self, run: Training, windows: Windows, per_epoch: int) -> None:
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        cores, per_core = parallel.core_count(), args.per_device_train_batch_size
        for epoch in range(self.state.num_train_epochs):
            self._notify("on_epoch_begin")
            for batch in train_batches(
                windows, cores, per_core, seed, epoch, args.train_sampling_strategy
            ):
                self._notify("on_step_begin")
                run.start_step(batch.arrays)
                self._device_params = run.state.params
                self.state.global_step += 1
                self.state.epoch = self.state.global_step / per_epoch
                self._notify("on_step_end", **run.finished())
                self._follow_control(run)
                if self.control.should_epoch_stop or self.control.should_training_stop:
                    break
            self._notify("on_epoch_end")
            self._follow_control(run)
            if self.control.should_training_stop:
                break

    def _follow_control(self, run: Training) -> None:
        """Log, evaluate and save where a callback asked for it, in transformers' order."""
        if self.control.should_log:
            self.log(run.logs())
        if self.control.should_evaluate:
            self._note_best(self.evaluate())
        if self.control.should_save:
            self._save_checkpoint(run)

    def _take_over(self, params: Any) -> None:
        """Put the cores' parameters into the caller's model."""
        nnx.update(self.model, jax.tree.map(jnp.asarray, params))

    def _note_best(self, metrics: dict[str, Any]) -> None:
        """Remember the best value of `metric_for_best_model`; a NaN never is."""
        name = self.args.metric_for_best_model
        if name is None:
            return
        name = name if name.startswith("eval_") else f"eval_{name}"
        if name not in metrics:
            found = ", ".join(sorted(metrics))
            raise ValueError(f"metric_for_best_model: evaluation gave no {name}; it gave: {found}")
        value, best = metrics[name], self.state.best_metric
        better = best is None or (value > best if self.args.greater_is_better else value < best)
        if math.isfinite(value) and better:
            self.state.best_metric = value
            self.state.best_global_step = self.state.global_step

    def _save_checkpoint(self, run: Training) -> None:
        directory = self._output_dir() / f"checkpoint-{self.state.global_step}"
        self._take_over(run.params())
        self.save_model(directory)
        self.state.save_to_json(str(directory / "trainer_state.json"))
        self._notify("on_save")

    # ---- predict ---------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, Any]:
        """`compute_metrics` over the raw logits, and the loss if the windows have labels.

        `ignore_keys` is accepted as in transformers; these models return nothing but span logits.
        """
        output = self._loop(self._evaluation_windows(eval_dataset), metric_key_prefix)
        return self._report(self._with_raw_metrics(output, metric_key_prefix).metrics or {})

    def predict(
        self,
        test_dataset: Dataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Logits `(start, end)`, float32 [N, L] each, in the order of the data; labels; metrics."""
        output = self._loop(test_dataset, metric_key_prefix)
        output = self._with_raw_metrics(output, metric_key_prefix)
        self._notify("on_predict", output.metrics)
        return output

    def _evaluation_windows(self, given: Dataset | None) -> Dataset:
        windows = self.eval_dataset if given is None else given
        if windows is None:
            raise ValueError("evaluate() needs an eval_dataset, here or when the trainer is made")
        return windows

    def _with_raw_metrics(self, output: PredictionOutput, prefix: str) -> PredictionOutput:
        if self.compute_metrics is None:
            return output
        labels: Any = output.label_ids  # transformers' annotation forgets that there may be none
        raw = EvalPrediction(predictions=output.predictions, label_ids=labels)
        computed = _with_prefix(self.compute_metrics(raw), prefix)
        return output._replace(metrics=computed | (output.metrics or {}))

    def _report(self, metrics: dict[str, Any]) -> dict[str, Any]:
        self.log(metrics)
        self._notify("on_evaluate", metrics)
        return metrics

    def _loop(
        self, dataset: Dataset, prefix: str, candidates: Settings | None = None
    ) -> PredictionOutput:
        """The one loop of evaluation and prediction: logits or candidates, labels, loss, speed."""
        started = time.time()
        windows = _as_windows(dataset)
        cores, per_core = parallel.core_count(), self.args.per_device_eval_batch_size
        steps = batch_count(len(windows), cores, per_core)
        # The progress callback only asks for the length of what is gone through.
        counted: Any = range(steps)
        self.callback_handler.eval_dataloader = counted
        params = self._device_params
        if params is None:
            params = parallel.put_copies(_parameters(self.model))
        found = predict_windows(
            self._eval_step(candidates),
            params,
            windows,
            per_core,
            candidates,
            lambda: self._notify("on_prediction_step"),
        )
        labels, metrics = None, {}
        if found.losses is not None:
            labels = (windows.start_positions, windows.end_positions)
            metrics[f"{prefix}_loss"] = float(np.mean(found.losses, dtype=np.float64))
        metrics |= speed_metrics(prefix, started, num_samples=len(windows), num_steps=steps)
        return _output(found.logits, labels, metrics)

    def _eval_step(self, candidates: Settings | None) -> Callable:
        """The evaluation step over the cores, made once for each way to gather."""
        how = None if candidates is None else reduction(candidates)
        if how not in self._eval_steps:
            step = make_eval_step(self._graphdef, how)
            self._eval_steps[how] = parallel.over_cores(step, (0, 0), 0)
        return self._eval_steps[how]

    # ---- files and log ---------------------------------------------------------------------------

    def log(self, logs: dict[str, Any]) -> None:
        """Add `epoch` to `logs`, append them to `state.log_history`, tell the callbacks."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._notify("on_log", logs)

    def save_model(self, output_dir: str | os.PathLike | None = None) -> None:
        """Write `model.safetensors`, `config.json` and the tokenizer, for PyTorch and for here."""
        directory = self._output_dir() if output_dir is None else output_dir
        self.model.save_pretrained(directory)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(directory)

    def save_state(self) -> None:
        """Write `trainer_state.json`."""
        self._output_dir().mkdir(parents=True, exist_ok=True)
        self.state.save_to_json(str(self._output_dir() / "trainer_state.json"))

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write `<split>_results.json`, and merge the metrics into `all_results.json`."""
        directory = self._output_dir()
        directory.mkdir(parents=True, exist_ok=True)
        _write_json(directory / f"{split}_results.json", metrics)
        if combined:
            path = directory / "all_results.json"
            before = json.loads(path.read_text()) if path.exists() else {}
            _write_json(path, before | metrics)

    def log_metrics(self, split: str, metrics: dict[str, Any]) -> None:
        """Print the metrics, one a line, in order of their names."""
        width = max(map(len, metrics), default=0)
        print(f"***** {split} metrics *****")
        for name, value in sorted(metrics.items()):
            print(f"  {name:{width}} = {f'{value:.4f}' if isinstance(value, float) else value}")

    # ---- small things ----------------------------------------------------------------------------

    def _output_dir(self) -> Path:
        return Path(self.args.output_dir or "trainer_output")

    def _computing_model(self) -> AutoModelForQuestionAnswering:
        """The model as its config is now, in the compute dtype that the arguments ask for."""
        return self.model.with_dtype("bfloat16" if self.args.bf16 else self.model.dtype)

    def _notify(self, event: str, *positional: Any, **kwargs: Any) -> None:
        handler = getattr(self.callback_handler, event)
        self.control = handler(self.args, self.state, self.control, *positional, **kwargs)


class QuestionAnsweringTrainer(Trainer):
    """`Trainer` whose evaluation rebuilds answers from the logits before it scores them.

    The contract of Hugging Face's class of this name (`trainer_qa.py`), newest form, with every
    process getting the metrics.

    Args:
        eval_examples: the examples that the windows of `eval_dataset` were cut from.
        post_process_function: `(examples, windows, (start, end) logits[, stage])` ->
            `EvalPrediction` of answers and references. The fourth argument is passed by `predict`
            alone, as "predict", to functions that take four.
        candidates: gather from the cores only what post-processing with these settings needs, a
            tenth of the bytes: `post_process_function` then gets `spans.Candidates` in place of the
            logits, which `postprocess_qa_predictions` takes as well. None: all logits.
    """

    def __init__(
        self,
        *args: Any,
        eval_examples: datasets.Dataset | None = None,
        post_process_function: Callable[..., EvalPrediction] | None = None,
        candidates: Settings | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function
        self.candidates = candidates

    # Here and in predict the order of the arguments is Hugging Face's, not the base class's.
    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        eval_dataset: Dataset | None = None,
        eval_examples: datasets.Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, Any]:
        """EM and F1 (or whatever `compute_metrics` gives), the speed, the loss where labels exist.

        Without `post_process_function` or `compute_metrics`: speed and loss alone.
        """
        windows = self._evaluation_windows(eval_dataset)
        examples = self.eval_examples if eval_examples is None else eval_examples
        output = self._loop(windows, metric_key_prefix, self._gathered())
        scored = self._score(examples, windows, output, metric_key_prefix)
        return self._report(scored.metrics or {})

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        predict_dataset: Dataset | None = None,
        predict_examples: datasets.Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        *,
        test_dataset: Dataset | None = None,
        test_examples: datasets.Dataset | None = None,
    ) -> PredictionOutput:
        """Answers, references and metrics. `test_dataset` and `test_examples` are the older names.

        Without `post_process_function` or `compute_metrics` the predictions are the raw logits.
        """
        windows = test_dataset if predict_dataset is None else predict_dataset
        examples = test_examples if predict_examples is None else predict_examples
        if windows is None:
            raise ValueError("predict() needs a predict_dataset (or test_dataset) of windows")
        output = self._loop(windows, metric_key_prefix, self._gathered())
        scored = self._score(examples, windows, output, metric_key_prefix, "predict")
        self._notify("on_predict", scored.metrics)
        return scored

    def _gathered(self) -> Settings | None:
        """What to gather: without post-processing the caller gets the logits, so all of them."""
        is_raw = self.post_process_function is None or self.compute_metrics is None
        return None if is_raw else self.candidates

    def _score(
        self,
        examples: datasets.Dataset | None,
        windows: Dataset,
        output: PredictionOutput,
        prefix: str,
        *stage: str,
    ) -> PredictionOutput:
        """Logits -> answers -> metrics, beside those the loop measured."""
        post_process, compute = self.post_process_function, self.compute_metrics
        if post_process is None or compute is None:
            return output
        if examples is None:
            raise ValueError(
                "post_process_function needs the examples that the windows were cut from; give "
                "eval_examples (or predict_examples)"
            )
        stage = stage if _accepts(post_process, 3 + len(stage)) else ()
        scored = post_process(examples, windows, output.predictions, *stage)
        metrics = _with_prefix(compute(scored), prefix) | (output.metrics or {})
        return _output(scored.predictions, scored.label_ids, metrics)


def _require_model(model: Any) -> None:
    if not isinstance(model, AutoModelForQuestionAnswering):
        raise ValueError(
            f"model is a {type(model).__module__}.{type(model).__name__}; load it with "
            "qa_flax.AutoModelForQuestionAnswering.from_pretrained(...)"
        )


def _output(predictions: Any, label_ids: Any, metrics: dict[str, Any]) -> PredictionOutput:
    # transformers' annotations know neither pairs of logits nor lists of answers, both customary.
    return PredictionOutput(predictions, label_ids, metrics)


def _as_windows(given: Dataset) -> Windows:
    return given if isinstance(given, Windows) else Features.from_dataset(given)


def _parameters(model: AutoModelForQuestionAnswering) -> Any:
    return nnx.split(model)[1]


def _with_prefix(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """`f1` -> `eval_f1`; a name that has the prefix already stays."""
    named = {k if k.startswith(f"{prefix}_") else f"{prefix}_{k}": v for k, v in metrics.items()}
    return named


def _accepts(function: Callable, positional: int) -> bool:
    """Whether `function` can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * positional)
    except TypeError:
        return False
    return True


def _write_json(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values, indent=4, sort_keys=True))
    os.replace(temporary, path)
