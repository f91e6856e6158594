"""What a script may pass to `model(...)` and what it gets back: arrays or torch tensors (host).

Compiled functions call `span_logits` of the model instead. torch is never imported here: a tensor's
own module has been imported when one comes.
"""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from qa_flax.models.families import FAMILIES
from qa_flax.models.output import QuestionAnsweringModelOutput
from qa_flax.models.qa import SpanLogits, span_terms
from qa_flax.models.tensors import is_tensor, tensor_to_numpy
from qa_flax.models.transfers import implicit_transfers

_OFF = (None, False)
_TRAINING = "dropout is active in Trainer.train only; set dropout rates in the model's config"
_DECODER = "the decoder's input is made from input_ids, as in transformers"
_POSITIONS = "pass start_positions and end_positions"
_OTHER_HEAD = "this model has a span head, whose labels are start_positions and end_positions"
_INPUT_IDS = "pass input_ids"

_PACKING = "pass segment_ids, the number of each token's window, for packed rows"

# How flash attention receives packed rows.
PACKED_ROWS = (
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
    "indices",
    "cu_seqlens",
    "max_seqlen",
    "batch_size",
    "seq_len",
)
# Inputs of families that are not supported.
OTHER_FAMILIES = (
    "bbox",
    "image",
    "pixel_values",
    "langs",
    "lang_ids",
    "lengths",
    "visual_feats",
    "visual_pos",
    "visual_attention_mask",
    "xpath_tags_seq",
    "xpath_subs_seq",
    "num_hashes",
    "input_shape_ids",
    "input_pronunciation_ids",
    "question_positions",
    "mems",
    "perm_mask",
    "target_mapping",
    "input_mask",
)
ENTITIES = ("entity_ids", "entity_attention_mask", "entity_token_type_ids", "entity_position_ids")
# Keywords of transformers' question answering models that cannot be honoured -> the values that ask
# for what is the case anyway, and what to do instead of passing another.
FIXED_KEYWORDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "output_hidden_states": (_OFF, "hidden states are not returned"),
    "output_attentions": (_OFF, "attention weights are not returned"),
    "inputs_embeds": ((None,), _INPUT_IDS),
    "head_mask": ((None,), "attention heads are not masked"),
    "cross_attn_head_mask": ((None,), "attention heads are not masked"),
    "decoder_head_mask": ((None,), "attention heads are not masked"),
    "decoder_input_ids": ((None,), _DECODER),
    "decoder_attention_mask": ((None,), _DECODER),
    "decoder_inputs_embeds": ((None,), _DECODER),
    "decoder_position_ids": ((None,), _DECODER),
    "encoder_outputs": ((None,), "the encoder is always run"),
    "encoder_hidden_states": ((None,), "the encoder is always run"),
    "encoder_attention_mask": ((None,), "pass attention_mask"),
    "past_key_values": ((None,), "every call computes all tokens"),
    "cache": ((None,), "every call computes all tokens"),
    "cache_position": ((None,), "every call computes all tokens"),
    "use_cache": (_OFF, "every call computes all tokens"),
    "question_lengths": ((None,), "they are found by the separator tokens"),
    "global_attention_mask": ((None,), "the question's tokens attend globally"),
    "sliding_window_mask": ((None,), "it is made from attention_mask"),
    "is_causal": (_OFF, "tokens attend in both directions"),
    "labels": ((None,), _POSITIONS),
    "next_sentence_label": ((None,), _OTHER_HEAD),
    "is_impossible": ((None,), _OTHER_HEAD),
    "cls_index": ((None,), _OTHER_HEAD),
    "p_mask": ((None,), _OTHER_HEAD),
    "num_items_in_batch": ((None,), "the loss is the mean over the batch"),
    "output_router_logits": (_OFF, "no supported family has a router"),
    "task_type_ids": ((None,), "all tokens have the task type 0, as by default in transformers"),
    "packed": (_OFF, _PACKING),
    **dict.fromkeys(PACKED_ROWS, ((None,), _PACKING)),
    **dict.fromkeys(OTHER_FAMILIES, ((None,), "no supported family has this input")),
    **dict.fromkeys(ENTITIES, ((None,), "luke is computed without entities")),
    "use_mems": (_OFF, "no supported family has this input"),
    # transformers 4's models in Flax and TensorFlow.
    "params": ((None,), "set them with model.set_params(...)"),
    "dropout_rng": ((None,), "pass rngs=nnx.Rngs(dropout=key)"),
    "train": (_OFF, "pass rngs=nnx.Rngs(dropout=key) for dropout; Trainer.train does it itself"),
    "training": (_OFF, _TRAINING),
}


