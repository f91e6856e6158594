"""The arguments of a run: Hugging Face's names, defaults and checks (host, no JAX)."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelArguments:
    """Which model and tokenizer to start from."""

    model_name_or_path: str = field(
        metadata={
            "help": "Directory or hub id of a checkpoint (config.json and model.safetensors)."
        }
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Directory or hub id of the config, if not the model's."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Directory or hub id of the tokenizer, if not the model's."}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where models and data from the hub are kept."}
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of the model on the hub."}
    )
    token: str | None = field(
        default=None,
        metadata={
            "help": "Hub token. Prefer `hf auth login` or HF_TOKEN: other users of a machine "
            "can read command lines."
        },
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "What the model computes in; parameters are float32. --bf16 is the same.",
            "choices": ["float32", "bfloat16"],
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Refused: models are this package's own."}
    )
    lora_r: int = field(
        default=0,
        metadata={"help": "Train LoRA adapters of this rank and the span head; 0: everything."},
    )
    lora_alpha: float = field(
        default=16.0, metadata={"help": "What adapters add is multiplied by lora_alpha / lora_r."}
    )
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout of what goes into the adapters."}
    )
    lora_target_modules: str | None = field(
        default=None,
        metadata={
            "help": "Layers that get adapters, by PyTorch's names with commas between: query,value "
            "for BERT; or all-linear."
        },
    )

    def __post_init__(self):
        if self.lora_r < 0:
            raise ValueError(f"--lora_r is {self.lora_r}; it must not be below 0")
        if self.lora_target_modules and not self.lora_r:
            raise ValueError("--lora_target_modules has no effect without --lora_r")
        if self.trust_remote_code:
            raise ValueError(
                "--trust_remote_code: models are this package's own, and no checkpoint's code is "
                "run; leave it out"
            )


@dataclass
class DataArguments:
    """Which data to use, how to cut it into windows and how to choose answers."""

    dataset_name: str | None = field(default=None, metadata={"help": "Hub id of a data set."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of that data set."}
    )
    train_file: str | None = field(
        default=None,
        metadata={"help": "SQuAD JSON (nested or flat), JSONL, CSV or Parquet to train on."},
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "The same, to evaluate on."}
    )
    test_file: str | None = field(default=None, metadata={"help": "The same, to predict."})
    max_seq_length: int = field(
        default=384, metadata={"help": "Tokens in a window; longer contexts give several."}
    )
    doc_stride: int = field(
        default=128, metadata={"help": "Tokens that two neighbouring windows share."}
    )
    pad_to_max_length: bool = field(
        default=True,
        metadata={"help": "Make windows max_seq_length long, else as long as the longest."},
    )
    overwrite_cache: bool = field(
        default=False, metadata={"help": "Without effect: windows are made anew, and kept nowhere."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Without effect: the tokenizer uses every core by itself."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on the first examples only."}
    )
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Evaluate on the first examples only.", "aliases": ["--max_val_samples"]},
    )
    max_predict_samples: int | None = field(
        default=None, metadata={"help": "Predict the first examples only."}
    )
    version_2_with_negative: bool = field(
        default=False, metadata={"help": "Some questions have no answer (as in SQuAD v2.0)."}
    )
    null_score_diff_threshold: float = field(
        default=0.0,
        metadata={
            "help": 'Answer "" if the null score exceeds the best span\'s by more than this.'
        },
    )
    n_best_size: int = field(
        default=20, metadata={"help": "Spans kept per question; starts and ends tried per window."}
    )
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer, in tokens."})
    accept_changes: bool = field(
        default=False,
        metadata={"help": "Resume though seed, batch size, data or model are others."},
    )
    misaligned_answers: str = field(
        default="keep",
        metadata={
            "help": "Answers that are not in the context at their answer_start: keep, repair or "
            "refuse.",
            "choices": ["keep", "repair", "refuse"],
        },
    )

    long_questions: str = field(
        default="truncate",
        metadata={
            "help": "Questions that leave a context no room in the window: truncate or refuse.",
            "choices": ["truncate", "refuse"],
        },
    )
    hf_compatible: bool = field(
        default=False,
        metadata={"help": "Keep Hugging Face's answers where they are defective, as `empty`."},
    )

    gather: str = field(
        default="topk",
        metadata={
            "help": "What the cores send to the host: the best starts and ends of each window "
            "(topk), or all logits. The answers are the same.",
            "choices": ["topk", "logits"],
        },
    )

    def __post_init__(self):
        if not (self.dataset_name or self.train_file or self.validation_file or self.test_file):
            raise ValueError(
                "no data: give --train_file, --validation_file, --test_file or --dataset_name"
            )
        for name in ("n_best_size", "max_answer_length"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--{name} is {value}; it must be at least 1")


@dataclass
class DistributedArguments:
    """The processes of a run, one on each host, and what they must run on."""

    distributed: bool = field(
        default=False,
        metadata={
            "help": "Join the processes that the same command has started on the other hosts; JAX "
            "finds them on TPU VMs, GKE, Slurm and MPI."
        },
    )
    coordinator: str | None = field(
        default=None, metadata={"help": "HOST:PORT of process 0, where JAX does not find it."}
    )
    num_processes: int | None = field(
        default=None, metadata={"help": "How many processes take part, where JAX cannot tell."}
    )
    process_id: int | None = field(
        default=None, metadata={"help": "Which one this is, from 0, where JAX cannot tell."}
    )
    initialization_timeout: float = field(
        default=300.0, metadata={"help": "Seconds to wait for the other processes."}
    )
    require_backend: str | None = field(
        default=None,
        metadata={
            "help": "Refuse to run on anything else: without it JAX falls back to the CPU.",
            "choices": ["cpu", "gpu", "tpu"],
        },
    )

    def __post_init__(self):
        given = [
            f"--{name}"
            for name in ("coordinator", "num_processes", "process_id")
            if getattr(self, name) is not None
        ]
        if given and not self.distributed:
            raise ValueError(f"{', '.join(given)} has no effect without --distributed")
        if self.initialization_timeout <= 0:
            raise ValueError(
                f"--initialization_timeout is {self.initialization_timeout}; it must be above 0"
            )


def dataclass_parser(*kinds: Any, **options: Any) -> argparse.ArgumentParser:
    """A parser whose `parse_args(...).dataclasses` is one instance of each of these dataclasses.

    Built by transformers' `HfArgumentParser`, from whose import on this takes time. One argument
    that ends in .json, .yaml or .yml names a file that holds all of them.
    """
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, args: Sequence[str] | None = None, namespace: None = None
        ) -> argparse.Namespace:
            argv = list(args or ())
            if len(argv) == 1 and argv[0].endswith(".json"):
                parsed = self.parse_json_file(argv[0])
            elif len(argv) == 1 and argv[0].endswith((".yaml", ".yml")):
                parsed = self.parse_yaml_file(argv[0])
            else:
                *parsed, unknown = self.parse_args_into_dataclasses(
                    argv, return_remaining_strings=True, look_for_args_file=False
                )
                if unknown:
                    self.error(f"unrecognized arguments: {' '.join(unknown)}")
            return argparse.Namespace(dataclasses=tuple(parsed))

    return Parser(list(kinds), **options)
