"""The Hugging Face Trainer contract over the stages; nothing numeric here."""

import inspect
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import transformers
from flax import nnx
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    PrinterCallback,
    TrainerControl,
)
from transformers.trainer_utils import EvalPrediction, PredictionOutput, TrainOutput, speed_metrics

from qa_flax import storage
from qa_flax.answers.spans import Candidates, Settings
from qa_flax.data.windows import Features, Windows
from qa_flax.device import parallel
from qa_flax.device.counters import watched
from qa_flax.device.step import Reduction, Weights, make_eval_step, weights_of
from qa_flax.distributed import exchange, failure, preemption, processes
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.sharding import pattern as shard_pattern
from qa_flax.storage import AnyPath
from qa_flax.train import checkpoints
from qa_flax.train.loop import TrainingLoop, new_state
from qa_flax.train.loop import output_dir as folder_of
from qa_flax.train.model_card import model_card
from qa_flax.train.prediction import agreed_widths, predict_windows, reduction
from qa_flax.train.progress import progress_callback
from qa_flax.train.training_arguments import (
    TrainingArguments,
    check_training_arguments,
    set_log_level,
)

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
        eval_dataset: windows to evaluate, or a dict of several; labels are optional.
        processing_class: the tokenizer, saved beside the model. `tokenizer` is its older name.
        compute_metrics: called with an `EvalPrediction`, returns a dict.
        callbacks: `TrainerCallback` objects or classes.
        split_by_node: with several hosts, whether the data sets to evaluate on (and their examples)
            are this host's part of the whole, as `datasets.distributed.split_dataset_by_node` gives
            it. Otherwise they are the whole, of which each host computes a part. The training set
            is the whole in any case. All hosts get the same metrics and predictions, in the order
            of the whole.

    Raises:
        ValueError: an argument is missing or not supported.
    """

    def __init__(
        self,
        model: AutoModelForQuestionAnswering,
        args: transformers.TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[Any], dict[str, Any]] | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        split_by_node: bool = False,
    ):
        failure.end_together()
        _require_model(model)
        self.args = TrainingArguments(output_dir="trainer_output") if args is None else args
        check_training_arguments(self.args)
        set_log_level(self.args, processes.is_main())
        parallel.require_backend("cpu" if self.args.use_cpu else None, "use_cpu")
        self.model = model
        self.data_collator = data_collator
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.processing_class = processing_class if processing_class is not None else tokenizer
        self.compute_metrics = compute_metrics
        self.split_by_node = split_by_node
        self.state = new_state()
        self.control = TrainerControl()
        bar = PrinterCallback if self.args.disable_tqdm else progress_callback()
        reports = get_reporting_integration_callbacks(self.args.report_to)
        self.callback_handler = CallbackHandler(
            [DefaultFlowCallback, *reports, *(callbacks or []), bar],
            self.model,
            self.processing_class,
            None,
            None,
        )
        self._device_weights: Weights | None = None  # while training: those on the cores
        self._is_sharded = bool(getattr(self.args, "shard_params", False))
        if self._is_sharded:  # on one core there may be no room for all of it
            with parallel.on_host():
                self.model.take_over(weights_of(self.model).params)
        self._eval_steps: dict[Reduction | None, Callable] = {}
        # The newer name; transformers keeps both alike where it has both.
        again = getattr(self.args, "activation_checkpointing", self.args.gradient_checkpointing)
        trained = self._computing_model(self.args.bf16).with_remat(bool(again))
        self._graphdef = nnx.graphdef(trained)
        in_bf16 = self.args.bf16 or self.args.bf16_full_eval
        self._eval_graphdef = nnx.graphdef(self._computing_model(in_bf16))
        self.notify("on_init_end")

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

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike | bool | None = None,
        ignore_keys_for_eval: list[str] | None = None,
        *,
        accept_changes: bool = False,
    ) -> TrainOutput:
        """Fine-tune for `num_train_epochs` (or `max_steps`) and return transformers' `TrainOutput`.

        Args:
            resume_from_checkpoint: go on from this checkpoint, or with True from the last one in
                `output_dir`, as the run would have gone on that was stopped: bit for bit.
            ignore_keys_for_eval: accepted as in transformers.
            accept_changes: resume though seed, batch size, data or model are others.

        Raises:
            ValueError: there is no training set, its windows have no labels,
                `metric_for_best_model` cannot be had, or the checkpoint is not of this run.
            FloatingPointError: the loss is not finite; the message names the step.
            Preempted: SIGTERM has come (`SystemExit` with status 143); a checkpoint was saved.
        """
        if self.train_dataset is None or not len(self.train_dataset):
            raise ValueError("train() needs a train_dataset with at least one window")
        windows = _as_windows(self.train_dataset)
        if windows.start_positions is None or windows.end_positions is None:
            raise ValueError(
                "the train_dataset has no start_positions and end_positions; make it with "
                "prepare_train_features(examples, tokenizer)"
            )
        with preemption.heeded(), watched("training", self._is_watched()) as report:
            loop = TrainingLoop(
                self, windows, self._graphdef, resume_from_checkpoint, accept_changes
            )
            first = self.state.global_step
            output = loop.run()
            report.steps = self.state.global_step - first
            report.bytes_to_host = report.steps * loop.bytes_per_step
        return output

    def use_weights(self, on_cores: Weights | None) -> None:
        """While training: evaluate with these weights, which are on the cores already."""
        self._device_weights = on_cores

    # ---- predict ---------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, Any]:
        """`compute_metrics` over the raw logits, and the loss if the windows have labels.

        Of a dict of sets each one's metrics are named `eval_<name>_...`. `ignore_keys` is accepted
        as in transformers; these models return nothing but span logits.
        """
        given = self._evaluation_set(eval_dataset)
        if isinstance(given, Mapping):
            metrics: dict[str, Any] = {}
            for name, dataset in given.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        output = self._loop(given, metric_key_prefix)
        return self._report(self._with_raw_metrics(output, given, metric_key_prefix).metrics or {})

    def predict(
        self,
        test_dataset: Dataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Logits `(start, end)`, float32 [N, L] each, in the order of the data; labels; metrics."""
        output = self._loop(test_dataset, metric_key_prefix)
        output = self._with_raw_metrics(output, test_dataset, metric_key_prefix)
        self.notify("on_predict", output.metrics)
        return output

    def _evaluation_set(self, given: Any) -> Any:
        found = self.eval_dataset if given is None else given
        if found is None:
            raise ValueError("evaluate() needs an eval_dataset, here or when the trainer is made")
        return found

    def _with_raw_metrics(
        self, output: PredictionOutput, dataset: Dataset, prefix: str
    ) -> PredictionOutput:
        if self.compute_metrics is None or self.args.prediction_loss_only:
            return _agreed(output)
        more: dict[str, Any] = {}
        if "inputs" in self.args.include_for_metrics:
            inputs = _as_windows(dataset).features().input_ids
            more["inputs"] = (
                exchange.concatenated("inputs", inputs) if self.split_by_node else inputs
            )
        if "loss" in self.args.include_for_metrics:
            more["losses"] = self._last_losses
        labels: Any = output.label_ids  # transformers' annotation forgets that there may be none
        raw = EvalPrediction(predictions=output.predictions, label_ids=labels, **more)
        computed = _with_prefix(self.compute_metrics(raw), prefix)
        return _agreed(output._replace(metrics=computed | (output.metrics or {})))

    def _report(self, metrics: dict[str, Any]) -> dict[str, Any]:
        self.log(metrics)
        self.notify("on_evaluate", metrics)
        return metrics

    def _loop(
        self,
        dataset: Dataset,
        prefix: str,
        candidates: Settings | None = None,
        *,
        gather: bool = True,
    ) -> PredictionOutput:
        """The one loop of evaluation and prediction: logits or candidates, labels, loss, speed.

        Of all hosts' windows, in their order; logits and labels of this host's where not `gather`.
        """
        started = time.time()
        windows = _as_windows(dataset)
        if not self.split_by_node:
            windows = windows.select(processes.part_of(len(windows)))
        per_core = self.args.per_device_eval_batch_size
        widths = agreed_widths(windows, per_core)
        # The progress callback only asks for the length of what is gone through.
        counted: Any = widths
        self.callback_handler.eval_dataloader = counted
        weights = self._device_weights
        if weights is None:
            weights = weights_of(self.model)
            pattern = shard_pattern(weights, parallel.core_count()) if self._is_sharded else weights
            weights = parallel.put_parts(weights, pattern)
        watching = watched(f"{prefix} of {len(windows)} windows", self._is_watched())
        # Hosts compute their windows each at its own pace: all are at one place after the exchange.
        with preemption.heeded():
            with watching as report:
                found = predict_windows(
                    self._eval_step(candidates),
                    weights,
                    windows,
                    per_core,
                    candidates,
                    lambda: self.notify("on_prediction_step"),
                    widths,
                )
                report.steps, report.bytes_to_host = len(widths), found.bytes_to_host
            count = sum(exchange.exchange_json("windows", len(windows)))
            labels, metrics, logits = None, {}, found.logits
            self._last_losses = None
            if found.losses is not None:
                labels = (windows.start_positions, windows.end_positions)
                self._last_losses = exchange.concatenated("losses", found.losses)
                metrics[f"{prefix}_loss"] = float(np.mean(self._last_losses, dtype=np.float64))
            if gather:
                labels, logits = exchange.concatenated("labels", labels), _of_all(logits)
        metrics |= speed_metrics(prefix, started, num_samples=count, num_steps=len(widths))
        return _output(logits, labels, metrics)

    def _eval_step(self, candidates: Settings | None) -> Callable:
        """The evaluation step over the cores, made once for each way to gather."""
        how = None if candidates is None else reduction(candidates)
        if how not in self._eval_steps:
            step = make_eval_step(self._eval_graphdef, how)
            self._eval_steps[how] = parallel.over_cores(step, (0, 0), 0)
        return self._eval_steps[how]

    # ---- files and log ---------------------------------------------------------------------------

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add `epoch` to `logs`, append them to `state.log_history`, tell the callbacks."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        if getattr(self.args, "include_num_input_tokens_seen", "no") != "no":
            logs["num_input_tokens_seen"] = self.state.num_input_tokens_seen
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.notify("on_log", logs)

    def save_model(self, output_dir: str | os.PathLike | None = None) -> None:
        """Write the model (or its adapters) and the tokenizer, for PyTorch and for here.

        As everything that writes: of several hosts the main one does, and the others return.
        """
        if not processes.is_main():
            return
        directory = folder_of(self.args) if output_dir is None else output_dir
        with storage.written(directory) as folder:
            self.model.save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def save_state(self) -> None:
        """Write `trainer_state.json`."""
        if not processes.is_main():
            return
        with storage.written(folder_of(self.args)) as folder:
            self.state.save_to_json(str(folder / checkpoints.TRAINER_STATE))

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write `<split>_results.json`, and merge the metrics into `all_results.json`."""
        if not processes.is_main():
            return
        directory = folder_of(self.args)
        _write_json(directory / f"{split}_results.json", metrics)
        if combined:
            path = directory / "all_results.json"
            before = json.loads(path.read_text()) if path.exists() else {}
            _write_json(path, before | metrics)

    def create_model_card(self, **kwargs: Any) -> None:
        """Write `README.md`: the model's card, by transformers' template and argument names."""
        if not processes.is_main():
            return
        storage.write_text(folder_of(self.args) / "README.md", model_card(self, **kwargs))

    def is_world_process_zero(self) -> bool:
        """Whether this host is the one that writes."""
        return processes.is_main()

    def log_metrics(self, split: str, metrics: dict[str, Any]) -> None:
        """Print the metrics, one a line, in order of their names."""
        if not processes.is_main():
            return
        width = max(map(len, metrics), default=0)
        print(f"***** {split} metrics *****")
        for name, value in sorted(metrics.items()):
            print(f"  {name:{width}} = {f'{value:.4f}' if isinstance(value, float) else value}")

    # ---- small things ----------------------------------------------------------------------------

    def _is_watched(self) -> bool:
        debug: Any = self.args.debug
        return "tpu_metrics_debug" in [getattr(option, "value", option) for option in debug or ()]

    def _computing_model(self, in_bf16: bool) -> AutoModelForQuestionAnswering:
        """The model as its config is now, in the compute dtype that the arguments ask for."""
        return self.model.with_dtype("bfloat16" if in_bf16 else self.model.dtype)

    def notify(self, event: str, *positional: Any, **kwargs: Any) -> None:
        """Tell the callbacks of an event, in their order, and do as they leave `control`."""
        handler = self.callback_handler
        if kwargs:  # what transformers' own methods do not pass on
            self.control = handler.call_event(event, self.args, self.state, self.control, **kwargs)
        else:
            notify = getattr(handler, event)
            self.control = notify(self.args, self.state, self.control, *positional)


class QuestionAnsweringTrainer(Trainer):
    """`Trainer` whose evaluation rebuilds answers from the logits before it scores them.

    The contract of Hugging Face's class of this name (`trainer_qa.py`), newest form, with every
    process getting the metrics.

    Args:
        eval_examples: the examples that the windows of `eval_dataset` were cut from; a dict where
            that is one.
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
        eval_examples: Any = None,
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
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        eval_examples: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, Any]:
        """EM and F1 (or whatever `compute_metrics` gives), the speed, the loss where labels exist.

        Of dicts of sets and examples each set's metrics are named `eval_<name>_...`. Without
        `post_process_function` or `compute_metrics`: speed and loss alone.
        """
        given = self._evaluation_set(eval_dataset)
        examples = self.eval_examples if eval_examples is None else eval_examples
        if isinstance(given, Mapping):
            return self._evaluate_each(given, examples, metric_key_prefix)
        scored = self._scored(examples, given, metric_key_prefix)
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
        dataset = test_dataset if predict_dataset is None else predict_dataset
        examples = test_examples if predict_examples is None else predict_examples
        if dataset is None:
            raise ValueError("predict() needs a predict_dataset (or test_dataset) of windows")
        scored = self._scored(examples, dataset, metric_key_prefix, "predict")
        self.notify("on_predict", scored.metrics)
        return scored

    def _evaluate_each(
        self, given: Mapping[str, Dataset], examples: Any, prefix: str
    ) -> dict[str, Any]:
        missing = sorted(given.keys() - (examples or {}).keys())
        if missing and self.post_process_function is not None:
            raise ValueError(
                f"eval_dataset has the sets {', '.join(given)}; eval_examples must be a dict with "
                f"the same names, and has no {', '.join(missing)}"
            )
        metrics: dict[str, Any] = {}
        for name, dataset in given.items():
            of_set = None if examples is None else examples.get(name)
            metrics |= self.evaluate(dataset, of_set, metric_key_prefix=f"{prefix}_{name}")
        return metrics

    def _scored(
        self, examples: Any, dataset: Dataset, prefix: str, *stage: str
    ) -> PredictionOutput:
        """Windows -> logits -> answers -> metrics, beside those the loop measured."""
        post_process, compute = self.post_process_function, self.compute_metrics
        if post_process is None or compute is None or self.args.prediction_loss_only:
            # Without post-processing the caller gets the logits, so all of them.
            is_raw = post_process is None or compute is None
            return _agreed(self._loop(dataset, prefix, None if is_raw else self.candidates))
        if examples is None:
            raise ValueError(
                "post_process_function needs the examples that the windows were cut from; give "
                "eval_examples (or predict_examples)"
            )
        output = self._loop(dataset, prefix, self.candidates, gather=not self.split_by_node)
        stage = stage if _accepts(post_process, 3 + len(stage)) else ()
        started = time.time()
        scored = post_process(examples, dataset, output.predictions, *stage)
        count = len(examples)
        if self.split_by_node:
            count = sum(exchange.exchange_json("examples", count))
            both: Any = (scored.predictions, scored.label_ids)
            answers, references = (_joined(part) for part in zip(*_exchanged(both), strict=True))
            scored = EvalPrediction(predictions=answers, label_ids=references)
        metrics = _with_prefix(compute(scored), prefix) | (output.metrics or {})
        seconds = time.time() - started
        whole = seconds + metrics[f"{prefix}_runtime"]
        metrics[f"{prefix}_post_processing_time"] = round(seconds, 4)
        metrics[f"{prefix}_examples_per_second"] = round(count / max(whole, 1e-9), 3)
        return _agreed(_output(scored.predictions, scored.label_ids, metrics))


