"""The trainer's data loaders, collator and evaluation loop, which a script may call and replace.

A method that a subclass replaces is called as in transformers. What the replaced method returns may
be a PyTorch `DataLoader`, or anything else that yields batches whenever it is iterated (host).
"""

import logging
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import transformers
from transformers import DataCollatorWithPadding, default_data_collator
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, speed_metrics

from qa_flax.answers.spans import SearchSettings
from qa_flax.data.batches import epoch_order
from qa_flax.data.leakage import describe_shared_windows
from qa_flax.data.loaders import Loader, rows_of
from qa_flax.data.rows import check_dataset, is_stream
from qa_flax.device import parallel
from qa_flax.distributed import processes
from qa_flax.train.custom import preprocess_logits
from qa_flax.train.evaluation import EvaluationResult, Evaluator, with_prefix
from qa_flax.train.overrides import is_replaced
from qa_flax.train.prediction import OnCandidates
from qa_flax.train.shared_attributes import SharedAttributes
from qa_flax.train.train_data import data_seed_of

logger = logging.getLogger(__name__)


class DataLoading(SharedAttributes):
    """The part of `Trainer` that makes batches; see there for the arguments."""

    _compared_datasets: Any = ()

    nonfinite_windows: dict[str, int]
    """By prefix (`eval`): how many windows of its latest evaluation have logits that are NaN or
    infinite, so that there are no answers from them."""

    warns_of_leakage = True
    """Whether to warn of validation questions about contexts of the training set."""

    @property
    def _pad_token_id(self) -> int:
        return getattr(self.model.config, "pad_token_id", None) or 0

    @property
    def _evaluator(self) -> Evaluator:
        raise NotImplementedError

    @property
    def data_collator(self) -> Any:
        """What makes a batch of rows; without one of the script's, transformers' default."""
        if self._collator is not None:
            return self._collator
        tokenizer = self.processing_class
        return default_data_collator if tokenizer is None else DataCollatorWithPadding(tokenizer)

    @data_collator.setter
    def data_collator(self, collator: Any) -> None:
        if collator is not None and not callable(collator):
            raise ValueError(
                f"data_collator is a {type(collator).__name__}; it must be a function of a list of "
                "rows that returns a dict of arrays"
            )
        self._collator = collator

    # ---- loaders ---------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Return the loader of the training set, in the order of the epoch 0.

        It yields what the script's `data_collator` makes of the rows, or dicts of NumPy arrays
        without one. A subclass may return another loader, whose batches are then used as they are.

        Raises:
            ValueError: there is no training set.
        """
        dataset, args = self.train_dataset, self.args
        if dataset is None:
            raise ValueError(
                "train() needs a train_dataset with at least one window; pass one to the trainer"
            )
        check_train_dataset(dataset, args)
        per_core, cores = args.per_device_train_batch_size, parallel.process_cores()
        local = slice(cores.start * per_core, cores.stop * per_core)
        rows = parallel.core_count() * per_core

        @cache
        def lengths() -> np.ndarray:
            if args.train_sampling_strategy == "group_by_length":
                return loader.row_lengths()
            return np.zeros(len(dataset), np.int64)

        def order(epoch: int) -> np.ndarray:
            size = rows * args.gradient_accumulation_steps
            strategy = args.train_sampling_strategy
            return epoch_order(lengths(), size, data_seed_of(args), epoch, strategy)

        loader = Loader(
            dataset,
            parallel.process_core_count() * per_core,
            self._collator,
            order=order,
            drop_last=args.dataloader_drop_last,
            pad_token_id=self._pad_token_id,
            only_used=args.remove_unused_columns,
            share=(local, rows),
        )
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the loader of an evaluation set, in the order of its rows.

        Args:
            eval_dataset: a data set, or the name of one in the trainer's dict; None: the trainer's.

        Raises:
            ValueError: there is no such data set.
        """
        return self._eval_loader(self._select_eval_dataset(eval_dataset), "eval_dataset")

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Return the loader of a data set to predict, in the order of its rows."""
        return self._eval_loader(test_dataset, "test_dataset")

    def num_examples(self, dataloader: Any) -> int:
        """Return the number of rows of a loader's data set, as far as it is known."""
        rows = rows_of(dataloader)
        if rows is not None:
            return rows
        return len(dataloader) * self.args.per_device_train_batch_size

    def _eval_loader(self, dataset: Any, argument: str) -> Loader:
        check_dataset(dataset, argument)
        order, rows = None, None
        if processes.count() > 1 and not self.split_by_node and not is_stream(dataset):
            part = np.arange(len(dataset))[processes.part_of(len(dataset))]
            order, rows = (lambda _: part), len(part)
        return Loader(
            dataset,
            self.args.per_device_eval_batch_size * parallel.process_core_count(),
            self._collator,
            order=order,
            rows=rows,
            pad_token_id=self._pad_token_id,
            only_used=self.args.remove_unused_columns,
        )

    def _select_eval_dataset(self, eval_dataset: Any) -> Any:
        if isinstance(eval_dataset, str):
            return named(self.eval_dataset, eval_dataset, "eval_dataset")
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise ValueError(
                "evaluate() needs an eval_dataset; pass one to evaluate() or to the trainer"
            )
        return eval_dataset

    def _warn_of_leakage(self, eval_dataset: Any) -> None:
        """Warn of validation questions about contexts of the training set, once for each data set.

        Args:
            eval_dataset: a data set, or a dict of several.
        """
        if isinstance(eval_dataset, Mapping):
            for dataset in eval_dataset.values():
                self._warn_of_leakage(dataset)
            return
        for name in ("train_dataset", "extra_train_dataset"):
            self._warn_of_shared(name, getattr(self, name, None), eval_dataset)

    def _warn_of_shared(self, name: str, train_dataset: Any, eval_dataset: Any) -> None:
        pair = train_dataset, eval_dataset
        if not self.warns_of_leakage or any(part is None for part in pair):
            return
        is_part = self.split_by_node and processes.count() > 1
        if is_part or not processes.is_main():
            return
        if any(train is pair[0] and other is pair[1] for train, other in self._compared_datasets):
            return
        self._compared_datasets = (*self._compared_datasets, pair)
        if (line := describe_shared_windows(*pair)) is not None:
            logger.warning("%s%s", "" if name == "train_dataset" else f"{name}: ", line)

    # ---- the evaluation loop ---------------------------------------------------------------------

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str = "",
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute logits, loss and metrics of all rows of a loader.

        Args:
            dataloader: from `get_eval_dataloader` or `get_test_dataloader`, or any other loader of
                batches with `input_ids`, `attention_mask` and, for the loss, labels.
            description: accepted for compatibility and ignored.
            prediction_loss_only: return neither logits nor metrics of them; None: as in the
                arguments.
            ignore_keys: accepted for compatibility and ignored: these models return only start and
                end logits.
            metric_key_prefix: what the names of the metrics begin with.

        Returns:
            transformers' `EvalLoopOutput`. `predictions`: start and end logits, float32 [N, L]
            each, in the order of the loader. `label_ids`: start and end positions, int32 [N] each,
            or None. `metrics`: the mean loss, if there are labels, and those of `compute_metrics`.
            `num_samples`: N.

        Raises:
            ValueError: the loader has no rows, or they cannot be used.
        """
        args = self.args
        loss_only = (
            args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        )
        compute_metrics = None if loss_only else self.compute_metrics
        wants_inputs = compute_metrics is not None and "inputs" in args.include_for_metrics
        prefix = metric_key_prefix
        result = self._run_evaluation(dataloader, prefix, wants_inputs=wants_inputs)
        if loss_only:
            return EvalLoopOutput(None, None, result.metrics, result.windows)  # pyright: ignore[reportArgumentType]
        metrics = result.metrics
        if compute_metrics is not None and result.labels is not None:
            extras: dict[str, Any] = {"inputs": result.input_ids} if wants_inputs else {}
            if "loss" in args.include_for_metrics:
                extras["losses"] = result.losses
            prediction = EvalPrediction(result.logits, result.labels, **extras)
            metrics = with_prefix(compute_metrics(prediction), prefix) | metrics
        return EvalLoopOutput(result.logits, result.labels, metrics, result.windows)

    def prediction_loop(
        self,
        dataloader: Any,
        description: str = "",
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute what `evaluation_loop` does; its name in transformers 3."""
        return DataLoading.evaluation_loop(
            self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )

    def _call_loop(
        self, loader: Any, description: str, prefix: str, loss_only: bool | None, ignore_keys: Any
    ) -> EvalLoopOutput:
        """Run the evaluation loop, which a subclass may have replaced."""
        is_legacy = getattr(self.args, "use_legacy_prediction_loop", False)
        loop = self.prediction_loop if is_legacy else self.evaluation_loop
        return loop(
            loader,
            description=description,
            prediction_loss_only=loss_only,
            ignore_keys=ignore_keys,
            metric_key_prefix=prefix,
        )

    def _is_loop_replaced(self) -> bool:
        is_legacy = getattr(self.args, "use_legacy_prediction_loop", False)
        return is_replaced(self, "prediction_loop" if is_legacy else "evaluation_loop")

    def _speed(self, prefix: str, started: float, windows: int) -> dict[str, float]:
        """The time since `started`, and windows and steps a second."""
        rows = self.args.per_device_eval_batch_size * parallel.core_count()
        return speed_metrics(prefix, started, windows, math.ceil(windows / rows))

    def _run_evaluation(
        self,
        loader: Any,
        prefix: str,
        search_settings: SearchSettings | None = None,
        *,
        gather: bool = True,
        wants_inputs: bool = False,
        on_candidates: OnCandidates | None = None,
    ) -> EvaluationResult:
        function = self.preprocess_logits_for_metrics
        settings = search_settings if function is None else None
        result = self._evaluator.run(
            loader,
            prefix,
            settings,
            gather=gather,
            wants_inputs=wants_inputs,
            on_candidates=on_candidates,
        )
        self.nonfinite_windows[prefix] = result.nonfinite
        if function is None:
            return result
        rows = self.args.per_device_eval_batch_size * parallel.process_core_count()
        logits = preprocess_logits(function, result.logits, result.labels, rows)
        return result._replace(logits=logits)


