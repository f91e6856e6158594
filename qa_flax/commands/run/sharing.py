"""What `qa-flax run` writes into the model card, and the push to the Hugging Face Hub."""

import sys
from pathlib import Path
from typing import Any

from qa_flax.commands.arguments import DataArguments, ModelArguments
from qa_flax.commands.run.output import print_on_main
from qa_flax.models.push import pushed_line, repeated_by
from qa_flax.train.card_data import CardFacts
from qa_flax.train.hub_push import create_repo, on_main, repo_name
from qa_flax.train.model_card import EvaluatedData, widget_example
from qa_flax.train.plan import output_dir
from qa_flax.train.qa_trainer import QuestionAnsweringTrainer
from qa_flax.train.training_arguments import TrainingArguments


def check_push(data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Create the repository of `--push_to_hub`, before anything that takes time.

    Raises:
        PushError: the Hub could not be reached, or refused.
        ValueError: the name is invalid, there is no token, or an argument excludes a push.
    """
    if not training_args.push_to_hub:
        return
    if data_args.folds is not None:
        raise ValueError(
            "--push_to_hub cannot be used with --folds, which trains several models; push one of "
            f"them afterwards: qa-flax push {output_dir(training_args) / 'fold-1'} OWNER/NAME"
        )
    on_main("the repository", lambda: create_repo(training_args))


def card_arguments(training_args: TrainingArguments) -> dict[str, Any]:
    """The arguments of `create_model_card`: the repository's name, where there is one."""
    is_named = training_args.push_to_hub and training_args.hub_model_id is not None
    return {"model_name": str(training_args.hub_model_id).split("/")[-1]} if is_named else {}


def card_facts(model_args: ModelArguments, data_args: DataArguments, stage: Any) -> CardFacts:
    """What the card says about the evaluated data and the base model.

    Args:
        model_args: has the base model's revision.
        data_args: names the data.
        stage: the evaluation's, with `examples`; None: nothing was evaluated.
    """
    data = [] if stage is None and data_args.dataset_name is None else [_data(data_args, stage)]
    return CardFacts(data, data_args.language, model_args.model_revision, model_args.cache_dir)


def _data(data_args: DataArguments, stage: Any) -> EvaluatedData:
    name, config = data_args.dataset_name, data_args.dataset_config_name
    is_split_off = data_args.validation_split is not None
    file = data_args.train_file if is_split_off else data_args.validation_file
    split = "train" if is_split_off else "validation"
    widget = None if stage is None else widget_example(stage.examples)
    if file is not None or name is None:  # only the file's name: its folder is of this machine
        return EvaluatedData(Path(str(file).rstrip("/")).name, split=split, widget=widget)
    is_local = Path(name).exists()
    return EvaluatedData(
        name=Path(name).name if is_local else name if config is None else f"{name} {config}",
        hub_id=None if is_local else name,
        config=config,
        args=config,
        split=split,
        widget=widget,
    )


def push(trainer: QuestionAnsweringTrainer) -> None:
    """Upload the model as `--push_to_hub` says; all files have been written before.

    Raises:
        PushError: the Hub could not be reached, or refused.
    """
    args = trainer.args
    if not args.push_to_hub:
        return
    folder = output_dir(args)
    name = trainer.hub_model_id or repo_name(args)
    print_on_main(f"Pushing the model to {name} ...")
    try:
        commit = trainer.push_to_hub(**card_arguments(args))  # pyright: ignore[reportArgumentType]
    except KeyboardInterrupt:
        line = repeated_by(folder, name, revision=args.hub_revision)
        print_on_main(f"The push was interrupted. {line}", sys.stderr)
        raise
    if commit is not None:
        print_on_main(pushed_line(Path(folder), commit))
