"""Extractive question answering in JAX/Flax, on every core.

    SQuAD JSON, rows    examples.py     host      examples
                        features.py     host      windows
                        batches.py      host      [cores, B, L]
                        models/         device    hidden states -> SpanLogits
                        step.py         device    what one core does
                        parallel.py     device    all cores; put, gather
                        prediction.py   both      -> logits [N, L] or best tokens [N, C]
                        spans.py        host      the best spans
                        postprocess.py  host      answers, files
                        metrics.py      host      EM / F1

Data flows one way. `trainer.py` ties the stages together as the Hugging Face trainer contract,
`run.py` as `run_qa.py`'s job, `cli.py` as the command `qa-flax`.
"""

import os

# On import transformers advises to install PyTorch; that it is absent is as it should be here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from transformers import EarlyStoppingCallback

from qa_flax.answers.metrics import squad_metric
from qa_flax.answers.postprocess import postprocess_qa_predictions
from qa_flax.data.examples import load_examples
from qa_flax.data.features import prepare_train_features, prepare_validation_features
from qa_flax.models.lora import LoraConfig
from qa_flax.models.model import AutoModelForQuestionAnswering, get_peft_model
from qa_flax.train.qa_trainer import QuestionAnsweringTrainer
from qa_flax.train.trainer import Trainer
from qa_flax.train.training_arguments import TrainingArguments

__version__ = "0.1.0"

__all__ = [
    "AutoModelForQuestionAnswering",
    "EarlyStoppingCallback",
    "LoraConfig",
    "QuestionAnsweringTrainer",
    "Trainer",
    "TrainingArguments",
    "get_peft_model",
    "load_examples",
    "postprocess_qa_predictions",
    "prepare_train_features",
    "prepare_validation_features",
    "squad_metric",
]
