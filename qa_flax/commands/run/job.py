"""`run_qa.py`'s job: files in, fine-tune, evaluate, predict, files out."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalPrediction

from qa_flax import storage
from qa_flax.answers.files import spliced
from qa_flax.answers.metrics import squad_metric
from qa_flax.answers.postprocess import find_answers
from qa_flax.answers.spans import SearchSettings
from qa_flax.commands.arguments import DataArguments, DistributedArguments, ModelArguments
from qa_flax.commands.env.report import start
from qa_flax.commands.errors import usage_errors
from qa_flax.data.examples import load_examples
from qa_flax.data.features import make_windows
from qa_flax.data.windows import Windows
from qa_flax.device import parallel
from qa_flax.distributed import exchange, failure, preemption, processes
from qa_flax.models.lora import LoraConfig
from qa_flax.models.model import AutoModelForQuestionAnswering, get_peft_model
from qa_flax.train import checkpoints
from qa_flax.train.best import MetricError
from qa_flax.train.checkpoints import ResumeError
from qa_flax.train.plan import optimizer_bytes, output_dir
from qa_flax.train.qa_trainer import QuestionAnsweringTrainer
from qa_flax.train.training_arguments import TrainingArguments, check_training_arguments


def _data_names(data_args: DataArguments) -> dict[str, Any]:
    """What the model's card says of a data set of the hub, in run_qa.py's words."""
    name, config = data_args.dataset_name, data_args.dataset_config_name
    if name is None:
        return {}
    named = {"dataset_tags": name, "dataset": name if config is None else f"{name} {config}"}
    return named | ({} if config is None else {"dataset_args": config})


@dataclass(frozen=True)
class Stage:
    """One of train, eval, predict: this host's examples and windows; to train, all windows."""

    examples: datasets.Dataset
    windows: Windows
    count: int  # windows on all hosts


def run(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    host_args: DistributedArguments | None = None,
) -> dict[str, Any]:
    """Do what `--do_train`, `--do_eval` and `--do_predict` ask for; return all metrics.

    Raises:
        UsageError: a file, an argument, the data or the model cannot be used.
        ProcessError: the processes of several hosts do not come together.
        Preempted: SIGTERM has come; the same command goes on from what was saved.
    """
    # Until training starts, a wrong value or file is the user's to mend.
    with usage_errors(ValueError, OSError):
        start(DistributedArguments() if host_args is None else host_args)
    failure.end_together()
    with preemption.sigterm_handled():
        return _run(model_args, data_args, training_args)


