"""`pipeline("question-answering")` and its class, as transformers 4 had them, for existing code."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import jax

from qa_flax import messages
from qa_flax.answering.answerer import QuestionAnswerer
from qa_flax.models.save import save_tokenizer
from qa_flax.models.torch_device import Device

logger = messages.logger(__name__)

TASK = "question-answering"
DEFAULT_MODEL = "distilbert/distilbert-base-cased-distilled-squad"
"""The model that transformers 4 took for this task where none was given."""

_FRAMEWORKS = (None, "pt", "tf", "flax", "jax")
# Arguments of transformers 4 that cannot be honoured -> what to do instead of passing them.
_REFUSED = {
    "config": "pass model=AutoModelForQuestionAnswering.from_pretrained(..., config=config)",
    "feature_extractor": "questions are texts",
    "image_processor": "questions are texts",
    "processor": "questions are texts; pass tokenizer=...",
    "pipeline_class": "make a subclass of QuestionAnsweringPipeline and call it",
    "args_parser": "pass questions in one of the pipeline's forms",
    "device_map": "JAX computes on all of its devices; the weights must fit on each",
    "binary_output": "the output is a dict or a list of dicts",
}
_LOADING = ("dtype", "torch_dtype", "revision", "token", "use_auth_token", "cache_dir")


class QuestionAnsweringPipeline(QuestionAnswerer):
    """A `QuestionAnswerer` with the constructor and the attributes of transformers 4's class.

    Args:
        model: as of `QuestionAnswerer`.
        tokenizer: as of `QuestionAnswerer`.
        device: as in transformers: -1 or "cpu", or a number, "cuda" or "tpu" for an accelerator. It
            chooses nothing, because JAX has chosen its backend already; a warning says if JAX
            computes elsewhere.
        framework: accepted for compatibility: JAX computes.
        task: "question-answering".
        modelcard: accepted for compatibility and not read.
        **keywords: as of `QuestionAnswerer`; `torch_dtype` and `use_auth_token` are old names of
            `dtype` and `token`.

    Raises:
        ValueError: an argument asks for what is not supported. Further errors are those of
            `QuestionAnswerer`.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from qa_flax import AutoModelForQuestionAnswering, QuestionAnsweringPipeline
        >>> model = AutoModelForQuestionAnswering.from_pretrained("bert-base-uncased")
        >>> tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        >>> pipe = QuestionAnsweringPipeline(model=model, tokenizer=tokenizer)
        >>> len(pipe(question="Who wrote it?", context="Ada wrote it in 1843.", top_k=2))
        2
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        device: Any = None,
        framework: str | None = None,
        task: str = TASK,
        modelcard: Any = None,
        **keywords: Any,
    ):
        if task not in ("", None, TASK):
            raise ValueError(_other_task(task))
        if framework not in _FRAMEWORKS:
            raise ValueError(f"framework={framework!r}: it must be one of {_FRAMEWORKS}")
        super().__init__(model, tokenizer, **_keywords(keywords))
        self.task, self.framework, self.modelcard = TASK, "jax", modelcard
        _check_device(device)

    @property
    def device(self) -> Device:
        """Where inputs and outputs are, as of `torch.device`: "cpu"; JAX places the rest."""
        return Device("cpu")

    def predict(self, *inputs: Any, **keywords: Any) -> Any:
        """Answer questions, as a call does; the name in scikit-learn."""
        return self(*inputs, **keywords)

    transform = predict

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the model and the tokenizer to a folder.

        Raises:
            OSError: a file cannot be written.
        """
        self.model.save_pretrained(save_directory)
        save_tokenizer(self.tokenizer, Path(save_directory))


def pipeline(
    task: str | None = None, model: Any = None, tokenizer: Any = None, **keywords: Any
) -> QuestionAnsweringPipeline:
    """Make a question answering pipeline, as `transformers.pipeline` of transformers 4 did.

    Args:
        task: "question-answering"; None: the same.
        model: as of `QuestionAnswerer`; None: the default of transformers 4, with a warning.
        tokenizer: as of `QuestionAnswerer`.
        **keywords: as of `QuestionAnsweringPipeline`; `use_fast`, `trust_remote_code` and
            `model_kwargs` of transformers, as far as they ask for what is the case.

    Raises:
        ValueError: the task is another, or an argument asks for what is not supported. Further
            errors are those of `QuestionAnswerer`.

    Example:
        >>> from qa_flax import pipeline
        >>> oracle = pipeline("question-answering", model="bert-base-uncased")
        >>> sorted(oracle(question="Who wrote it?", context="Ada wrote it in 1843."))
        ['answer', 'end', 'score', 'start']
    """
    if task not in (None, TASK):
        raise ValueError(_other_task(task))
    if model is None:
        logger.warning(
            "No model was given; %s is used, as transformers 4 did. Name the model that you want.",
            DEFAULT_MODEL,
        )
        model = DEFAULT_MODEL
    return QuestionAnsweringPipeline(model, tokenizer, **keywords)


def _other_task(task: Any) -> str:
    return (
        f"task={task!r} is not supported: qa_flax has the task {TASK!r} only; for others use "
        "transformers.pipeline"
    )


def _keywords(keywords: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `QuestionAnswerer`, with the names and values of transformers 4.

    Raises:
        TypeError: an argument is given twice.
        ValueError: an argument asks for what is not supported.
    """
    result = dict(keywords)
    for name, value in (result.pop("model_kwargs", None) or {}).items():
        if name not in _LOADING:
            raise ValueError(
                f"model_kwargs={{{name!r}: ...}} is not supported; pass "
                f"model=AutoModelForQuestionAnswering.from_pretrained(..., {name}=...)"
            )
        if name in result:
            raise TypeError(f"{name} is given twice, also in model_kwargs")
        result[name] = value
    for name, instead in _REFUSED.items():
        if result.pop(name, None) not in (None, False):
            raise ValueError(f"{name} is not supported here: {instead}")
    if result.pop("use_fast", True) is False:
        raise ValueError("use_fast=False is not supported: only fast tokenizers have offsets")
    # A permission to run code from the Hub, of which there is none to run.
    result.pop("trust_remote_code", None)
    for old, new in (("torch_dtype", "dtype"), ("use_auth_token", "token")):
        if (value := result.pop(old, None)) is not None:
            result.setdefault(new, value)
    return result


def _check_device(device: Any) -> None:
    """Warn if JAX does not compute where the user wants.

    Raises:
        ValueError: it is no device.
    """
    if device is None:
        return
    name = str(device).lower()
    match = re.fullmatch(r"(cpu|cuda|gpu|tpu|xla|mps)(:\d+)?|-?\d+", name)
    if match is None:
        raise ValueError(f'device={device!r}: it must be -1 or "cpu", or a number, "cuda" or "tpu"')
    wants_cpu = name == "-1" or name.startswith("cpu")
    backend = jax.default_backend()
    if wants_cpu != (backend == "cpu"):
        how = "set JAX_PLATFORMS=cpu before Python starts" if wants_cpu else "see qa-flax env"
        warnings.warn(
            f"device={device!r}: JAX computes on {backend} instead; {how}",
            UserWarning,
            stacklevel=4,
        )
