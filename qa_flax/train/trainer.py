"""`Trainer`: the API of Hugging Face's Trainer. It calls the stages and computes nothing (host)."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax.numpy as jnp
import transformers
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput

from qa_flax.device import parallel
from qa_flax.device.step import LossFunction
from qa_flax.distributed import failure, preemption, processes
from qa_flax.distributed.exchange import broadcast_from_main
from qa_flax.models.averaged import refuse
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.argument_changes import EARLY_STOPPING, ArgumentCallbacks, KnownArguments
from qa_flax.train.best import check_best_metric, check_evaluation
from qa_flax.train.custom import check_custom, make_custom
from qa_flax.train.early_stopping import prefer_script_callback
from qa_flax.train.evaluation import Dataset, DatasetShard, Evaluator, prediction_output
from qa_flax.train.events import Events
from qa_flax.train.folder_lock import locked
from qa_flax.train.hub_push import HubPush
from qa_flax.train.live_state import LiveState
from qa_flax.train.loading import check_eval_dataset, check_train_dataset
from qa_flax.train.model_arguments import apply_model_arguments, check_model_arguments
from qa_flax.train.old_names import used_name
from qa_flax.train.overrides import check_overrides, is_replaced
from qa_flax.train.plan import is_sharded, output_dir
from qa_flax.train.reinitialize import reinitialize
from qa_flax.train.search import HyperparameterSearch
from qa_flax.train.tokenizer_fit import check_tokenizer
from qa_flax.train.torch_attributes import TorchAttributes
from qa_flax.train.train_data import TrainData, packing_obstacle
from qa_flax.train.train_questions import TrainQuestions
from qa_flax.train.training import Resume, TrainerActions, run_training
from qa_flax.train.training_arguments import (
    TrainingArguments,
    evaluates_in_bfloat16,
    set_log_level,
    trains_in_bfloat16,
)
from qa_flax.train.training_set import Sources, training_set

logger = logging.getLogger(__name__)


class Trainer(HyperparameterSearch, TrainQuestions, HubPush, TorchAttributes):
    """Train a question answering model on all cores, and compute its logits and metrics.

    The arguments have the names and meanings of transformers' Trainer. The model is trained in
    place: after `train()` it has the trained parameters.

    Args:
        model: from `AutoModelForQuestionAnswering.from_pretrained`, or `get_peft_model`.
        args: transformers' `TrainingArguments`, or this package's. An argument that is not
            supported raises an error. None: the defaults, with `output_dir="trainer_output"`.
        data_collator: called on the host with the rows of each batch, a list; returns a dict of
            arrays or tensors [n, L] and labels [n]. Python's, NumPy's and PyTorch's global random
            generators are seeded for each batch, so that a resumed run draws the same. One that
            only pads (`default_data_collator`, `DataCollatorWithPadding`) is not called: the
            trainer pads faster.
        train_dataset: windows with labels, from `prepare_train_features`: columns `input_ids`,
            `attention_mask`, ... (int32 [L] a row), `start_positions` and `end_positions` (int32).
            Or rows of these columns: a data set with a transform, a PyTorch `Dataset`, a list of
            dicts, or with `max_steps` a `datasets.IterableDataset`, which is streamed.
        eval_dataset: windows to evaluate on, or a dict of several such data sets by name. If they
            have labels, `evaluate` also computes the loss.
        processing_class: the tokenizer, which is saved with the model.
        model_init: builds the model, here and again at every `train()`; instead of `model`. It may
            have a parameter: the trial of a `hyperparameter_search`, otherwise None.
        compute_loss_func: replaces the loss, in training and in `eval_loss`. A JAX function of
            `(logits, batch)`: start and end logits, float32 [B, L], and a dict of arrays with
            `start_positions`, `end_positions` and `attention_mask`. It returns one loss for each
            window, [B], without a mean, and is compiled into the step.
        tokenizer: accepted instead of `processing_class`, as in transformers 4.
        compute_metrics: called with an `EvalPrediction`; returns a dict of metrics.
        callbacks: `TrainerCallback` objects or classes.
        optimizers: an optax transformation, whose updates are added to the parameters (so its own
            learning rate and clipping apply), or None; and a schedule, a function of the number of
            the update, or None. A schedule without an optimizer gives the learning rate of `optim`;
            beside an optimizer it is only logged.
        optimizer_cls_and_kwargs: an optax function and its arguments, instead of an optimizer.
        preprocess_logits_for_metrics: called with the logits and labels of some windows, NumPy
            arrays as in `EvalPrediction`; what it returns takes the place of the logits.
        split_by_node: only matters with several processes. True: the evaluation data sets and
            their examples are this process's shard, from `datasets.distributed`'s
            `split_dataset_by_node`. False: they are the full data sets, and each process computes
            its shard of them. In both cases every process gets the metrics and predictions of the
            full data set, in its order. The training set is always the full one.

    Raises:
        ValueError: an argument is invalid or not supported.
        ProcessError: several processes share the cores without having joined.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from qa_flax import AutoModelForQuestionAnswering, Trainer, TrainingArguments
        >>> from qa_flax import load_examples, prepare_train_features
        >>> model = AutoModelForQuestionAnswering.from_pretrained("bert-base-uncased")
        >>> tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        >>> windows = prepare_train_features(load_examples("train-v1.1.json"), tokenizer, 128, 32)
        >>> args = TrainingArguments(max_steps=2, report_to="none", disable_tqdm=True)
        >>> Trainer(model, args, train_dataset=windows).train().global_step  # doctest: +ELLIPSIS
        {'train_runtime': ...}
        2
    """

    def __init__(
        self,
        model: AutoModelForQuestionAnswering | None = None,
        args: transformers.TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[..., AutoModelForQuestionAnswering] | None = None,
        compute_loss_func: LossFunction | None = None,
        compute_metrics: Callable[[Any], dict[str, Any]] | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Any, Any], Any] | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        split_by_node: bool = False,
    ):
        failure.propagate_failures()
        self.model_init = model_init
        if model_init is not None:
            if model is not None:
                raise ValueError("pass either a model or model_init, not both")
            model = self.call_model_init()
        model = _require_model(model)
        args = TrainingArguments(output_dir="trainer_output") if args is None else args
        self._known_arguments = KnownArguments()
        self._known_arguments.check(args, set())
        check_model_arguments(args, model)
        check_evaluation(args, eval_dataset)
        check_eval_dataset(eval_dataset)
        if train_dataset is not None:
            check_train_dataset(train_dataset, args)
        _apply_to_process(args)
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.processing_class = processing_class if processing_class is not None else tokenizer
        if not getattr(args, "_is_command_line", False):  # which has checked them
            check_tokenizer(model, self.processing_class, data_collator)
        self.data_collator = data_collator
        self.compute_metrics = compute_metrics
        self.nonfinite_windows = {}
        self.split_by_node = split_by_node
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self._custom = make_custom(args, compute_loss_func, optimizers, optimizer_cls_and_kwargs)
        self._argument_callbacks = own = ArgumentCallbacks(args)
        handler = CallbackHandler(
            [DefaultFlowCallback, *own.reports, *(callbacks or []), own.progress],
            model,
            self.processing_class,
            None,
            None,
        )
        own.update(handler, args, set(EARLY_STOPPING))
        self._known_arguments.remember(args)
        self._events = Events(args, handler)
        self._use_model(model)
        self._check_overrides()
        if args.push_to_hub:
            self.init_hf_repo()
        self._events.notify("on_init_end")

    def _check_overrides(self) -> None:
        legacy = getattr(self.args, "use_legacy_prediction_loop", False)
        check_overrides(self, calls_prediction_loop=bool(legacy))

    # ---- attributes ------------------------------------------------------------------------------

    @property
    def args(self) -> transformers.TrainingArguments:
        """The training arguments. Setting them checks them, and rebuilds the model's steps."""
        return self._events.args

    @args.setter
    def args(self, args: transformers.TrainingArguments) -> None:
        self._require_no_training()
        previous, self._events.args = self._events.args, args
        try:
            self._apply_changed_arguments()
        except ValueError:
            self._events.args = previous
            raise
        self._use_model(self.model)  # the steps depend on the dtype and other arguments

    @property
    def model(self) -> AutoModelForQuestionAnswering:
        """The model, which at any time has the weights of the latest update.

        With `ema_decay` these are the averaged weights. A value that is written into the model
        during training replaces both the plain weights and their average.

        Setting it while it is being trained raises ValueError.
        """
        return self._live.model

    @model.setter
    def model(self, model: AutoModelForQuestionAnswering) -> None:
        _require_model(model)
        self._require_no_training()
        self._use_model(model)

    @property
    def state(self) -> TrainerState:
        """transformers' `TrainerState`: steps, epochs and the log history."""
        return self._events.state

    @state.setter
    def state(self, state: TrainerState) -> None:
        self._events.state = state

    @property
    def control(self) -> TrainerControl:
        """transformers' `TrainerControl`: what callbacks have requested, such as saving."""
        return self._events.control

    @control.setter
    def control(self, control: TrainerControl) -> None:
        self._events.control = control

    @property
    def callback_handler(self) -> CallbackHandler:
        """transformers' `CallbackHandler`."""
        return self._events.handler

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """`processing_class`, by its name in transformers 4."""
        return self.processing_class

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback, given as an object or as a class."""
        self.callback_handler.add_callback(callback)
        prefer_script_callback(self.callback_handler.callbacks, self.args)

    def pop_callback(self, callback: TrainerCallback | type[TrainerCallback]):
        """Remove and return a callback, or the first one of a class; None if there is none."""
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Remove a callback, or the first one of a class."""
        self.callback_handler.remove_callback(callback)

    # ---- train -----------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike | bool | None = None,
        ignore_keys_for_eval: list[str] | None = None,
        *,
        accept_changes: bool = False,
    ) -> TrainOutput:
        """Train for `num_train_epochs` epochs, or `max_steps` updates.

        With `ema_decay` the model has the averaged weights afterwards, and a second `train()`
        starts from them; one that resumes from a checkpoint continues with its plain weights.

        Args:
            resume_from_checkpoint: the path of a checkpoint to resume from, or True for the latest
                in `output_dir`. The resumed run gives bit for bit the weights and logs of an
                uninterrupted one. None or False: start a new run.
            ignore_keys_for_eval: accepted for compatibility and ignored: these models return only
                start and end logits.
            accept_changes: resume although seed, batch size, data or model differ from those of the
                checkpoint.

        Returns:
            transformers' `TrainOutput`: number of updates, mean loss, and metrics.

        Raises:
            ValueError: there is no training set, its windows have no labels,
                `metric_for_best_model` is not among the metrics, or the checkpoint is incomplete
                or of another run.
            FloatingPointError: the loss or gradient norm is not finite; the message has the step.
            Preempted: SIGTERM was received (a `SystemExit` of status 143). A checkpoint was saved.
            KeyboardInterrupt: Ctrl-C was received. Unless `save_strategy` is "no", a checkpoint was
                saved; a second Ctrl-C ends the training without it.
            FolderLockedError: another run writes into `output_dir`.
        """
        refuse(self.model, "trained")
        self._check_overrides()
        self._apply_changed_arguments()
        check_evaluation(self.args, self.eval_dataset)
        if not is_replaced(self, "evaluate"):
            check_best_metric(self.args, self.eval_dataset, self.compute_metrics)
        self._warn_of_leakage(self.eval_dataset)
        self._report_unused_samples()
        self._prepare_push()
        loader = self.get_train_dataloader()
        data = self._training_set(loader)
        if self.model_init is not None:
            self.model = self.call_model_init(self._trial)
        apply_model_arguments(self.args, self.model)
        self._update_graphdefs()
        actions = TrainerActions(self._evaluate_in_training, self.save_model, self.log)
        if not resume_from_checkpoint:
            reinitialize(self.args, self.model)
        self.is_in_train = True
        try:
            saves = self.args.save_strategy != "no"
            with locked(output_dir(self.args)) if saves else nullcontext():
                with preemption.sigterm_handled():
                    output = run_training(
                        self._events,
                        self._live,
                        data,
                        loader,
                        self._train_graphdef,
                        Resume(resume_from_checkpoint, accept_changes),
                        actions,
                        self._custom,
                    )
                self._save_curves_of_training()
            return output
        finally:
            self.is_in_train = False

    # ---- evaluate and predict --------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Dataset | Mapping[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, Any]:
        """Compute the loss, if the windows have labels, and `compute_metrics` of the raw logits.

        Args:
            eval_dataset: windows, a dict of several data sets, or the name of one in the trainer's
                dict; None: the trainer's.
            ignore_keys: accepted for compatibility and ignored: these models return only start and
                end logits.
            metric_key_prefix: what the names of the metrics begin with.

        Returns:
            The metrics, such as `eval_loss`, the times and the speeds. For a dict of data sets:
            `eval_<name>_loss` and so on for each. Without labels there is no loss, and
            `compute_metrics` is not called, as in transformers.

        Raises:
            ValueError: there is no evaluation data set, or it has no windows.
        """
        eval_data = self._select_eval_dataset(eval_dataset)
        train_metrics = self._train_metrics(eval_dataset)
        if isinstance(eval_data, Mapping):
            metrics = self._log_before_several(train_metrics)
            for name, dataset in eval_data.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        self._warn_of_leakage(eval_data)
        started = time.time()
        loader = self.get_eval_dataloader(eval_data)
        loss_only = True if self.compute_metrics is None else None
        output = self._call_loop(loader, "Evaluation", metric_key_prefix, loss_only, ignore_keys)
        return self._report(self._loop_metrics(output, metric_key_prefix, started) | train_metrics)

    def predict(
        self,
        test_dataset: Dataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Compute the logits of N windows, and their metrics as `evaluate` does.

        Args:
            test_dataset: windows; labels are optional.
            ignore_keys: accepted for compatibility and ignored.
            metric_key_prefix: what the names of the metrics begin with.

        Returns:
            `predictions`: start and end logits, float32 [N, L] each, in the order of the data set.
            `label_ids`: start and end positions, int32 [N] each, or None. `metrics`: a dict.

        Raises:
            ValueError: the data set has no windows.
        """
        started = time.time()
        loader = self.get_test_dataloader(test_dataset)
        output = self._call_loop(loader, "Prediction", metric_key_prefix, None, ignore_keys)
        metrics = self._loop_metrics(output, metric_key_prefix, started)
        self._events.notify("on_predict", metrics)
        return prediction_output(output.predictions, output.label_ids, metrics)

    def _loop_metrics(self, output: EvalLoopOutput, prefix: str, started: float) -> dict[str, Any]:
        """The metrics of an evaluation loop and its speed, in every process the main one's."""
        metrics = dict(output.metrics or {})
        metrics |= self._speed(prefix, started, output.num_samples or 0)
        return broadcast_from_main("metrics", metrics)

    def _report(self, metrics: dict[str, Any]) -> dict[str, Any]:
        self.log(metrics)
        self._events.notify("on_evaluate", metrics)
        return metrics

    # ---- log ---------------------------------------------------------------------------------

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Add `epoch` to `logs`, append them to `state.log_history` and notify the callbacks.

        Args:
            logs: the values to log, by name.
            start_time: accepted for compatibility and ignored.
        """
        self._events.log(logs)

    # ---- the model ----------------------------------------------------------------------------

    def _require_no_training(self) -> None:
        if self._live.is_training:
            raise ValueError(
                "model and args cannot be replaced while the model is trained; set them before or "
                "after train()"
            )

    def _use_model(self, model: AutoModelForQuestionAnswering) -> None:
        """Build what depends on the model and the arguments."""
        self._live = LiveState(model, is_sharded(self.args))
        self._events.handler.model = model
        self._shard = DatasetShard(self.split_by_node)
        self._graphdef_settings: tuple[Any, ...] = ()
        self._update_graphdefs()

    def _update_graphdefs(self) -> None:
        """Rebuild the model for training and for evaluation, if it or the arguments have changed.

        Scripts change the model's dtype, its config and the arguments after the trainer is built.
        """
        args, model = self.args, self.model
        # `activation_checkpointing` is the newer name; if transformers has both, they are equal.
        remat = getattr(args, "activation_checkpointing", args.gradient_checkpointing)
        remat = bool(remat) or model.is_gradient_checkpointing
        dtype = "bfloat16" if trains_in_bfloat16(args) else model.dtype
        eval_dtype = "bfloat16" if evaluates_in_bfloat16(args) else dtype
        settings = (model, dtype, remat, eval_dtype, model.config.to_json_string())
        if settings != self._graphdef_settings:
            self._graphdef_settings = settings
            self._dtypes = jnp.dtype(dtype).name, jnp.dtype(eval_dtype).name
            self._train_graphdef = model.graphdef(dtype, remat=remat)
            self._eval_graphdef = model.graphdef(eval_dtype)

    def _apply_changed_arguments(self) -> None:
        """Check the arguments that a script has changed since the last call, and apply them."""
        args, known = self.args, self._known_arguments
        if not (changed := known.changes(args)):
            return
        if "shard_params" in changed and self._live.is_training:
            raise ValueError("shard_params cannot be changed while the model is trained")
        known.check(args, changed)
        check_custom(self._custom, args)
        _apply_to_process(args)
        if not self._live.is_training:
            check_model_arguments(args, self.model)
            self._argument_callbacks.update(self.callback_handler, args, changed)
            if "shard_params" in changed:
                self._use_model(self.model)
            known.remember(args)

    @property
    def _evaluator(self) -> Evaluator:
        self._apply_changed_arguments()
        if not self._live.is_training:
            self._update_graphdefs()
        return Evaluator(
            self._events,
            self._live,
            self._eval_graphdef,
            self._shard,
            self._custom.loss,
            self._packing_obstacle(self._dtypes[1]),
        )

    def _packing_obstacle(self, dtype: str) -> str | None:
        """Why rows cannot hold several windows, apart from the data."""
        return packing_obstacle(self.args, self.model, self._custom.loss is not None, dtype)

    def _training_set(self, loader: Any) -> TrainData:
        return training_set(
            loader,
            self.model,
            self.args,
            Sources(self.train_examples, self.processing_class, self.extra_train_dataset),
            takes_extras=self._custom.loss is not None,
            obstacle=self._packing_obstacle(self._dtypes[0]),
        )


def _apply_to_process(args: transformers.TrainingArguments) -> None:
    """Set the log level, and check that JAX runs on the CPU if `use_cpu` asks for it."""
    set_log_level(args, processes.is_main())
    parallel.require_backend("cpu" if args.use_cpu else None, used_name(args, "use_cpu"))


def _require_model(model: Any) -> AutoModelForQuestionAnswering:
    if model is None:
        raise ValueError("the trainer needs a model, or model_init, which builds one")
    if not isinstance(model, AutoModelForQuestionAnswering):
        raise ValueError(
            f"model is a {type(model).__module__}.{type(model).__name__}; load it with "
            "qa_flax.AutoModelForQuestionAnswering.from_pretrained(...)"
        )
    return model
