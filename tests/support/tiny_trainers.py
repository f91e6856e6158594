"""Build trainers of tiny models, and compare two finished runs."""

import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import tiny
from flax import nnx
from transformers.trainer_utils import EvalPrediction

from qa_flax import (
    LoraConfig,
    QuestionAnsweringTrainer,
    Trainer,
    TrainingArguments,
    get_peft_model,
    postprocess_qa_predictions,
    prepare_train_features,
    prepare_validation_features,
    squad_metric,
)
from qa_flax.train import checkpoints
from qa_flax.train.training_set import Sources, training_set

WINDOW = {"max_seq_length": 64, "doc_stride": 16}
# What `early_stopping_patience` sets by default.
SET_BY_PATIENCE = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": False,
}
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
# For runs whose weights are looked at after each update.
UPDATES = 2
WATCHED = {
    "max_steps": UPDATES,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",  # runs of different max_steps share their first updates
    "weight_decay": 0.01,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": UPDATES,
    "save_strategy": "steps",
    "save_steps": UPDATES,
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


def base_model():
    return tiny.model(initializer_range=0.05, hidden_dropout_prob=0.2)


def model_with_adapters():
    config = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1)
    return get_peft_model(base_model(), config)


def watched_windows():
    """Labelled windows for `watched_trainer`."""
    return prepare_train_features(
        tiny.examples(answerable=True), tiny.tokenizer(), disable_tqdm=True, **WINDOW
    )


def watched_trainer(folder, model, windows, callbacks=None, **changes):
    """A trainer with the arguments `WATCHED`, which evaluates five windows."""
    return Trainer(
        model,
        arguments(folder, **(WATCHED | changes)),
        train_dataset=windows,
        eval_dataset=windows.select(range(5)),
        callbacks=callbacks,
    )


def values(model):
    """All variables of the model as NumPy arrays, by path."""
    state = nnx.to_flat_state(nnx.state(model))
    return {path: np.array(variable[...]) for path, variable in state}


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


def copy_until(folder, copy, step):
    """Copy the output folder of a run as it was after `step`."""
    shutil.copytree(folder, copy)
    for path in copy.glob("checkpoint-*"):
        if int(path.name.partition("-")[2]) > step:
            shutil.rmtree(path)


def training_set_of(trainer):
    """The training set as `train` sees it."""
    sources = Sources(trainer.train_examples, trainer.processing_class, trainer.extra_train_dataset)
    loader = trainer.get_train_dataloader()
    return training_set(
        loader, trainer.model, trainer.args, sources, takes_extras=False, obstacle=None
    )
