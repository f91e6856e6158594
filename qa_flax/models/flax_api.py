"""The models by the names of transformers 4's Flax classes (host)."""

from typing import Any

from qa_flax.models.classes import class_of_family
from qa_flax.models.families import FAMILIES
from qa_flax.models.model import AutoModelForQuestionAnswering


class FlaxAutoModelForQuestionAnswering(AutoModelForQuestionAnswering):
    """`AutoModelForQuestionAnswering`, by the name that it has in transformers 4's Flax API.

    A model holds its parameters: `model.params` and the argument `params` of a call do not exist.

    Example:
        >>> import jax.numpy as jnp
        >>> from qa_flax import FlaxAutoModelForQuestionAnswering
        >>> model = FlaxAutoModelForQuestionAnswering.from_pretrained(
        ...     "bert-base-uncased", seed=0, dtype=jnp.float32
        ... )
        >>> type(model).__name__
        'FlaxBertForQuestionAnswering'
    """

    NAME_PREFIX = "Flax"

    @property
    def params(self) -> Any:
        """Not supported: raises a `RuntimeError` that says where the parameters are."""
        raise RuntimeError(
            "model.params does not exist: the model holds its parameters; read them with "
            "flax.nnx.state(model), and replace them with model.set_params(...)"
        )


for _family in FAMILIES.values():
    class_of_family(FlaxAutoModelForQuestionAnswering, _family)
