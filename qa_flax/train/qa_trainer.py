"""Hugging Face's `QuestionAnsweringTrainer`: logits become answers before they are scored."""

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

import datasets
from transformers.trainer_utils import EvalPrediction, PredictionOutput

from qa_flax.answers.spans import SearchSettings
from qa_flax.train.evaluation import Dataset, agreed, prediction_output, with_prefix
from qa_flax.train.trainer import Trainer


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
        candidates: SearchSettings | None = None,
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
        chosen = self._evaluation_set(eval_dataset)
        examples = self.eval_examples if eval_examples is None else eval_examples
        if isinstance(chosen, Mapping):
            return self._evaluate_each(chosen, examples, metric_key_prefix)
        scored = self._scored(examples, chosen, metric_key_prefix)
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
        self._events.notify("on_predict", scored.metrics)
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
            evaluated = self._evaluated(dataset, prefix, None if is_raw else self.candidates)
            return agreed(prediction_output(evaluated.logits, evaluated.labels, evaluated.metrics))
        if examples is None:
            raise ValueError(
                "post_process_function needs the examples that the windows were cut from; give "
                "eval_examples (or predict_examples)"
            )
        gather = not self._share.is_split
        evaluated = self._evaluated(dataset, prefix, self.candidates, gather=gather)
        stage = stage if _accepts(post_process, 3 + len(stage)) else ()
        started = time.time()
        scored = post_process(examples, dataset, evaluated.logits, *stage)
        count = self._share.whole_examples("examples", len(examples))
        scored = self._share.whole_answers(scored)
        metrics = with_prefix(compute(scored), prefix) | evaluated.metrics
        seconds = time.time() - started
        whole = seconds + metrics[f"{prefix}_runtime"]
        metrics[f"{prefix}_post_processing_time"] = round(seconds, 4)
        metrics[f"{prefix}_examples_per_second"] = round(count / max(whole, 1e-9), 3)
        return agreed(prediction_output(scored.predictions, scored.label_ids, metrics))


def _accepts(function: Callable, positional: int) -> bool:
    """Whether `function` can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*[None] * positional)
    except TypeError:
        return False
    return True
