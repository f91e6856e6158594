"""Load the model and the tokenizer of `qa-flax run`, and check that they belong together."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from qa_flax.commands.arguments import DataArguments, ModelArguments
from qa_flax.commands.errors import TOKENIZER_ARGUMENT, model_errors
from qa_flax.device import parallel
from qa_flax.models.averaged import refuse
from qa_flax.models.lora import LoraConfig
from qa_flax.models.model import AutoModelForQuestionAnswering, get_peft_model, load_config
from qa_flax.train.tokenizer_fit import load_fitting_tokenizer, local, position_limit
from qa_flax.train.training_arguments import TrainingArguments, trains_in_bfloat16


def load_model_and_tokenizer(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> tuple[AutoModelForQuestionAnswering, PreTrainedTokenizerBase]:
    """Load both, before any work on the data.

    Raises:
        OSError: files are missing, or could not be downloaded.
        ValueError: a file or an argument is invalid, or model and tokenizer do not belong together.
    """
    model = load_model(model_args, training_args)
    with model_errors():
        tokenizer = load_fitting_tokenizer(
            model,
            model_args.model_name_or_path,
            model_args.tokenizer_name,
            base_model=model_args.base_model_name_or_path,
            argument=TOKENIZER_ARGUMENT,
            **_hub(model_args),
        )
    _check_window_length(data_args, model_args, tokenizer, position_limit(model))
    return model, tokenizer


def _hub(model_args: ModelArguments) -> dict[str, Any]:
    return {
        "revision": model_args.model_revision,
        "token": model_args.token,
        "cache_dir": model_args.cache_dir,
    }


def load_model(
    model_args: ModelArguments, training_args: TrainingArguments
) -> AutoModelForQuestionAnswering:
    """Load the model, with new adapters if they are asked for.

    Raises:
        OSError: files are missing, or could not be downloaded.
        ValueError: a file or an argument is invalid.
    """
    with model_errors():
        return _load_model(model_args, training_args, _hub(model_args))


def _load_model(
    model_args: ModelArguments, training_args: TrainingArguments, hub: dict[str, Any]
) -> AutoModelForQuestionAnswering:
    with parallel.on_host() if training_args.shard_params else nullcontext():
        model = AutoModelForQuestionAnswering.from_pretrained(
            model_args.model_name_or_path,
            config=_given_config(model_args, hub),
            seed=training_args.seed,
            dtype="bfloat16" if trains_in_bfloat16(training_args) else model_args.dtype,
            base_model=model_args.base_model_name_or_path,
            **hub,
        )
    if training_args.do_train:
        refuse(model, "trained")
    if model_args.lora_r:
        model = get_peft_model(model, _lora_config(model_args), training_args.seed)
    return model


def _given_config(model_args: ModelArguments, hub: dict[str, Any]) -> PreTrainedConfig | None:
    """The config of `--config_name`; None without it."""
    if model_args.config_name is None:
        return None
    source = local(model_args.config_name)
    if Path(source).is_dir():
        return load_config(Path(source))
    # Left out, transformers asks on a terminal whether to run code that comes with the config.
    return AutoConfig.from_pretrained(source, trust_remote_code=False, **hub)


def _lora_config(model_args: ModelArguments) -> LoraConfig:
    targets = (model_args.lora_target_modules or "").replace(",", " ").split()
    return LoraConfig(
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
    )


def _check_window_length(
    data_args: DataArguments,
    model_args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
) -> None:
    """Refuse windows of more tokens than the model has positions.

    Raises:
        ValueError: names the largest length.
    """
    length = data_args.max_seq_length
    if limit is None or min(length, tokenizer.model_max_length) <= limit:
        return
    stride = ""
    if data_args.doc_stride >= limit // 2:
        stride = f", with a --doc_stride below {data_args.doc_stride}, such as {limit // 4}"
    raise ValueError(
        f"--max_seq_length is {length}, but {model_args.model_name_or_path} has positions for "
        f"windows of {limit} tokens only; use --max_seq_length {limit} or less{stride}"
    )
