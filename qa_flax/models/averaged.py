"""Several models as one that averages their probabilities, such as the models of folds (host)."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from qa_flax.models.lora import LoraConfig
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.qa import SpanLogits
from qa_flax.models.sharding import all_gather
from qa_flax.models.weights import parameters


class AveragedModel(AutoModelForQuestionAnswering):
    """Models of one architecture that answer together; made by `average_models`.

    Its logits are the logarithms of the models' mean probabilities. Each parameter is the stack of
    the models' parameters, `[k, ...]`. It is evaluated like any other model, but neither trained
    nor saved.
    """

    @property
    def packing_obstacle(self) -> str:
        """Why rows cannot hold several windows."""
        return "an average of models takes one window a row"

    def span_logits(
        self,
        input_ids: Int[ArrayLike, "b l"],
        attention_mask: Int[ArrayLike, "b l"] | None = None,
        token_type_ids: Int[ArrayLike, "b l"] | None = None,
        position_ids: Int[ArrayLike, "b l"] | None = None,
        segment_ids: Int[ArrayLike, "b l"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> SpanLogits:
        """Compute the logarithms of the mean probabilities; see `AutoModelForQuestionAnswering`.

        The probabilities of a row are over its tokens without padding, so that they do not depend
        on the amount of padding.

        Raises:
            ValueError: as of the models; or rows are packed, or dropout is asked for.
        """
        if segment_ids is not None or rngs is not None:
            raise ValueError(
                "an average of models computes neither packed rows (segment_ids) nor dropout "
                "(rngs); pass one window a row, without rngs"
            )
        graphdef, state = nnx.split(self)
        mask = jnp.ones(jnp.shape(input_ids)) if attention_mask is None else attention_mask

        def log_probabilities(state: Any) -> SpanLogits:
            model: AveragedModel = nnx.merge(graphdef, state)
            logits = super(AveragedModel, model).span_logits(
                input_ids, attention_mask, token_type_ids, position_ids
            )
            return SpanLogits(*(_log_softmax(x, jnp.asarray(mask)) for x in logits))

        each = _map(log_probabilities, all_gather(state))
        log_count = jnp.log(jnp.float32(each.start.shape[0]))
        return SpanLogits(*(jax.nn.logsumexp(x, axis=0) - log_count for x in each))

    @property
    def model_count(self) -> int:
        """The number of models, k."""
        return jax.tree.leaves(nnx.state(self))[0].shape[0]

    def save_pretrained(self, *args: Any, **keywords: Any) -> NoReturn:
        """Raise ValueError: the models are saved one by one."""
        refuse(self, "saved")
        raise AssertionError  # `refuse` has raised

    def resize_token_embeddings(self, *args: Any, **keywords: Any) -> NoReturn:
        """Raise ValueError: the models are changed one by one."""
        refuse(self, "resized")
        raise AssertionError

    def _rebuilt(self, dtype: Any, lora: LoraConfig | None) -> AutoModelForQuestionAnswering:
        if lora != self.lora:
            refuse(self, "given other adapters")
        return super()._rebuilt(dtype, lora)


def refuse(model: AutoModelForQuestionAnswering, what: str) -> None:
    """Raise ValueError if the model is an average: it cannot be `what`, such as "trained"."""
    if isinstance(model, AveragedModel):
        raise ValueError(
            f"the average of {model.model_count} models cannot be {what}; do this with each of "
            "them before averaging (of a cross-validation: OUTPUT_DIR/fold-1 and so on)"
        )


def average_models(models: Sequence[AutoModelForQuestionAnswering]) -> AveragedModel:
    """Combine models of one architecture into one that averages their probabilities.

    In each window, the probabilities of all start tokens, and of all end tokens, are averaged over
    the models; the logarithms of the averages are the new model's logits.

    Args:
        models: with the same config, such as those of several folds or seeds, and with LoRA
            adapters of the same configuration or none.

    Returns:
        A model that can be called, evaluated and used for predictions. It has copies of the
        parameters, and the compute dtype of the first model.

    Raises:
        ValueError: there are no models, or they differ in more than their weights.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from qa_flax import AutoModelForQuestionAnswering, average_models
        >>> tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        >>> model = AutoModelForQuestionAnswering.from_pretrained("bert-base-uncased")
        >>> other = AutoModelForQuestionAnswering.from_config(model.config, seed=1)
        >>> both = average_models([model, other])
        >>> inputs = tokenizer("Who wrote it?", "Ada wrote it.", return_tensors="np")
        >>> float(abs(sum(2.718281828 ** both(**inputs).start_logits[0]) - 1)) < 1e-4
        True
    """
    models = list(models)
    if not models or not all(isinstance(m, AutoModelForQuestionAnswering) for m in models):
        raise ValueError(
            "average_models needs a list of models from AutoModelForQuestionAnswering."
            f"from_pretrained, got {[type(model).__name__ for model in models]}"
        )
    for model in models:
        refuse(model, "averaged again")
        _require_same_architecture(models[0], model)
    first = models[0]
    average = AveragedModel(first.config, dtype=first.dtype, lora=first.lora, seed=None)
    values = [dict(parameters(model)) for model in models]
    stacked = [
        (path, p.replace(jnp.stack([value[path][...] for value in values])))
        for path, p in parameters(average)
    ]
    return nnx.merge(nnx.graphdef(average), nnx.from_flat_state(stacked))


def _require_same_architecture(
    first: AutoModelForQuestionAnswering, other: AutoModelForQuestionAnswering
) -> None:
    shapes = [{path: p.shape for path, p in parameters(model)} for model in (first, other)]
    if first.graphdef(first.dtype) == other.graphdef(first.dtype) and shapes[0] == shapes[1]:
        return
    configs = [
        model.config.to_diff_dict() | {"LoRA": model.lora and model.lora.to_peft(None)}
        for model in (first, other)
    ]
    names = sorted(configs[0].keys() | configs[1].keys())
    differences = [
        f"{name} is {json.dumps(configs[0].get(name), default=str)} and "
        f"{json.dumps(configs[1].get(name), default=str)}"
        for name in names
        if configs[0].get(name) != configs[1].get(name) and not name.startswith("_")
    ]
    raise ValueError(
        "only models of the same architecture can be averaged, but they differ: "
        + ("; ".join(differences) or "their weights have other shapes")
    )


def _map(function: Callable[[Any], SpanLogits], stacked: Any) -> SpanLogits:
    """Apply a function to each item of stacked arrays, and stack the results."""
    leaves = jax.tree.leaves(stacked)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        # A loop in the program, which is compiled for one model and has the memory of one.
        return jax.lax.map(function, stacked)
    # Outside a compiled function, that loop would be compiled at every call.
    items = [jax.tree.map(lambda x, n=n: x[n], stacked) for n in range(leaves[0].shape[0])]
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *map(function, items))


def _log_softmax(logits: Float[Array, "b l"], mask: Array) -> Float[Array, "b l"]:
    """The log-probabilities of each row's tokens without padding; padding has the same divisor."""
    # Relative to the largest first: a log-sum-exp of large logits has lost their differences.
    logits -= jnp.max(logits, axis=1, where=mask > 0, initial=-jnp.inf, keepdims=True)
    return logits - jax.nn.logsumexp(logits, axis=1, where=mask > 0, keepdims=True)
