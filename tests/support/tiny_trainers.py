"""Build trainers of tiny models, and compare two finished runs."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tiny
from flax import nnx
from transformers.trainer_utils import EvalPrediction

from qa_flax import (
    QuestionAnsweringTrainer,
    TrainingArguments,
    postprocess_qa_predictions,
    prepare_train_features,
    prepare_validation_features,
    squad_metric,
)
from qa_flax.train import checkpoints

WINDOW = {"max_seq_length": 64, "doc_stride": 16}
# For runs that are interrupted and resumed.
RUN = {
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 2,
    "num_train_epochs": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "weight_decay": 0.01,
}


def arguments(tmp_path, **changes):
    settings = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 2,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return TrainingArguments(**(settings | changes))


def post_process(examples, windows, logits):
    answers = postprocess_qa_predictions(examples, windows, logits)
    return EvalPrediction(
        predictions=[{"id": k, "prediction_text": v} for k, v in answers.items()],
        label_ids=[{"id": row["id"], "answers": row["answers"]} for row in examples],
    )


def compute_metrics(scored):
    return squad_metric(scored.predictions, scored.label_ids)


def trainer_in(folder, examples, tokenizer, callbacks=None, model=None, **changes):
    """A trainer that saves a checkpoint after every step, in `folder`."""
    return QuestionAnsweringTrainer(
        model=tiny.model(hidden_dropout_prob=0.2) if model is None else model,
        args=arguments(folder, **(RUN | changes)),
        train_dataset=prepare_train_features(examples, tokenizer, **WINDOW),
        eval_dataset=prepare_validation_features(examples, tokenizer, **WINDOW),
        eval_examples=examples,
        processing_class=tokenizer,
        post_process_function=post_process,
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )


def assert_same_run(expected, actual):
    """Two finished trainers have equal models, optimizer states, log histories and best models."""
    jax.tree.map(
        np.testing.assert_array_equal, *(nnx.split(t.model)[1] for t in (expected, actual))
    )
    states = []
    for trainer in (expected, actual):
        folder = checkpoints.find(True, Path(trainer.args.output_dir))
        with ocp.StandardCheckpointer() as checkpointer:
            states.append(checkpointer.restore((folder / "train_state").absolute()))
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) > 2 * 20
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name], err_msg=name)
    assert without_times(actual) == without_times(expected)
    for name in ("global_step", "epoch", "best_metric", "best_global_step", "max_steps"):
        assert getattr(actual.state, name) == getattr(expected.state, name), name


def without_times(trainer):
    times = ("runtime", "per_second", "_time")
    return [
        {k: v for k, v in logs.items() if not k.endswith(times)}
        for logs in trainer.state.log_history
    ]