def _run(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> dict[str, Any]:
    with usage_errors(ValueError, OSError):
        check_training_arguments(training_args)
        _check_work(data_args, training_args)
        trainer, stages = _prepare(model_args, data_args, training_args)
        if processes.is_main():
            output_dir(training_args).mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {}
    if training_args.do_train:
        metrics |= _train(trainer, stages["train"], data_args.accept_changes)
    if training_args.do_eval:
        metrics |= _evaluate(trainer, stages["eval"])
    if training_args.do_predict:
        metrics |= _predict(trainer, stages["predict"])
    trainer.save_state()
    trainer.create_model_card(
        finetuned_from=model_args.model_name_or_path, **_data_names(data_args)
    )
    # Before JAX's service ends, for which the others would wait less long.
    exchange.barrier("the end of the run")
    _say(f"Everything is in {training_args.output_dir}")
    return metrics


def make_post_processing(
    data_args: DataArguments, output_dir: str | None
) -> Callable[..., EvalPrediction]:
    """HF's `post_processing_function`: logits -> answers, files, what the scorer wants.

    In v2 the scorer gets each question's best span and its null odds, so that it finds the best
    threshold of all; HF's gives it the answers, and 0.0 for all odds, so it cannot.
    """
    settings = span_settings(data_args)
    compatible = settings.hf_compatible

    def post_process(examples, features, predictions, stage="eval") -> EvalPrediction:
        with _files_of_all(output_dir) as folder:
            found = find_answers(
                examples,
                features,
                predictions,
                settings,
                data_args.null_score_diff_threshold,
                output_dir=folder,
                prefix=stage,
            )
        # transformers' annotations know of arrays only; its QA scripts put lists here, too.
        formatted: Any
        if not settings.version_2_with_negative:
            formatted = [{"id": id_, "prediction_text": text} for id_, text in found.texts.items()]
        else:
            texts = found.texts if compatible else found.best_texts
            odds = dict.fromkeys(texts, 0.0) if compatible else found.null_odds
            formatted = [
                {"id": id_, "prediction_text": text, "no_answer_probability": odds[id_]}
                for id_, text in texts.items()
            ]
        references: Any = [{"id": e["id"], "answers": e["answers"]} for e in examples]
        return EvalPrediction(predictions=formatted, label_ids=references)

    return post_process


@contextmanager
def _files_of_all(output_dir: str | None) -> Iterator[str | None]:
    """A folder for the files of this host's answers; those of all hosts end up in `output_dir`."""
    if output_dir is None or processes.count() == 1:
        yield output_dir
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder
        for path in sorted(Path(folder).iterdir()):
            whole = spliced(exchange.all_gather_bytes(path.name, path.read_bytes()))
            if processes.is_main():
                storage.write_text(storage.path(output_dir) / path.name, whole.decode())


def span_settings(data_args: DataArguments) -> SearchSettings:
    """Which spans are kept, as the arguments say."""
    return SearchSettings(
        data_args.version_2_with_negative,
        data_args.n_best_size,
        data_args.max_answer_length,
        data_args.hf_compatible,
    )


def make_compute_metrics(data_args: DataArguments) -> Callable[[EvalPrediction], dict[str, Any]]:
    """EM and F1; nothing where no question of the set has a reference (a test set)."""
    hf_threshold = 1.0  # its odds are 0.0, so none is above
    own_threshold = data_args.null_score_diff_threshold

    def compute_metrics(scored: EvalPrediction) -> dict[str, Any]:
        if not any(reference["answers"]["text"] for reference in scored.label_ids):
            return {}
        return squad_metric(
            scored.predictions,
            scored.label_ids,
            version_2_with_negative=data_args.version_2_with_negative,
            no_answer_threshold=hf_threshold if data_args.hf_compatible else own_threshold,
        )

    return compute_metrics


# ---- before the work -----------------------------------------------------------------------------


def _check_work(data_args: DataArguments, training_args: TrainingArguments) -> None:
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        raise ValueError("nothing to do: give --do_train, --do_eval or --do_predict")
    for wanted, name in _STAGES.items():
        file = getattr(data_args, f"{name}_file")
        if getattr(training_args, f"do_{wanted}") and not (file or data_args.dataset_name):
            raise ValueError(f"--do_{wanted} needs --{name}_file or --dataset_name")


_STAGES = {"train": "train", "eval": "validation", "predict": "test"}


def _prepare(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> tuple[QuestionAnsweringTrainer, dict[str, Stage]]:
    hub = {"revision": model_args.model_revision, "token": model_args.token}
    hub["cache_dir"] = model_args.cache_dir
    source = model_args.model_name_or_path
    config = None
    if model_args.config_name is not None:
        config = AutoConfig.from_pretrained(_here(model_args.config_name), **hub)
    # The model first: a checkpoint that does not fit should not wait for the tokenising.
    with parallel.on_host() if training_args.shard_params else nullcontext():
        model = AutoModelForQuestionAnswering.from_pretrained(
            source,
            config=config,
            seed=training_args.seed,
            dtype="bfloat16" if training_args.bf16 else model_args.dtype,
            **hub,
        )
    if model_args.lora_r:
        model = get_peft_model(model, _lora_config(model_args), training_args.seed)
    tokenizer = AutoTokenizer.from_pretrained(_here(model_args.tokenizer_name or source), **hub)
    all_examples = {
        stage: _load(stage, model_args, data_args)
        for stage in _STAGES
        if getattr(training_args, f"do_{stage}")
    }
    stages = {}
    for stage, examples in all_examples.items():
        stages[stage] = _stage(stage, examples, tokenizer, data_args, training_args)
        preemption.check()
    trainer = QuestionAnsweringTrainer(
        model=model,
        args=training_args,
        train_dataset=stages["train"].windows if "train" in stages else None,
        eval_dataset=stages["eval"].windows if "eval" in stages else None,
        eval_examples=stages["eval"].examples if "eval" in stages else None,
        processing_class=tokenizer,
        post_process_function=make_post_processing(data_args, training_args.output_dir),
        compute_metrics=make_compute_metrics(data_args),
        candidates=span_settings(data_args) if data_args.gather == "topk" else None,
        split_by_node=True,
    )
    return trainer, stages


def _here(source: str) -> str:
    """A hub id or folder as it is, what is in a bucket as a copy on this machine."""
    return str(storage.local_copy(source)) if storage.is_remote(source) else source


def _lora_config(model_args: ModelArguments) -> LoraConfig:
    targets = (model_args.lora_target_modules or "").replace(",", " ").split()
    return LoraConfig(
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
    )


def _load(stage: str, model_args: ModelArguments, data_args: DataArguments) -> datasets.Dataset:
    split = _STAGES[stage]
    file = getattr(data_args, f"{split}_file")
    hub = {"cache_dir": model_args.cache_dir, "token": model_args.token}
    source = (
        {"source": file}
        if file
        else {
            "source": data_args.dataset_name,
            "config_name": data_args.dataset_config_name,
            "split": split,
            **hub,
        }
    )
    examples = load_examples(
        **source, misaligned=data_args.misaligned_answers, require_answers=stage == "train"
    )
    most = getattr(data_args, f"max_{stage}_samples")
    return examples if most is None else examples.select(range(min(most, len(examples))))


def _stage(
    stage: str,
    examples: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    training_args: TrainingArguments,
) -> Stage:
    """This host's part of the examples, and its windows.

    With labels wherever the data has answers, so that evaluation has a loss, too. An example's
    windows are all on one host. To train, every host gets the windows of all: which of them make a
    batch is then the same on any number of hosts.
    """
    labels = stage == "train" or any(answers["text"] for answers in examples["answers"])
    part = examples.select(np.arange(len(examples))[processes.part_of(len(examples))])
    windows = make_windows(
        part,
        tokenizer,
        max_seq_length=data_args.max_seq_length,
        doc_stride=data_args.doc_stride,
        labels=labels,
        pad_to_max_length=data_args.pad_to_max_length,
        long_questions=data_args.long_questions,
        disable_tqdm=bool(training_args.disable_tqdm) or not processes.is_main(),
    )
    found = exchange.all_gather_json(f"windows to {stage}", [windows.padded_length, len(windows)])
    lengths, counts = zip(*found, strict=True)
    windows = windows.padded_to(max(lengths))
    if stage == "train" and processes.count() > 1:
        windows = windows.joined(
            exchange.all_gather_arrays("training windows", windows.to_arrays())
        )
    return Stage(part, windows, sum(counts))


# ---- the work ------------------------------------------------------------------------------------


def _train(trainer: QuestionAnsweringTrainer, stage: Stage, accept_changes: bool) -> dict[str, Any]:
    trained, held = trainer.model.num_parameters(True), trainer.model.num_parameters()
    _say(
        f"Training {trained:,} of {held:,} parameters ({trained / held:.2%}); the optimizer's "
        f"state takes {optimizer_bytes(trainer.args, trainer.model):,} bytes on each core"
    )
    with usage_errors(ResumeError, MetricError):
        trained = trainer.train(_checkpoint(trainer.args), accept_changes=accept_changes)
    metrics = dict(trained.metrics, train_samples=stage.count)
    trainer.save_model()
    return _finish(trainer, "train", metrics)


def _checkpoint(args: Any) -> str | bool | None:
    """The one named, else the last in `output_dir`, so that a stopped command is just repeated."""
    if args.resume_from_checkpoint is not None:
        given = args.resume_from_checkpoint
        return {"true": True, "false": None}.get(str(given).lower(), given)
    if getattr(args, "overwrite_output_dir", False):
        return None
    last = None
    if processes.is_main():
        checkpoints.recover(output_dir(args))
        last = checkpoints.last(output_dir(args))
    last = exchange.broadcast_from_main("last checkpoint", None if last is None else str(last))
    if last is not None:
        _say(f"Going on from {last}; --overwrite_output_dir starts anew", sys.stderr)
    return last


def _evaluate(trainer: QuestionAnsweringTrainer, stage: Stage) -> dict[str, Any]:
    return _finish(trainer, "eval", dict(trainer.evaluate(), eval_samples=stage.count))


def _predict(trainer: QuestionAnsweringTrainer, stage: Stage) -> dict[str, Any]:
    output = trainer.predict(stage.windows, stage.examples, metric_key_prefix="predict")
    metrics = dict(output.metrics or {}, predict_samples=stage.count)
    return _finish(trainer, "predict", metrics)


def _finish(
    trainer: QuestionAnsweringTrainer, split: str, metrics: dict[str, Any]
) -> dict[str, Any]:
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)
    return metrics


def _say(line: str, file: Any = None) -> None:
    if processes.is_main():
        print(line, file=file, flush=True)
