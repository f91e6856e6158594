"""Choose how a training gets its batches: from which windows, and with what in addition (host)."""

from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from qa_flax.data.loaders import Loader, describe
from qa_flax.data.packing import describe_obstacle, packing_of
from qa_flax.data.rows import check_dataset
from qa_flax.data.windows import Windows
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.augmentation import epoch_windows, wants_augmentation
from qa_flax.train.extra_data import MixedData, check_same_columns, extra_ratio, with_length
from qa_flax.train.train_data import LoaderData, TrainData, WindowData


class Sources(NamedTuple):
    """What a trainer has beside its training set."""

    train_examples: Any
    """The examples that the training set was made from; None: they are not known."""
    tokenizer: PreTrainedTokenizerBase | None
    """The tokenizer that it was made with."""
    extra_dataset: Any
    """Another training set; None: there is none."""


def training_set(
    loader: Any,
    model: AutoModelForQuestionAnswering,
    args: Any,
    sources: Sources,
    *,
    takes_extras: bool,
    obstacle: str | None,
) -> TrainData:
    """Choose how the batches of a loader are built: from windows, if that gives the same.

    Args:
        loader: of the training set.
        model: the model to train.
        args: the trainer's arguments.
        sources: see `Sources`.
        takes_extras: whether the script's own loss function gets further arrays of the batches.
        obstacle: `packing_obstacle` of the training.

    Raises:
        ValueError: there are no windows, they have no labels, several processes cannot share the
            loader, or what an argument asks for is missing or impossible.
    """
    _check_extra(args, sources.extra_dataset)
    windows = loader.windows() if isinstance(loader, Loader) else None
    if windows is None:
        _refuse(args, describe(loader))
        return LoaderData(loader, model, takes_extras)
    epochs = None
    if wants_augmentation(args):
        epochs = epoch_windows(args, windows, sources.train_examples, sources.tokenizer)
    is_of_family = model.packing_obstacle is not None
    if sources.extra_dataset is None:
        return WindowData(windows, obstacle, is_of_family, epochs=epochs)
    extra = _extra_windows(sources.extra_dataset, model)
    length = max(windows.padded_length, extra.padded_length)
    check_same_columns(windows, extra)
    spans = max(windows.spans if epochs is None else epochs.plain.spans, extra.spans)
    own, extra = (with_length(part, length).with_span_room(spans) for part in (windows, extra))
    if epochs is not None:
        epochs.pad_to(length, spans)
    shared = [packing_of(part) for part in (own, extra)]
    packing = shared[0]._replace(places=max(part.places for part in shared))
    obstacle = obstacle or describe_obstacle(extra)
    data = WindowData(own, obstacle, is_of_family, packing=packing, epochs=epochs)
    return MixedData(data, extra, is_of_family)


def _extra_windows(dataset: Any, model: AutoModelForQuestionAnswering) -> Windows:
    check_dataset(dataset, "extra_train_dataset")
    windows = Loader(
        dataset, 1, pad_token_id=getattr(model.config, "pad_token_id", None) or 0
    ).windows()
    if windows is None:
        raise ValueError(
            f"extra_train_dataset ({type(dataset).__name__}) is a stream or has a transform, but "
            "its batches are spread over those of train_dataset; pass the result of "
            "qa_flax.prepare_train_features"
        )
    if not len(windows):
        raise ValueError("extra_train_dataset has no windows; leave it out, or pass others")
    return windows


def _check_extra(args: Any, dataset: Any) -> None:
    """Refuse a share without a data set, and the reverse."""
    ratio = extra_ratio(args)
    if ratio is not None and dataset is None:
        raise ValueError(
            f"extra_train_ratio={ratio} is the share of batches of another training set: pass it "
            "as extra_train_dataset to QuestionAnsweringTrainer"
        )
    if ratio is None and dataset is not None:
        raise ValueError(
            "extra_train_dataset needs extra_train_ratio, the share of the batches that come from "
            "it, such as TrainingArguments(extra_train_ratio=0.2)"
        )


def _refuse(args: Any, loader: str) -> None:
    """Refuse what needs windows, for a training set whose batches a script makes."""
    names = [name for name in ("augment", "paraphrases") if getattr(args, name, None) is not None]
    if extra_ratio(args) is not None:
        names.append("extra_train_ratio")
    if names:
        raise ValueError(
            f"{' and '.join(names)} cannot be used, because {loader} makes the batches; pass "
            "train_dataset=qa_flax.prepare_train_features(...), without a transform and without a "
            "data_collator or get_train_dataloader of your own"
        )