def _output(predictions: Any, label_ids: Any, metrics: dict[str, Any]) -> PredictionOutput:
    # transformers' annotations know neither pairs of logits nor lists of answers, both customary.
    return PredictionOutput(predictions, label_ids, metrics)


def _as_windows(given: Dataset) -> Windows:
    return given if isinstance(given, Windows) else Features.from_dataset(given)


def _of_all(logits: Any) -> Any:
    """The logits, or candidates, of all hosts' windows."""
    if isinstance(logits, Candidates):
        *arrays, length = logits
        return Candidates(*exchange.concatenated("candidates", arrays), length=length)
    return exchange.concatenated("logits", logits)


def _agreed(output: PredictionOutput) -> PredictionOutput:
    """The same times and speeds on all hosts: the main one's."""
    return output._replace(metrics=exchange.of_main("metrics", output.metrics))


def _exchanged(answers: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    """What post-processing gave on each host: answers and references."""
    if all(isinstance(part, (list, dict)) for part in answers):
        return exchange.exchange_json("answers", answers)
    kinds = ", ".join(type(part).__name__ for part in answers)
    raise ValueError(
        f"split_by_node: post_process_function gave {kinds}; what several hosts give is put "
        "together from lists or dicts of what JSON can say"
    )


def _joined(parts: Sequence[Any]) -> Any:
    """Lists one after the other, or dicts as one."""
    if isinstance(parts[0], dict):
        return {key: value for part in parts for key, value in part.items()}
    return [value for part in parts for value in part]


def _accepts(function: Callable, positional: int) -> bool:
    """Whether `function` can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * positional)
    except TypeError:
        return False
    return True


def _with_prefix(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """`f1` -> `eval_f1`; a name that has the prefix already stays."""
    return {k if k.startswith(f"{prefix}_") else f"{prefix}_{k}": v for k, v in metrics.items()}


def _require_model(model: Any) -> None:
    if not isinstance(model, AutoModelForQuestionAnswering):
        raise ValueError(
            f"model is a {type(model).__module__}.{type(model).__name__}; load it with "
            "qa_flax.AutoModelForQuestionAnswering.from_pretrained(...)"
        )


def _write_json(path: AnyPath, values: dict[str, Any]) -> None:
    storage.write_text(path, json.dumps(values, indent=4, sort_keys=True))