class ModelCall:
    """`model(...)` with the arguments and results of transformers' models; a mix-in of the model.

    The model has `span_logits`, which computes the logits, and `config`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = [name for name in ("forward", "__call__", "__init__") if name in vars(cls)]
        if own and ModelCall not in cls.__bases__:
            raise TypeError(
                f"{cls.__name__} replaces {own[0]}, which training does not call; give an own loss "
                "to Trainer(compute_loss_func=...) and use the logits where you call the model"
            )

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Compute the model's output; see `forward`."""
        return self.forward(*inputs, **keywords)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *positional: Any,
        token_type_ids: Any = None,
        position_ids: Any = None,
        segment_ids: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        return_dict: bool | None = None,
        rngs: nnx.Rngs | None = None,
        **keywords: Any,
    ) -> Any:
        """Compute span logits and, with positions, the loss, as transformers' models do.

        Inputs are arrays of NumPy or JAX, nested lists, or torch tensors. If one is a torch tensor,
        the output's entries are torch tensors, too. They cannot be differentiated: models are
        trained by `Trainer.train`.

        Args:
            input_ids: token ids, integer `[B, L]`.
            attention_mask: `[B, L]`, 1 for real tokens, 0 for padding; default: all 1.
            *positional: `token_type_ids` and `position_ids`, in the family's order in transformers.
            token_type_ids: integer `[B, L]`; default: as in the model family, usually all 0.
            position_ids: integer `[B, L]`; default: counted by the model family's rules.
            segment_ids: integer `[B, L]`, the numbers of the windows that are packed into a row,
                0 for padding. Tokens attend to their own window only, and positions restart in
                each window. Default: one window per row.
            start_positions: integer `[B]` or `[B, 1]`, the answers' first tokens. Negative ones
                count as 0; those outside the row (>= L) take no part in the mean.
            end_positions: integer `[B]` or `[B, 1]`, the answers' last tokens.
            return_dict: False: return a tuple. Default: the config's value, which is True.
            rngs: its `dropout` stream draws the dropout masks; None means no dropout.
            **keywords: other keywords of transformers' models, with values that ask for what is the
                case anyway.

        Returns:
            A `QuestionAnsweringModelOutput`, or its entries as a tuple. The logits are float32
            `[B, L]`. `loss` is the mean of the cross entropies of starts and ends, if both
            positions are given.

        Raises:
            TypeError: an argument is unknown, or an input does not consist of integers.
            ValueError: a keyword asks for what is not supported, or the inputs do not fit each
                other or the model.
        """
        model: Any = self
        config = model.config
        _check_keywords(type(self).__name__, config, keywords)
        inputs = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        inputs |= _by_place(type(self).__name__, config.model_type, positional, inputs)
        inputs |= {"attention_mask": attention_mask, "segment_ids": segment_ids}
        labels = {"start_positions": start_positions, "end_positions": end_positions}
        ids = _input_ids(input_ids)
        arrays = {n: _beside(n, x, ids.shape) for n, x in inputs.items() if x is not None}
        loss = None
        with implicit_transfers(), jax.numpy_dtype_promotion("standard"):
            logits = model.span_logits(ids, **arrays, rngs=rngs)
            if all(positions is not None for positions in labels.values()):
                loss = span_loss(logits, *(_positions(n, x, ids.shape) for n, x in labels.items()))
        tensors = [x for x in (input_ids, *inputs.values(), *labels.values()) if is_tensor(x)]
        output = QuestionAnsweringModelOutput(loss, *logits)
        if tensors:
            trained = nnx.to_flat_state(nnx.state(model, nnx.Param))
            is_trained = any(path not in model.frozen for path, _ in trained)
            output = _as_tensors(output, tensors[0].device, is_trained)
        return output if _returns_dict(return_dict, config) else output.to_tuple()


# ---- arguments -----------------------------------------------------------------------------------


def _check_keywords(model: str, config: Any, keywords: Mapping[str, Any]) -> None:
    """Raise `TypeError` for an unknown keyword and `ValueError` for one that is not supported."""
    if unknown := sorted(keywords.keys() - FIXED_KEYWORDS.keys()):
        raise TypeError(
            f"{model}() got an unexpected keyword argument {unknown[0]!r}; pass only "
            "input_ids, attention_mask, token_type_ids, start_positions and end_positions"
        )
    from_config = {
        n: getattr(config, n, None) for n in ("output_hidden_states", "output_attentions")
    }
    for name, value in {**from_config, **keywords}.items():
        accepted, instead = FIXED_KEYWORDS[name]
        if not any(value is item for item in accepted):
            short = repr(value) if isinstance(value, bool | int | str) else "..."
            raise ValueError(
                f"model({name}={short}) is not supported (accepted: "
                f"{', '.join(map(repr, accepted))}): {instead}"
            )


def _returns_dict(return_dict: bool | None, config: Any) -> bool:
    return getattr(config, "return_dict", True) if return_dict is None else bool(return_dict)


