"""Scripts' own copies of `trainer_qa.py`, in today's form and in that of the LoRA repository.

They are subclasses of `Trainer` here, as they are subclasses of transformers' Trainer there, and
must give what `QuestionAnsweringTrainer` gives.
"""

import math
import time

import datasets
import pytest
import tiny
from tiny_trainers import WINDOW, arguments, compute_metrics, post_process
from transformers import default_data_collator
from transformers.trainer_utils import PredictionOutput, speed_metrics

from qa_flax import (
    QuestionAnsweringTrainer,
    Trainer,
    prepare_train_features,
    prepare_validation_features,
)


class TodaysForm(Trainer):
    """Evaluates with `get_eval_dataloader` and `evaluation_loop`."""

    def __init__(self, *args, eval_examples=None, post_process_function=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function

    def run_loop(self, dataloader, description, prefix, ignore_keys):
        compute_metrics = self.compute_metrics
        self.compute_metrics = None
        loop = self.evaluation_loop
        if self.args.use_legacy_prediction_loop:
            loop = self.prediction_loop
        started = time.time()
        try:
            output = loop(
                dataloader,
                description=description,
                prediction_loss_only=True if compute_metrics is None else None,
                ignore_keys=ignore_keys,
                metric_key_prefix=prefix,
            )
        finally:
            self.compute_metrics = compute_metrics
        rows = self.args.eval_batch_size * self.args.world_size
        steps = math.ceil(output.num_samples / rows)
        output.metrics.update(speed_metrics(prefix, started, output.num_samples, steps))
        return output

    def scores(self, examples, dataset, output, prefix, *stage):
        scored = self.post_process_function(examples, dataset, output.predictions, *stage)
        metrics = self.compute_metrics(scored)
        for key in list(metrics):
            if not key.startswith(f"{prefix}_"):
                metrics[f"{prefix}_{key}"] = metrics.pop(key)
        metrics.update(output.metrics)
        return scored, metrics

    def evaluate(self, eval_dataset=None, eval_examples=None, ignore_keys=None, prefix="eval"):
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        loader = self.get_eval_dataloader(eval_dataset)
        examples = self.eval_examples if eval_examples is None else eval_examples
        output = self.run_loop(loader, "Evaluation", prefix, ignore_keys)
        metrics = output.metrics
        has_functions = self.post_process_function is not None and self.compute_metrics is not None
        if has_functions and self.args.should_save:
            _, metrics = self.scores(examples, eval_dataset, output, prefix)
        if self.args.should_log:
            self.log(metrics)
        if self.args.tpu_metrics_debug or self.args.debug:
            raise AssertionError("needs torch_xla")
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def predict(self, predict_dataset, predict_examples, ignore_keys=None, prefix="test"):
        loader = self.get_test_dataloader(predict_dataset)
        output = self.run_loop(loader, "Prediction", prefix, ignore_keys)
        if self.post_process_function is None or self.compute_metrics is None:
            return output
        scored, metrics = self.scores(predict_examples, predict_dataset, output, prefix)
        return PredictionOutput(scored.predictions, scored.label_ids, metrics)


class LoraForm(Trainer):
    """Evaluates with `prediction_loop`, and restores all columns with `set_format`."""

    def __init__(self, *args, eval_examples=None, post_process_function=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_examples = eval_examples
        self.post_process_function = post_process_function

    def run_loop(self, dataloader, description, dataset, ignore_keys):
        compute_metrics = self.compute_metrics
        self.compute_metrics = None
        try:
            output = self.prediction_loop(
                dataloader,
                description=description,
                prediction_loss_only=True if compute_metrics is None else None,
                ignore_keys=ignore_keys,
            )
        finally:
            self.compute_metrics = compute_metrics
        if isinstance(dataset, datasets.Dataset):
            columns = list(dataset.features.keys())
            dataset.set_format(type=dataset.format["type"], columns=columns)
        return output

    def evaluate(self, eval_dataset=None, eval_examples=None, ignore_keys=None):
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        loader = self.get_eval_dataloader(eval_dataset)
        examples = self.eval_examples if eval_examples is None else eval_examples
        output = self.run_loop(loader, "Evaluation", eval_dataset, ignore_keys)
        metrics = {}
        if self.post_process_function is not None and self.compute_metrics is not None:
            scored = self.post_process_function(examples, eval_dataset, output.predictions)
            metrics = self.compute_metrics(scored)
            self.log(metrics)
        if self.args.tpu_metrics_debug or self.args.debug:
            raise AssertionError("needs torch_xla")
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def predict(self, test_dataset, test_examples, ignore_keys=None):
        loader = self.get_test_dataloader(test_dataset)
        output = self.run_loop(loader, "Evaluation", test_dataset, ignore_keys)
        if self.post_process_function is None or self.compute_metrics is None:
            return output
        scored = self.post_process_function(test_examples, test_dataset, output.predictions)
        return PredictionOutput(scored.predictions, scored.label_ids, self.compute_metrics(scored))


@pytest.mark.parametrize("form", [TodaysForm, LoraForm])
def test_an_own_copy_gives_what_the_packages_trainer_gives(tmp_path, form):
    tokenizer, examples = tiny.tokenizer(), tiny.examples(answerable=True)

    def trainer(cls):
        changes = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 2}
        changes |= {"metric_for_best_model": "f1", "load_best_model_at_end": True}
        if form is LoraForm:  # its metrics have no prefix, so no best model can be told
            changes = {"eval_strategy": "epoch", "num_train_epochs": 2}
        return cls(
            model=tiny.model(),
            args=arguments(tmp_path / cls.__name__, learning_rate=1e-2, **changes),
            train_dataset=prepare_train_features(examples, tokenizer, **WINDOW),
            eval_dataset=prepare_validation_features(examples, tokenizer, **WINDOW),
            eval_examples=examples,
            processing_class=tokenizer,
            data_collator=default_data_collator,
            post_process_function=post_process,
            compute_metrics=compute_metrics,
        )

    ours, own = trainer(QuestionAnsweringTrainer), trainer(form)
    for each in (ours, own):
        each.train()
    expected, actual = ours.evaluate(), own.evaluate()
    prefix = "" if form is LoraForm else "eval_"
    for name in ("exact_match", "f1"):
        assert actual[f"{prefix}{name}"] == expected[f"eval_{name}"]
    if form is TodaysForm:
        assert actual.keys() >= expected.keys() - {
            *("eval_post_processing_time", "eval_examples_per_second", "epoch")
        }
        assert own.state.best_metric == ours.state.best_metric
    windows = ours.eval_dataset
    assert own.predict(windows, examples).predictions == ours.predict(windows, examples).predictions
    logged = [e[f"{prefix}f1"] for e in own.state.log_history if f"{prefix}f1" in e]
    assert logged == [e["eval_f1"] for e in ours.state.log_history if "eval_f1" in e]
