"""The Hugging Face Trainer contract over the stages; nothing numeric here."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    PrinterCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import EvalPrediction, PredictionOutput, TrainOutput

from qa_flax import storage
from qa_flax.answers.spans import SearchSettings
from qa_flax.device import parallel
from qa_flax.distributed import failure, preemption, processes
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.storage import AnyPath
from qa_flax.train import checkpoints
from qa_flax.train.best import check_best_metric
from qa_flax.train.evaluation import (
    Dataset,
    EvaluationResult,
    Evaluator,
    Share,
    agreed,
    as_windows,
    prediction_output,
    with_prefix,
)
from qa_flax.train.events import Events
from qa_flax.train.live_state import LiveState
from qa_flax.train.model_card import model_card
from qa_flax.train.plan import is_sharded
from qa_flax.train.plan import output_dir as _folder
from qa_flax.train.progress import progress_callback
from qa_flax.train.training import Resume, run_training
from qa_flax.train.training_arguments import (
    TrainingArguments,
    check_training_arguments,
    set_log_level,
)


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
        args = TrainingArguments(output_dir="trainer_output") if args is None else args
        check_training_arguments(args)
        set_log_level(args, processes.is_main())
        parallel.require_backend("cpu" if args.use_cpu else None, "use_cpu")
        self.data_collator = data_collator
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.processing_class = processing_class if processing_class is not None else tokenizer
        self.compute_metrics = compute_metrics
        self.split_by_node = split_by_node
        bar = PrinterCallback if args.disable_tqdm else progress_callback()
        reports = get_reporting_integration_callbacks(args.report_to)
        handler = CallbackHandler(
            [DefaultFlowCallback, *reports, *(callbacks or []), bar],
            model,
            self.processing_class,
            None,
            None,
        )
        self._events = Events(args, handler)
        self._use_model(model)
        self._events.notify("on_init_end")

    # ---- what scripts read and set ---------------------------------------------------------------

    @property
    def args(self) -> transformers.TrainingArguments:
        """The arguments, as they were given."""
        return self._events.args

    @args.setter
    def args(self, args: transformers.TrainingArguments) -> None:
        check_training_arguments(args)
        self._events.args = args
        self.model = self.model  # which is made for the dtype that the arguments ask for

    @property
    def model(self) -> AutoModelForQuestionAnswering:
        """The model that is trained, with the weights of the last finished update at any time."""
        return self._live.model

    @model.setter
    def model(self, model: AutoModelForQuestionAnswering) -> None:
        _require_model(model)
        if self._live.is_training:
            raise ValueError("model and args cannot be replaced while the model is trained")
        self._use_model(model)

    @property
    def state(self) -> TrainerState:
        """transformers' state: steps, epochs, the log history."""
        return self._events.state

    @state.setter
    def state(self, state: TrainerState) -> None:
        self._events.state = state

    @property
    def control(self) -> TrainerControl:
        """What callbacks have asked for."""
        return self._events.control

    @control.setter
    def control(self, control: TrainerControl) -> None:
        self._events.control = control

    @property
    def callback_handler(self) -> CallbackHandler:
        """transformers' handler of the callbacks."""
        return self._events.handler

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
            resume_from_checkpoint: resume from this checkpoint, or with True from the last one in
                `output_dir`: bit for bit as the run would have continued that was stopped.
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
        windows = as_windows(self.train_dataset)
        if windows.start_positions is None or windows.end_positions is None:
            raise ValueError(
                "the train_dataset has no start_positions and end_positions; make it with "
                "prepare_train_features(examples, tokenizer)"
            )
        check_best_metric(self.args, self.eval_dataset, self.compute_metrics is not None)
        with preemption.sigterm_handled():
            return run_training(
                self._events,
                self._live,
                windows,
                self._train_graphdef,
                Resume(resume_from_checkpoint, accept_changes),
                evaluate=self.evaluate,
                save_model=self.save_model,
            )

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
        chosen = self._evaluation_set(eval_dataset)
        if isinstance(chosen, Mapping):
            metrics: dict[str, Any] = {}
            for name, dataset in chosen.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        return self._report(self._with_raw_metrics(chosen, metric_key_prefix).metrics or {})

    def predict(
        self,
        test_dataset: Dataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Logits `(start, end)`, float32 [N, L] each, in the order of the data; labels; metrics."""
        output = self._with_raw_metrics(test_dataset, metric_key_prefix)
        self._events.notify("on_predict", output.metrics)
        return output

    def _evaluation_set(self, dataset: Any) -> Any:
        chosen = self.eval_dataset if dataset is None else dataset
        if chosen is None:
            raise ValueError("evaluate() needs an eval_dataset, here or when the trainer is made")
        return chosen

    def _evaluated(
        self,
        dataset: Dataset,
        prefix: str,
        candidates: SearchSettings | None = None,
        *,
        gather: bool = True,
    ) -> EvaluationResult:
        return self._evaluator.run(dataset, prefix, candidates, gather=gather)

    def _with_raw_metrics(self, dataset: Dataset, prefix: str) -> PredictionOutput:
        evaluated = self._evaluated(dataset, prefix)
        metrics = evaluated.metrics
        if self.compute_metrics is not None and not self.args.prediction_loss_only:
            more: dict[str, Any] = {}
            if "inputs" in self.args.include_for_metrics:
                more["inputs"] = self._share.whole_inputs(as_windows(dataset).features().input_ids)
            if "loss" in self.args.include_for_metrics:
                more["losses"] = evaluated.losses
            raw = EvalPrediction(evaluated.logits, evaluated.labels, **more)
            metrics = with_prefix(self.compute_metrics(raw), prefix) | metrics
        return agreed(prediction_output(evaluated.logits, evaluated.labels, metrics))

    def _report(self, metrics: dict[str, Any]) -> dict[str, Any]:
        self.log(metrics)
        self._events.notify("on_evaluate", metrics)
        return metrics

    # ---- files and log ---------------------------------------------------------------------------

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add `epoch` to `logs`, append them to `state.log_history`, tell the callbacks."""
        self._events.log(logs)

    def save_model(self, output_dir: str | os.PathLike | None = None) -> None:
        """Write the model (or its adapters) and the tokenizer, for PyTorch and for here.

        At any time, in a callback too: the weights are those of the last finished update. Only the
        main process writes; with `shard_params` all of them must call it.
        """
        self._live.gather_shards()
        if not processes.is_main():
            return
        directory = _folder(self.args) if output_dir is None else output_dir
        with storage.output_folder(directory) as folder:
            self.model.save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def save_state(self) -> None:
        """Write `trainer_state.json`."""
        if not processes.is_main():
            return
        with storage.output_folder(_folder(self.args)) as folder:
            self.state.save_to_json(str(folder / checkpoints.TRAINER_STATE))

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write `<split>_results.json`, and merge the metrics into `all_results.json`."""
        if not processes.is_main():
            return
        directory = _folder(self.args)
        _write_json(directory / f"{split}_results.json", metrics)
        if combined:
            path = directory / "all_results.json"
            before = json.loads(path.read_text()) if path.exists() else {}
            _write_json(path, before | metrics)

    def create_model_card(self, **kwargs: Any) -> None:
        """Write `README.md`: the model's card, by transformers' template and argument names."""
        if not processes.is_main():
            return
        card = model_card(self.args, self.state, **kwargs)
        storage.write_text(_folder(self.args) / "README.md", card)

    def is_world_process_zero(self) -> bool:
        """Whether this process is the one that writes."""
        return processes.is_main()

    def log_metrics(self, split: str, metrics: dict[str, Any]) -> None:
        """Print the metrics, one a line, in order of their names."""
        if not processes.is_main():
            return
        width = max(map(len, metrics), default=0)
        print(f"***** {split} metrics *****")
        for name, value in sorted(metrics.items()):
            print(f"  {name:{width}} = {f'{value:.4f}' if isinstance(value, float) else value}")

    # ---- the model ----------------------------------------------------------------------------

    def _use_model(self, model: AutoModelForQuestionAnswering) -> None:
        """Make what depends on the model: as its config and the arguments are now."""
        self._live = LiveState(model, is_sharded(self.args))
        self._events.handler.model = model
        # The newer name; transformers keeps both alike where it has both.
        args = self.args
        remat = getattr(args, "activation_checkpointing", args.gradient_checkpointing)
        in_training = "bfloat16" if args.bf16 else model.dtype
        self._train_graphdef = model.graphdef(in_training, remat=bool(remat))
        graphdef = model.graphdef("bfloat16" if args.bf16_full_eval else in_training)
        self._share = Share(self.split_by_node)
        self._evaluator = Evaluator(self._events, self._live, graphdef, self._share)


def _require_model(model: Any) -> None:
    if not isinstance(model, AutoModelForQuestionAnswering):
        raise ValueError(
            f"model is a {type(model).__module__}.{type(model).__name__}; load it with "
            "qa_flax.AutoModelForQuestionAnswering.from_pretrained(...)"
        )


def _write_json(path: AnyPath, values: dict[str, Any]) -> None:
    storage.write_text(path, json.dumps(values, indent=4, sort_keys=True))