def _by_place(
    model: str, model_type: str, values: tuple[Any, ...], named: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs that were passed without their names, after input_ids and attention_mask."""
    family = FAMILIES.get(model_type)
    names = ("token_type_ids", "position_ids") if family is None else family.positional_inputs
    if len(values) > len(names):
        raise TypeError(
            f"{model}() takes {', '.join(('input_ids', 'attention_mask', *names))} without names, "
            f"but got {2 + len(values)} values; name the others: position_ids=..."
        )
    by_place = {n: x for n, x in zip(names, values, strict=False) if x is not None}
    if twice := [name for name in by_place if named[name] is not None]:
        raise TypeError(f"{model}() got multiple values for argument {twice[0]!r}")
    return by_place


# ---- inputs --------------------------------------------------------------------------------------


def _array(name: str, value: Any) -> Any:
    """The input as an array of NumPy or JAX (also a traced one); `TypeError` if it is none."""
    if is_tensor(value):
        return tensor_to_numpy(value)
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, Mapping):
        raise TypeError(
            f"{name} is a {type(value).__name__}; pass its entries by their names: model(**inputs)"
        )
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"{name} has rows of different lengths; let the tokenizer pad them: "
            "tokenizer(..., padding=True, return_tensors='np')"
        ) from error


def _integers(name: str, value: Any) -> Any:
    array = _array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} has the dtype {array.dtype}; integers are expected")
    return array


def _input_ids(value: Any) -> Any:
    if value is None:
        raise ValueError("the model was called without input_ids; pass model(**tokenizer(...))")
    ids = _integers("input_ids", value)
    if ids.ndim != 2:
        raise ValueError(
            f"input_ids has the shape {list(ids.shape)}; it must be [B, L], one row for each "
            "pair of question and context: tokenizer(..., return_tensors='np') adds the first axis"
        )
    return ids


def _beside(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """An input beside the token ids, of integers, broadcast to their `shape`."""
    if name == "attention_mask":
        array = _array(name, value)
        is_integer = jnp.issubdtype(array.dtype, jnp.integer)
        array = array if is_integer else (array != 0).astype(np.int32)
    else:
        array = _integers(name, value)
    broadcast_to = np.broadcast_to if isinstance(array, np.ndarray) else jnp.broadcast_to
    try:
        return broadcast_to(array, shape)
    except ValueError as error:
        raise ValueError(
            f"{name} has the shape {list(array.shape)}, which does not fit input_ids of "
            f"{list(shape)}; pass one value for each token"
        ) from error


def _positions(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    rows, length = shape
    array = _integers(name, value)
    if array.shape not in ((rows,), (rows, 1)):
        raise ValueError(
            f"{name} has the shape {list(array.shape)}; one position for each row is expected: "
            f"[{rows}] or [{rows}, 1]"
        )
    return jnp.asarray(array.reshape(rows).clip(0, length), jnp.int32)


# ---- outputs -------------------------------------------------------------------------------------


def span_loss(
    logits: SpanLogits, start_positions: Int[Array, " b"], end_positions: Int[Array, " b"]
) -> Float[Array, ""]:
    """Hugging Face's loss: the mean of the cross entropies of the starts and of the ends.

    Each is a mean over the rows whose position is inside the row (< l); NaN if there is none.
    """
    terms = span_terms(logits, start_positions, end_positions)
    length = logits.start.shape[1]
    inside = [jnp.sum(positions < length) for positions in (start_positions, end_positions)]
    means = [jnp.sum(term) / count for term, count in zip(terms, inside, strict=True)]
    return (means[0] + means[1]) / 2


def _as_tensors(
    output: QuestionAnsweringModelOutput, device: Any, is_trained: bool
) -> QuestionAnsweringModelOutput:
    """The output with torch tensors on `device`, which require gradients where torch's would.

    `is_trained`: whether a parameter of the model requires gradients.
    """
    torch: Any = sys.modules["torch"]
    # A copy, because tensors may be changed in place and JAX's arrays may not.
    tensors = [torch.from_numpy(np.array(array)).to(device) for array in output.values()]
    if is_trained and torch.is_grad_enabled():
        anchor = torch.zeros((), device=device, requires_grad=True)
        tensors = _refuse_gradients().apply(anchor, *tensors)
    return QuestionAnsweringModelOutput(**dict(zip(output, tensors, strict=True)))


@cache
def _refuse_gradients() -> Any:
    """A `torch.autograd.Function` that returns its tensors and refuses `backward`."""
    torch: Any = sys.modules["torch"]

    class ModelOfQaFlax(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, anchor: Any, *tensors: Any) -> Any:
            return tuple(tensor.clone() for tensor in tensors)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            raise RuntimeError(
                "loss.backward() does not reach the weights of a qa_flax model, which are JAX "
                "arrays; train it with qa_flax.Trainer(...).train(), and give an own loss to "
                "Trainer(compute_loss_func=...)"
            )

    return ModelOfQaFlax
