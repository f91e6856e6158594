"""The part of `Trainer` that evaluates training questions beside the evaluation set (host)."""

from typing import Any

from qa_flax.distributed.exchange import broadcast_from_main
from qa_flax.train.evaluation import DatasetShard
from qa_flax.train.loading import DataLoading, check_train_dataset
from qa_flax.train.train_sample import PREFIX, TrainSample, TrainSampler, metrics_to_log


class TrainQuestions(DataLoading):
    """The part of `Trainer` for `eval_train_samples`; see there for the arguments."""

    _shard: DatasetShard
    _sampler: TrainSampler | None = None

    train_examples: Any = None
    """The examples that the training set was made from (`QuestionAnsweringTrainer`)."""
    extra_train_dataset: Any = None
    """Another training set, of which a share of the batches is (`QuestionAnsweringTrainer`)."""

    def _report_unused_samples(self) -> None:
        """Warn before a training during which `eval_train_samples` has no effect."""
        if getattr(self.args, "eval_train_samples", 0) and self.args.eval_strategy == "no":
            message = (
                "eval_strategy='no' evaluates nothing during the training; eval_strategy='epoch' "
                "shows the training questions after each epoch"
            )
            self._events.warn_once("eval_train_samples", message)

    def _train_metrics(self, eval_dataset: Any) -> dict[str, Any]:
        """The metrics of `eval_train_samples` training questions with the weights of the moment.

        They are computed before those of the evaluation set, so that files that post-processing
        writes and what callbacks see (`eval_dataloader`) are those of the evaluation set.

        Args:
            eval_dataset: as `evaluate` got it; {} is returned unless it is the trainer's own.
        """
        count = getattr(self.args, "eval_train_samples", 0)
        is_own = eval_dataset is None or eval_dataset is self.eval_dataset
        if count <= 0 or not (is_own or isinstance(eval_dataset, str)):
            return {}
        if self.train_dataset is None:
            message = "the trainer has no train_dataset, so there are no metrics of its questions"
            self._events.warn_once("eval_train_samples", message)
            return {}
        check_train_dataset(self.train_dataset, self.args)
        self._sampler = self._sampler or TrainSampler()
        sample = self._sampler.sample(self.train_dataset, count, self.args.seed)
        shard, self._shard = self._shard, DatasetShard(is_split=False)  # each process has them all
        try:
            return metrics_to_log(self._sample_metrics(sample))
        except Exception as error:
            error.add_note(
                f"This happened while the training questions of eval_train_samples={count} were "
                "evaluated. 0 evaluates none."
            )
            raise
        finally:
            self._shard = shard

    def _sample_metrics(self, sample: TrainSample) -> dict[str, Any]:
        """The metrics of training questions, in every process the main one's."""
        loader = self._eval_loader(sample.dataset, "train_dataset")
        loss_only = True if self.compute_metrics is None else None
        output = self._call_loop(loader, "Evaluation", PREFIX, loss_only, None)
        return broadcast_from_main("metrics", dict(output.metrics or {}))

    def _log_before_several(self, train_metrics: dict[str, Any]) -> dict[str, Any]:
        """Log the training questions' metrics once, before those of several evaluation sets."""
        if train_metrics:
            self.log(dict(train_metrics))
        return train_metrics