def check_train_dataset(dataset: Any, args: transformers.TrainingArguments) -> None:
    """Refuse a training set that is no data set, or a stream without `max_steps`.

    Raises:
        ValueError: says what the training set may be, or which arguments a stream needs.
    """
    check_dataset(dataset, "train_dataset")
    if not is_stream(dataset):
        return
    if args.max_steps <= 0:
        raise ValueError(
            f"train_dataset is a stream ({type(dataset).__name__}), whose length is not known: set "
            "max_steps to the number of updates"
        )
    if (count := getattr(args, "eval_train_samples", 0)) > 0:
        raise ValueError(
            f"eval_train_samples={count} chooses questions among all rows of the training set, "
            f"which a stream ({type(dataset).__name__}) does not have. Set it to 0 and, to see the "
            "metrics of training questions, pass eval_dataset as a dict with some of them beside "
            "the evaluation set"
        )
    if args.train_sampling_strategy == "group_by_length":
        raise ValueError(
            "train_sampling_strategy='group_by_length' needs the lengths of all rows, which a "
            f"stream ({type(dataset).__name__}) does not have; leave it out"
        )


def check_eval_dataset(dataset: Any) -> None:
    """Refuse an evaluation set that is neither a data set nor a dict of data sets.

    Raises:
        ValueError: says what it may be.
    """
    if isinstance(dataset, Mapping):
        for name, part in dataset.items():
            check_dataset(part, f"eval_dataset[{name!r}]")
    elif dataset is not None:
        check_dataset(dataset, "eval_dataset")


def named(datasets: Any, name: str, argument: str) -> Any:
    """The data set (or the examples) of that name in a dict that the trainer was given.

    Raises:
        ValueError: names those that it has.
    """
    if not isinstance(datasets, Mapping) or name not in datasets:
        names = ", ".join(map(repr, datasets)) if isinstance(datasets, Mapping) else "no names"
        raise ValueError(f"evaluate({name!r}): the trainer's {argument} has {names}")
    return datasets[name]
