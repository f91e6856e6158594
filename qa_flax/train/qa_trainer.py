"""`QuestionAnsweringTrainer`: turns logits into answers before computing metrics (host)."""

import inspect
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import datasets
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from qa_flax import storage
from qa_flax.answers.spans import SearchSettings
from qa_flax.answers.written import WrittenAnswers, noting_answers
from qa_flax.distributed import processes
from qa_flax.distributed.exchange import broadcast_from_main
from qa_flax.train.answers_ahead import AnswersAhead, runs_ahead
from qa_flax.train.evaluation import Dataset, EvaluationResult, prediction_output, with_prefix
from qa_flax.train.evaluation_record import leave_records
from qa_flax.train.loading import named
from qa_flax.train.plan import output_dir
from qa_flax.train.prediction import OnCandidates
from qa_flax.train.train_sample import PREFIX as TRAIN_PREFIX
from qa_flax.train.train_sample import TrainSample, missing_for_answers, select_examples
from qa_flax.train.trainer import Trainer


class QuestionAnsweringTrainer(Trainer):
    """A `Trainer` that turns the logits into answers, and computes metrics of the answers.

    It follows Hugging Face's class of this name (`trainer_qa.py` of the question-answering
    example), except that with several processes every process gets the metrics.

    Args:
        *args: as of `Trainer`.
        eval_examples: the examples whose windows are in `eval_dataset`; a dict with the same names
            if `eval_dataset` is one.
        post_process_function: called as `(examples, windows, (start_logits, end_logits))`, with
            float32 [N, L] logits; returns an `EvalPrediction` of answers and references. If it has
            a fourth parameter, `predict` passes "predict" for it, as Hugging Face's class does.
        search_settings: copy only the best tokens that this search needs from the cores to the
            host: at 384 tokens a tenth of the bytes. `post_process_function` then gets
            `spans.Candidates` instead of logits, which `postprocess_qa_predictions` accepts, too.
            None: copy all logits. A function with the attribute `runs_ahead = True` is then called
            in another thread while the cores still compute: reading the candidates with this
            package's functions waits for those that have not arrived.
        train_examples: the examples that `train_dataset` was made from, for the answers to the
            training questions that `eval_train_samples` evaluates. `post_process_function` is then
            called for them, too, with "train" if it has a fourth parameter. `augment` and
            `paraphrases` change these examples anew for each epoch; they need `processing_class`.
        extra_train_dataset: windows of another training set, from `prepare_train_features`, of
            which the share `extra_train_ratio` of each epoch's batches is.
        candidates: deprecated name of `search_settings`.
        **kwargs: as of `Trainer`.

    Example:
        >>> import qa_flax
        >>> from transformers import AutoTokenizer, EvalPrediction
        >>> tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        >>> examples = qa_flax.load_examples("dev-v1.1.json")
        >>> windows = qa_flax.prepare_validation_features(examples, tokenizer, 128, 32)
        >>> trainer = qa_flax.QuestionAnsweringTrainer(
        ...     qa_flax.AutoModelForQuestionAnswering.from_pretrained("bert-base-uncased"),
        ...     post_process_function=lambda examples, windows, logits: EvalPrediction(
        ...         qa_flax.postprocess_qa_predictions(examples, windows, logits), None),
        ...     compute_metrics=lambda scored: {"answers": len(scored.predictions)})
        >>> trainer.predict(windows, examples).metrics["test_answers"]
        12
    """

    def __init__(
        self,
        *args: Any,
        eval_examples: Any = None,
        post_process_function: Callable[..., EvalPrediction] | None = None,
        search_settings: SearchSettings | None = None,
        candidates: SearchSettings | None = None,
        train_examples: Any = None,
        extra_train_dataset: Any = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.eval_examples, self.train_examples = eval_examples, train_examples
        self.extra_train_dataset = extra_train_dataset
        self.post_process_function = post_process_function
        if candidates is not None:
            message = "candidates is deprecated; use search_settings instead"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            search_settings = candidates if search_settings is None else search_settings
        if search_settings is not None and self.preprocess_logits_for_metrics is not None:
            raise ValueError(
                "preprocess_logits_for_metrics needs all logits, but search_settings copies only "
                "the best tokens to the host; pass one of them"
            )
        self.search_settings = search_settings

    # The order of the arguments of evaluate and predict is Hugging Face's, not the base class's.
    def evaluate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        eval_dataset: Dataset | Mapping[str, Dataset] | str | None = None,
        eval_examples: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, Any]:
        """Compute `compute_metrics` of the answers, and the loss if the windows have labels.

        Without `post_process_function` or `compute_metrics` it computes only the loss and the
        speed.

        Args:
            eval_dataset: windows, a dict of several data sets, or the name of one in the trainer's
                dict; None: the trainer's.
            eval_examples: the examples whose windows they are, or a dict of them; None: the
                trainer's.
            ignore_keys: accepted for compatibility and ignored.
            metric_key_prefix: what the names of the metrics begin with.

        Returns:
            The metrics, such as `eval_f1`, `eval_loss`, the times and the speeds. For a dict of
            data sets: `eval_<name>_f1` and so on for each.

        Raises:
            ValueError: a data set or its examples are missing, or there are no windows.
        """
        eval_data = self._select_eval_dataset(eval_dataset)
        examples = self.eval_examples if eval_examples is None else eval_examples
        if isinstance(eval_dataset, str) and eval_examples is None and examples is not None:
            examples = named(examples, eval_dataset, "eval_examples")
        train_metrics = self._train_metrics(eval_dataset)
        if isinstance(eval_data, Mapping):
            metrics = self._log_before_several(train_metrics)
            return metrics | self._evaluate_each(eval_data, examples, metric_key_prefix)
        self._warn_of_leakage(eval_data)
        output = self._evaluate_answers(examples, eval_data, metric_key_prefix)
        return self._report((output.metrics or {}) | train_metrics)

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
        """Compute the answers of the examples, and their metrics as `evaluate` does.

        Args:
            predict_dataset: N windows; labels are optional.
            predict_examples: the examples whose windows they are.
            ignore_keys: accepted for compatibility and ignored.
            metric_key_prefix: what the names of the metrics begin with.
            test_dataset: accepted instead of `predict_dataset`.
            test_examples: accepted instead of `predict_examples`.

        Returns:
            `predictions` and `label_ids`: the answers and references that `post_process_function`
            returns. Without it or `compute_metrics`: start and end logits, float32 [N, L] each,
            and start and end positions, int32 [N] each, or None. `metrics`: a dict.

        Raises:
            ValueError: the data set or the examples are missing, or there are no windows.
        """
        dataset = test_dataset if predict_dataset is None else predict_dataset
        examples = test_examples if predict_examples is None else predict_examples
        if dataset is None:
            raise ValueError("predict() needs a predict_dataset (or test_dataset) of windows")
        output = self._evaluate_answers(examples, dataset, metric_key_prefix, "predict")
        self._events.notify("on_predict", output.metrics)
        return output

    def _evaluate_each(
        self, eval_datasets: Mapping[str, Dataset], examples: Any, prefix: str
    ) -> dict[str, Any]:
        missing = sorted(eval_datasets.keys() - (examples or {}).keys())
        if missing and self.post_process_function is not None:
            raise ValueError(
                f"eval_dataset is a dict with the names {', '.join(eval_datasets)}; eval_examples "
                f"must be a dict with the same names, but has no {', '.join(missing)}"
            )
        metrics: dict[str, Any] = {}
        for name, dataset in eval_datasets.items():
            dataset_examples = None if examples is None else examples.get(name)
            metrics |= self.evaluate(
                dataset, dataset_examples, metric_key_prefix=f"{prefix}_{name}"
            )
        return metrics

    def _sample_metrics(self, sample: TrainSample) -> dict[str, Any]:
        is_scored = self._scores_answers()
        missing = missing_for_answers(sample, self.train_examples) if is_scored else None
        if is_scored and missing is None:
            examples = select_examples(self.train_examples, sample.ids or [])
            output = self._evaluate_answers(examples, sample.dataset, TRAIN_PREFIX, TRAIN_PREFIX)
            return output.metrics or {}
        self._events.warn_once("eval_train_samples", missing)
        stage = (TRAIN_PREFIX,)
        result = self._logits_of(sample.dataset, TRAIN_PREFIX, stage, is_raw=False, gather=False)
        return broadcast_from_main("metrics", result.metrics)

    def _scores_answers(self) -> bool:
        has_functions = self.post_process_function is not None and self.compute_metrics is not None
        return has_functions and not self.args.prediction_loss_only

    def _evaluate_answers(
        self, examples: Any, dataset: Dataset, prefix: str, *stage: str
    ) -> PredictionOutput:
        """Windows -> logits -> answers -> metrics, together with the loss and the speed."""
        post_process, compute_metrics = self.post_process_function, self.compute_metrics
        # Without post-processing the caller gets the logits, so they must be complete.
        started = time.time()
        if post_process is None or compute_metrics is None or self.args.prediction_loss_only:
            is_raw = post_process is None or compute_metrics is None
            result = self._logits_of(dataset, prefix, stage, is_raw=is_raw, gather=True)
            metrics = result.metrics | self._speed(prefix, started, result.windows)
            metrics = broadcast_from_main("metrics", metrics)
            return prediction_output(result.logits, result.labels, metrics)
        if examples is None:
            raise ValueError(
                "post_process_function needs the examples that the windows were cut from; pass "
                "eval_examples to evaluate() or the trainer, or predict_examples to predict()"
            )
        gather = not self._shard.is_split
        stages = stage if _accepts(post_process, 3 + len(stage)) else ()
        folder = output_dir(self.args)
        if processes.is_main() and not storage.is_remote(folder):
            # The function may write the answers there. In transformers the folder exists by then.
            storage.make_folder(folder)

        written: list[WrittenAnswers] = []

        def search(logits: Any) -> EvalPrediction:
            with noting_answers() as noted:
                scored = post_process(examples, dataset, logits, *stages)
            written.extend(noted)
            return scored

        with AnswersAhead(search) as ahead:
            on_candidates = ahead.begin if runs_ahead(post_process) else None
            result = self._logits_of(
                dataset, prefix, stage, is_raw=False, gather=gather, on_candidates=on_candidates
            )
            loop_metrics = result.metrics | self._speed(prefix, started, result.windows)
            started = time.time()
            scored = ahead.result() if ahead.has_begun else search(result.logits)
        model_name = getattr(self.model.config, "name_or_path", None)
        leave_records(written, scored.label_ids, examples, model_name)
        count = self._shard.total_examples(len(examples))
        scored = self._shard.gather_answers(scored)
        metrics = with_prefix(compute_metrics(scored), prefix) | loop_metrics
        seconds = time.time() - started
        total_seconds = seconds + metrics[f"{prefix}_runtime"]
        metrics[f"{prefix}_post_processing_time"] = round(seconds, 4)
        metrics[f"{prefix}_examples_per_second"] = round(count / max(total_seconds, 1e-9), 3)
        metrics = broadcast_from_main("metrics", metrics)
        return prediction_output(scored.predictions, scored.label_ids, metrics)

    def _logits_of(
        self,
        dataset: Dataset,
        prefix: str,
        stage: tuple[str, ...],
        *,
        is_raw: bool,
        gather: bool,
        on_candidates: OnCandidates | None = None,
    ) -> EvaluationResult:
        """Run the evaluation loop without `compute_metrics`, which takes answers here."""
        loader = self._loader_of(dataset, *stage)
        if not self._is_loop_replaced():
            settings = None if is_raw else self.search_settings
            return self._run_evaluation(
                loader, prefix, settings, gather=gather, on_candidates=on_candidates
            )
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        description = "Prediction" if stage == ("predict",) else "Evaluation"
        try:
            output = self._call_loop(loader, description, prefix, None, None)
        finally:
            self.compute_metrics = compute_metrics
        metrics, count = output.metrics or {}, output.num_samples or 0
        logits, labels = output.predictions, output.label_ids
        return EvaluationResult(logits, labels, None, (), metrics, count, None)

    def _loader_of(self, dataset: Dataset, stage: str = "eval") -> Any:
        if stage == "eval":
            return self.get_eval_dataloader(dataset)
        if stage == "predict":
            return self.get_test_dataloader(dataset)
        return self._eval_loader(dataset, "train_dataset")


def _accepts(function: Callable, positional: int) -> bool:
    """Whether `function` can be called with this number of positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * positional)
    except TypeError:
        return False
    return True
