"""Extractive question answering in JAX/Flax on all TPU, GPU or CPU cores.

    SQuAD JSON, rows -> data/     host      examples, windows, batches [cores, B, L]
                        models/   device    input ids -> hidden states -> SpanLogits
                        device/   device    steps of one core, run on all cores
                        answers/  host      best spans, answer texts, files, EM and F1

`train/` combines these stages into a trainer with the API of Hugging Face's, and `answering/` into
the question answering pipeline that transformers 5.3 removed. `distributed/` joins
several processes, `storage.py` reads and writes buckets, and `commands/` has the subcommands of
`qa-flax`.

The public names below are imported when they are first used: `import qa_flax` is fast, and
preparing data and scoring answers does not import JAX.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Without this, transformers advises on import to install PyTorch, which qa_flax does not need.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

if TYPE_CHECKING:
    from transformers import EarlyStoppingCallback

    from qa_flax.answering.answerer import QuestionAnswerer
    from qa_flax.answering.pipeline import QuestionAnsweringPipeline, pipeline
    from qa_flax.answers.metrics import squad_metric
    from qa_flax.answers.postprocess import postprocess_qa_predictions
    from qa_flax.data.augment import augment_examples
    from qa_flax.data.clozes import make_clozes
    from qa_flax.data.examples import load_examples
    from qa_flax.data.features import prepare_train_features, prepare_validation_features
    from qa_flax.data.splits import fold_examples, split_examples
    from qa_flax.models.averaged import average_models
    from qa_flax.models.lora import LoraConfig, PeftModel, TaskType
    from qa_flax.models.model import AutoModelForQuestionAnswering, get_peft_model
    from qa_flax.models.output import QuestionAnsweringModelOutput
    from qa_flax.train.label_check import check_labels
    from qa_flax.train.learning_curves import learning_curves
    from qa_flax.train.qa_trainer import QuestionAnsweringTrainer
    from qa_flax.train.trainer import Trainer
    from qa_flax.train.training_arguments import TrainingArguments

if TYPE_CHECKING:
    # isort: off
    from qa_flax.models.flax_api import (
        FlaxAutoModelForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxAlbertForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxBartForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxBertForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxBigBirdForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxDistilBertForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxElectraForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxMBartForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxRoFormerForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxRobertaForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxRobertaPreLayerNormForQuestionAnswering,
        FlaxAutoModelForQuestionAnswering as FlaxXLMRobertaForQuestionAnswering,
    )
    from qa_flax.models.model import (
        AutoModelForQuestionAnswering as AlbertForQuestionAnswering,
        AutoModelForQuestionAnswering as BartForQuestionAnswering,
        AutoModelForQuestionAnswering as BertForQuestionAnswering,
        AutoModelForQuestionAnswering as BigBirdForQuestionAnswering,
        AutoModelForQuestionAnswering as CamembertForQuestionAnswering,
        AutoModelForQuestionAnswering as ConvBertForQuestionAnswering,
        AutoModelForQuestionAnswering as Data2VecTextForQuestionAnswering,
        AutoModelForQuestionAnswering as DebertaForQuestionAnswering,
        AutoModelForQuestionAnswering as DebertaV2ForQuestionAnswering,
        AutoModelForQuestionAnswering as DistilBertForQuestionAnswering,
        AutoModelForQuestionAnswering as ElectraForQuestionAnswering,
        AutoModelForQuestionAnswering as ErnieForQuestionAnswering,
        AutoModelForQuestionAnswering as LongformerForQuestionAnswering,
        AutoModelForQuestionAnswering as LukeForQuestionAnswering,
        AutoModelForQuestionAnswering as MBartForQuestionAnswering,
        AutoModelForQuestionAnswering as MPNetForQuestionAnswering,
        AutoModelForQuestionAnswering as MegatronBertForQuestionAnswering,
        AutoModelForQuestionAnswering as MobileBertForQuestionAnswering,
        AutoModelForQuestionAnswering as MT5ForQuestionAnswering,
        AutoModelForQuestionAnswering as ModernBertForQuestionAnswering,
        AutoModelForQuestionAnswering as RemBertForQuestionAnswering,
        AutoModelForQuestionAnswering as RoFormerForQuestionAnswering,
        AutoModelForQuestionAnswering as RobertaForQuestionAnswering,
        AutoModelForQuestionAnswering as RobertaPreLayerNormForQuestionAnswering,
        AutoModelForQuestionAnswering as SplinterForQuestionAnswering,
        AutoModelForQuestionAnswering as SqueezeBertForQuestionAnswering,
        AutoModelForQuestionAnswering as T5ForQuestionAnswering,
        AutoModelForQuestionAnswering as XLMRobertaForQuestionAnswering,
        AutoModelForQuestionAnswering as XLMRobertaXLForQuestionAnswering,
    )
    # isort: on

__version__ = "0.2.0"

__all__ = [
    "AlbertForQuestionAnswering",
    "AutoModelForQuestionAnswering",
    "BartForQuestionAnswering",
    "BertForQuestionAnswering",
    "BigBirdForQuestionAnswering",
    "CamembertForQuestionAnswering",
    "ConvBertForQuestionAnswering",
    "Data2VecTextForQuestionAnswering",
    "DebertaForQuestionAnswering",
    "DebertaV2ForQuestionAnswering",
    "DistilBertForQuestionAnswering",
    "EarlyStoppingCallback",
    "ElectraForQuestionAnswering",
    "ErnieForQuestionAnswering",
    "FlaxAlbertForQuestionAnswering",
    "FlaxAutoModelForQuestionAnswering",
    "FlaxBartForQuestionAnswering",
    "FlaxBertForQuestionAnswering",
    "FlaxBigBirdForQuestionAnswering",
    "FlaxDistilBertForQuestionAnswering",
    "FlaxElectraForQuestionAnswering",
    "FlaxMBartForQuestionAnswering",
    "FlaxRoFormerForQuestionAnswering",
    "FlaxRobertaForQuestionAnswering",
    "FlaxRobertaPreLayerNormForQuestionAnswering",
    "FlaxXLMRobertaForQuestionAnswering",
    "LongformerForQuestionAnswering",
    "LoraConfig",
    "LukeForQuestionAnswering",
    "MBartForQuestionAnswering",
    "MPNetForQuestionAnswering",
    "MT5ForQuestionAnswering",
    "MegatronBertForQuestionAnswering",
    "MobileBertForQuestionAnswering",
    "ModernBertForQuestionAnswering",
    "PeftModel",
    "QuestionAnswerer",
    "QuestionAnsweringModelOutput",
    "QuestionAnsweringPipeline",
    "QuestionAnsweringTrainer",
    "RemBertForQuestionAnswering",
    "RoFormerForQuestionAnswering",
    "RobertaForQuestionAnswering",
    "RobertaPreLayerNormForQuestionAnswering",
    "SplinterForQuestionAnswering",
    "SqueezeBertForQuestionAnswering",
    "T5ForQuestionAnswering",
    "TaskType",
    "Trainer",
    "TrainingArguments",
    "XLMRobertaForQuestionAnswering",
    "XLMRobertaXLForQuestionAnswering",
    "augment_examples",
    "average_models",
    "check_labels",
    "fold_examples",
    "get_peft_model",
    "learning_curves",
    "load_examples",
    "make_clozes",
    "pipeline",
    "postprocess_qa_predictions",
    "prepare_train_features",
    "prepare_validation_features",
    "split_examples",
    "squad_metric",
]

# The module that defines each public name.
_MODULES = {
    "EarlyStoppingCallback": "transformers",
    "LoraConfig": "qa_flax.models.lora",
    "PeftModel": "qa_flax.models.lora",
    "QuestionAnswerer": "qa_flax.answering.answerer",
    "QuestionAnsweringModelOutput": "qa_flax.models.output",
    "QuestionAnsweringPipeline": "qa_flax.answering.pipeline",
    "QuestionAnsweringTrainer": "qa_flax.train.qa_trainer",
    "TaskType": "qa_flax.models.lora",
    "Trainer": "qa_flax.train.trainer",
    "TrainingArguments": "qa_flax.train.training_arguments",
    "augment_examples": "qa_flax.data.augment",
    "average_models": "qa_flax.models.averaged",
    "check_labels": "qa_flax.train.label_check",
    "fold_examples": "qa_flax.data.splits",
    "get_peft_model": "qa_flax.models.model",
    "learning_curves": "qa_flax.train.learning_curves",
    "load_examples": "qa_flax.data.examples",
    "make_clozes": "qa_flax.data.clozes",
    "pipeline": "qa_flax.answering.pipeline",
    "postprocess_qa_predictions": "qa_flax.answers.postprocess",
    "prepare_train_features": "qa_flax.data.features",
    "prepare_validation_features": "qa_flax.data.features",
    "split_examples": "qa_flax.data.splits",
    "squad_metric": "qa_flax.answers.metrics",
}
# The model classes, for all families and for one each.
_MODULES |= {
    name: f"qa_flax.models.{'flax_api' if name.startswith('Flax') else 'model'}"
    for name in __all__
    if name.endswith("ForQuestionAnswering")
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value
    message = f"module {__name__!r} has no attribute {name!r}"
    if not name.startswith("_"):
        from difflib import get_close_matches

        if near := get_close_matches(name, __all__, n=1):
            message += f"; did you mean {near[0]!r}?"
    raise AttributeError(message, name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
