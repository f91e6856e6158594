"""Stage 4 of 7: the question answering model with Hugging Face's interface and checkpoint files."""

import copy
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import ArrayLike, Int
from transformers import PreTrainedConfig

from qa_flax import messages
from qa_flax.messages import printable_errors
from qa_flax.models import lora as adapters
from qa_flax.models import push, save
from qa_flax.models.blocks import Stack
from qa_flax.models.call import ModelCall
from qa_flax.models.classes import class_for, class_of_family
from qa_flax.models.config_json import WRONG_TYPES, family_of, load_config, read_family_config
from qa_flax.models.families import FAMILIES
from qa_flax.models.files import (
    ADAPTER_CONFIG_FILE,
    CONFIG_FILE,
    checkpoint_directory,
    fold_directories,
    is_folds,
)
from qa_flax.models.id_limits import check_ids, id_limits
from qa_flax.models.layers import ParamPath
from qa_flax.models.load_arguments import config_with_keywords, warn_of_unread_settings
from qa_flax.models.lora import LoraConfig
from qa_flax.models.parameters import ParameterViews, SetByArguments
from qa_flax.models.qa import SpanLogits
from qa_flax.models.read_hooks import ReadHooks
from qa_flax.models.torch_methods import TorchMethods
from qa_flax.models.transfers import to_device
from qa_flax.models.weights import (
    NamedParameters,
    adapter_arrays,
    check_depth,
    initial_arrays,
    layer_name,
    named_parameters,
    parameter_arrays,
    stored_arrays,
    with_parameters,
)

logger = messages.logger(__name__)

COMPUTE_DTYPES = ("float32", "bfloat16")


class AutoModelForQuestionAnswering(ModelCall, TorchMethods, ReadHooks, push.HubMethods):
    """An encoder with a span head, built from a Hugging Face config or checkpoint.

    Create it with `from_pretrained` or `from_config`, and with LoRA adapters by `get_peft_model`.
    The parameters are float32; `dtype` is the compute dtype.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from qa_flax import AutoModelForQuestionAnswering
        >>> tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")
        >>> model = AutoModelForQuestionAnswering.from_pretrained("bert-base-uncased")
        >>> inputs = tokenizer("Who wrote it?", "Ada wrote it.", return_tensors="np")
        >>> output = model(**inputs)
        >>> output.start_logits.shape == inputs["input_ids"].shape
        True
    """

    MODEL_TYPE: ClassVar[str | None] = None
    """The `model_type` of a class for one family; None: all."""
    NAME_PREFIX: ClassVar[str] = ""
    """What the names of the classes for one family start with."""

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        dtype: Any = jnp.float32,
        lora: LoraConfig | None = None,
        seed: int | None = 0,
    ):
        """Build a model with random weights.

        Args:
            config: transformers' config of a supported `model_type`; the model uses a copy of it.
            dtype: the compute dtype, float32 or bfloat16.
            lora: if given, the encoder is frozen and has these adapters, and `seed` has no effect.
            seed: seed of the weights. None: the config is not copied, and the parameters are
                read-only zeros, to be replaced.
        """
        class_for(type(self), family_of(config), "the config")
        seed = seed if lora is None else None
        if seed is not None:
            warn_of_unread_settings(config, family_of(config))
            config = _qa_config(config)
        family, family_config = read_family_config(config)
        self.dtype = compute_dtype(dtype)
        self.encoder: Any = family.encoder(family_config, dtype=self.dtype)
        self.head: Any = family.head(family_config, dtype=self.dtype)
        self._config = _HashedByIdentity(config)
        self.training = False
        self.lora = lora
        self.frozen: frozenset[ParamPath] = frozenset()
        self.set_by_arguments = SetByArguments()
        self.parameter_views = ParameterViews()
        self.id_limits = id_limits(family_config)
        if lora is not None:
            self.encoder = adapters.add_adapters(self.encoder, lora, partial(layer_name, family))
        if seed is not None:
            make_array = initial_arrays(family, family_config, seed)
            nnx.update(self, nnx.state(with_parameters(self, make_array)))

    @property
    def config(self) -> PreTrainedConfig:
        """The model's config, an object of transformers' config class."""
        return self._config.value

    @property
    def packing_obstacle(self) -> str | None:
        """Why rows cannot hold several windows (`segment_ids`); None: they can."""
        return getattr(self.encoder, "packing_obstacle", None)

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
        """Compute the span logits of a batch; compiled functions call this.

        Args:
            input_ids: token ids, integer `[B, L]`; like all inputs, a NumPy or JAX array.
            attention_mask: as the further inputs, see `forward`.
            token_type_ids: integer `[B, L]`.
            position_ids: integer `[B, L]`.
            segment_ids: integer `[B, L]`.
            rngs: its `dropout` stream draws the dropout masks; None means no dropout.

        Returns:
            `start` and `end`, float32 `[B, L]`.

        Raises:
            ValueError: `L` is larger than the model's number of positions, an id is outside the
                model's tables, or the model family does not support `segment_ids`.
        """
        check_ids({"input_ids": input_ids, "token_type_ids": token_type_ids}, self.id_limits)
        ids = jnp.asarray(input_ids, jnp.int32)
        mask = jnp.ones_like(ids) if attention_mask is None else _int32(attention_mask)
        types, positions, segments = map(_int32, (token_type_ids, position_ids, segment_ids))
        hidden = self.encoder(ids, mask, types, positions, segments, rngs=rngs)
        return self.head(hidden, ids, mask, segments, rngs=rngs)

    @classmethod
    def from_config(
        cls, config: PreTrainedConfig, seed: int = 0, dtype: Any = jnp.float32
    ) -> "AutoModelForQuestionAnswering":
        """Create a model with random weights.

        Args:
            config: transformers' config; the model uses a copy of it.
            seed: seed of the weights; the same seed gives the same weights on any hardware.
            dtype: the compute dtype, "float32" or "bfloat16".

        Returns:
            The new model, with float32 parameters.

        Raises:
            ValueError: the `model_type` or a setting is not supported.
        """
        return class_for(cls, family_of(config), "the config")(config, dtype=dtype, seed=seed)

    @classmethod
    @printable_errors()
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        config: PreTrainedConfig | None = None,
        seed: int = 0,
        dtype: Any = jnp.float32,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        torch_dtype: Any = None,
        use_auth_token: str | bool | None = None,
        ignore_mismatched_sizes: bool = False,
        base_model: str | os.PathLike[str] | None = None,
        **keywords: Any,
    ) -> "AutoModelForQuestionAnswering":
        """Load a model from a Hugging Face checkpoint or from a PEFT adapter directory.

        A span head that the checkpoint lacks is initialised, with a warning. For a directory of
        adapters, the base model that it names is loaded with them; for one with folds.json, the
        average of the folds' models (`average_models`).

        Args:
            pretrained_model_name_or_path: a directory, the URL of a folder in a bucket, or a name
                on the Hugging Face Hub, with config.json and safetensors weights.
            config: replaces the checkpoint's config.
            seed: seed of a newly initialised span head.
            dtype: the compute dtype, "float32" or "bfloat16": by name, or as a type of NumPy, JAX
                or torch. float16 means bfloat16, and "auto" the dtype of the checkpoint. The
                parameters are float32 in any case.
            revision: branch, tag or commit on the hub.
            token: the hub's access token; True: the token of `hf auth login`.
            cache_dir: the folder for downloads; default: the hub's cache.
            local_files_only: use only files that are already downloaded.
            torch_dtype: `dtype`, by its name in transformers 4.
            use_auth_token: `token`, by its name in transformers 4.
            ignore_mismatched_sizes: initialise weights that have another shape in the checkpoint
                from `seed`, with a warning; False: they are an error.
            base_model: for a directory of adapters, the base model's directory, URL or name; None:
                the one that adapter_config.json names.
            **keywords: settings of the config to change (`hidden_dropout_prob=0.3`; a family that
                has another name for it gets the value under that name), and transformers' other
                keywords as long as they ask for what is the case anyway.

        Returns:
            The model, with float32 parameters.

        Raises:
            OSError: files are missing or unreadable, or the download failed.
            ValueError: the model type, a setting or the weights are not supported, or the weights
                do not fit the config; the message lists all differences.
        """
        dtype = dtype if torch_dtype is None else torch_dtype
        hub: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        hub["token"] = use_auth_token if token is None else token
        directory = checkpoint_directory(pretrained_model_name_or_path, revision=revision, **hub)
        same = {"ignore_mismatched_sizes": ignore_mismatched_sizes, **hub, **keywords}
        load = partial(cls.from_pretrained, config=config, seed=seed, dtype=dtype, **same)
        if (directory / ADAPTER_CONFIG_FILE).is_file():
            base, _ = adapters.base_directory(directory, base_model, **hub)
            return load(base.name, revision=base.revision).with_adapter(directory)
        if is_folds(directory):
            return _load_folds(directory, partial(load, base_model=base_model))
        adapters.refuse_base(base_model, directory)
        config = load_config(directory) if config is None else config
        family = family_of(config)
        model_class = class_for(cls, family, str(pretrained_model_name_or_path))
        warn_of_unread_settings(config, family)
        config = _qa_config(config_with_keywords(config, keywords, family))
        dtype = getattr(config, "dtype", None) or "float32" if dtype == "auto" else dtype
        config.name_or_path = str(pretrained_model_name_or_path)
        build = partial(model_class, config, dtype=dtype, seed=None)
        return _with_stored_weights(build, config, directory, seed, ignore_mismatched_sizes)

    def set_params(self, params: Any) -> None:
        """Replace the parameters by `params`, an NNX state of NumPy or JAX arrays."""
        nnx.update(self, jax.tree.map(to_device, params))

    def take_over(self, params: Any) -> None:
        """Deprecated name of `set_params`."""
        warnings.warn(
            "take_over is deprecated; use set_params instead", DeprecationWarning, stacklevel=2
        )
        self.set_params(params)

    def print_trainable_parameters(self) -> None:
        """Print the numbers of trainable and of all parameters, in PEFT's format."""
        trainable, total = self.num_parameters(only_trainable=True), self.num_parameters()
        share = f"trainable%: {100 * trainable / total:.4f}"
        print(f"trainable params: {trainable:,} || all params: {total:,} || {share}")

    def with_dtype(self, dtype: Any) -> "AutoModelForQuestionAnswering":
        """A model with the compute dtype `dtype` that shares this model's parameters.

        It is built from the current `config`.
        """
        graphdef = nnx.graphdef(self._rebuilt(dtype, self.lora))
        return nnx.merge(graphdef, nnx.state(self))

    def _rebuilt(self, dtype: Any, lora: LoraConfig | None) -> "AutoModelForQuestionAnswering":
        """A model without values, of the current `config`, with this one's frozen parameters."""
        # A config of its own: arguments may change the dropout rates of one of the two models.
        config = copy.deepcopy(self.config)
        model = type(self)(config, dtype=dtype, lora=lora, seed=None)
        frozen = self.frozen
        if lora != self.lora:
            frozen = frozenset(path for path in frozen if not path[-1].startswith("lora_"))
        if lora is not None and self.lora is None:
            # As in PEFT, the span head is trained even if it was frozen before.
            frozen = frozenset(path for path in frozen if path[0] == "encoder")
        model.frozen = frozen
        by_arguments = self.set_by_arguments
        model.set_by_arguments = replace(by_arguments, frozen=by_arguments.frozen & frozen)
        model._set_remat(self.is_gradient_checkpointing)
        return model

    def graphdef(self, dtype: Any, remat: bool = False) -> nnx.GraphDef:
        """The NNX graph definition for a compute dtype, built from the current `config`.

        Models of the same architecture have equal graph definitions with equal hashes, even if
        names or paths in their configs differ. They share compiled programs. Which parameters are
        frozen is no part of it: see `device.step.weights_of`.
        """
        model = type(self)(self.config, dtype=dtype, lora=self.lora, seed=None).with_remat(remat)
        model._config = _NO_CONFIG
        return nnx.graphdef(model)

    def with_remat(self, remat: bool = True) -> "AutoModelForQuestionAnswering":
        """A model with or without gradient checkpointing that shares this model's parameters."""
        model = nnx.merge(*nnx.split(self))
        for _, module in nnx.iter_modules(model):
            if isinstance(module, Stack):
                module.remat = remat
        return model

    @printable_errors()
    def with_adapter(self, directory: str | os.PathLike[str]) -> "AutoModelForQuestionAnswering":
        """A copy of this model with the LoRA adapters of a PEFT directory instead of its own.

        Corresponds to `PeftModel.from_pretrained(model, directory)`. Raises the errors of
        `from_pretrained`.
        """
        directory = checkpoint_directory(directory)
        config = LoraConfig.from_peft(directory / ADAPTER_CONFIG_FILE)
        model = self._rebuilt(self.dtype, _resolve_lora(config, self))
        saved = adapters.saved_parameters(_named_parameters(model), config)
        arrays = parameter_arrays(self) | adapter_arrays(directory, saved)
        return with_parameters(model, lambda path, _: arrays[path])

    def merge_and_unload(self) -> "AutoModelForQuestionAnswering":
        """A copy of the model with its adapters merged into the weights; the output is the same.

        Raises `ValueError` if the model has no adapters, or a layer cannot hold them.
        """
        if self.lora is None:
            raise ValueError("the model has no LoRA adapters to merge")
        arrays = adapters.merge_adapters(parameter_arrays(self), self.lora)
        model = self._rebuilt(self.dtype, None)
        return with_parameters(model, lambda path, _: arrays[path])

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Any] | None = None,
        safe_serialization: bool = True,
        max_shard_size: int | str = "50GB",
        push_to_hub: bool = False,
        **keywords: Any,
    ) -> None:
        """Write config.json and model.safetensors (float32), which transformers can load, too.

        Weights larger than `max_shard_size` are written in several files and an index. What an
        earlier save left of other weights is removed, and a folder never loads a mixture of both.

        If the model has LoRA adapters, only these and the span head are written, in PEFT's files
        adapter_config.json and adapter_model.safetensors. Each file is replaced atomically.

        Args:
            save_directory: a directory, which is created if necessary, or a folder's URL in a
                bucket.
            is_main_process: False: write nothing.
            state_dict: the arrays or tensors to write instead of the model's own, by their names in
                a checkpoint.
            safe_serialization: True; pickles are not written.
            max_shard_size: the largest size of a file, in bytes or as "5GB", except that a tensor
                is never divided. Adapters are one file in any case.
            push_to_hub: upload what was written, with the keywords of the method `push_to_hub` and
                `repo_id`, which is the folder's name by default.
            **keywords: transformers' and PEFT's other keywords, as long as they change nothing.

        Raises:
            OSError: a file cannot be written, or (`PushError`) not uploaded.
            TypeError: a keyword is unknown.
            ValueError: a keyword asks for what is not supported.
        """
        save.check_keywords({"safe_serialization": safe_serialization} | keywords)
        if not is_main_process:
            return
        if push_to_hub:
            given = {n: v for n, v in keywords.items() if n in save.UPLOAD_KEYWORDS}
            saving: Any = {"state_dict": state_dict, "max_shard_size": max_shard_size}
            push.push_saved(self, save_directory, given | saving)
            return
        named = _named_parameters(self)
        if self.lora is not None:
            if state_dict is not None:
                raise ValueError("save_pretrained: state_dict is not supported with LoRA adapters")
            text = json.dumps(self.lora.to_peft(self.config.name_or_path or None), indent=2)
            named = adapters.saved_parameters(named, self.lora)
            save.write_adapter(save_directory, text, named)
            return
        config = copy.deepcopy(self.config)
        config.architectures = [family_of(config).architecture]
        config.dtype = "float32"
        text = config.to_json_string()
        if state_dict is not None:
            state_dict = save.without_ties(state_dict, family_of(config))
        save.write_model(save_directory, text, named, state_dict, max_shard_size)


def get_peft_model(
    model: AutoModelForQuestionAnswering, peft_config: LoraConfig, seed: int = 0
) -> AutoModelForQuestionAnswering:
    """Create a copy of `model` with new LoRA adapters and a frozen encoder, like PEFT's function.

    Training changes only the adapters and the span head. Before training the new model computes
    the same output as `model`, which is not changed.

    Args:
        model: a model without adapters.
        peft_config: the configuration of the adapters.
        seed: seed of the adapters' initial values.

    Returns:
        The new model; its parameters are float32.

    Raises:
        ValueError: `model` already has adapters, or `peft_config` does not fit it.

    Example:
        >>> from qa_flax import AutoModelForQuestionAnswering, LoraConfig, get_peft_model
        >>> base = AutoModelForQuestionAnswering.from_pretrained("bert-base-uncased")
        >>> model = get_peft_model(base, LoraConfig(r=4, target_modules=["query", "value"]))
        >>> model.num_parameters(only_trainable=True) < base.num_parameters(only_trainable=True)
        True
    """
    if model.lora is not None:
        raise ValueError(
            "the model already has LoRA adapters; merge_and_unload() returns a model without them"
        )
    arrays, initial_array = parameter_arrays(model), adapters.initial_adapters(seed)
    adapted = model._rebuilt(model.dtype, _resolve_lora(peft_config, model))
    return with_parameters(
        adapted,
        lambda path, shape: arrays[path] if path in arrays else initial_array(path, shape),
    )


for _family in FAMILIES.values():
    class_of_family(AutoModelForQuestionAnswering, _family)


def _int32(values: ArrayLike | None) -> jax.Array | None:
    return None if values is None else jnp.asarray(values, jnp.int32)


# ---- configs -------------------------------------------------------------------------------------


class _HashedByIdentity:
    """Wraps a config, which is not hashable, because jit hashes the attributes of a module."""

    def __init__(self, value: PreTrainedConfig):
        self.value = value


_NO_CONFIG: Any = _HashedByIdentity(PreTrainedConfig())


def compute_dtype(dtype: Any) -> jnp.dtype:
    """Return float32 or bfloat16 from a name, or from a type of NumPy, JAX or torch.

    float16 gives bfloat16, because JAX's accelerators compute in it without scaling of the loss.

    Raises:
        ValueError: it is any other.
    """
    is_torch = type(dtype).__module__.split(".")[0] == "torch"
    name = str(dtype) if is_torch or isinstance(dtype, str) else jnp.dtype(dtype).name
    name = name.removeprefix("torch.")
    if name in ("float16", "half"):
        logger.warning("dtype=%s: the model computes in bfloat16 instead.", name)
        name = "bfloat16"
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"dtype={name!r} is not supported; supported: {', '.join(COMPUTE_DTYPES)}")
    return jnp.dtype(name)


def _with_stored_weights(
    build: Callable[[], AutoModelForQuestionAnswering],
    config: PreTrainedConfig,
    directory: Path,
    seed: int,
    ignore_mismatched_sizes: bool,
) -> AutoModelForQuestionAnswering:
    """The model that `build` makes of a config, with the weights of a checkpoint."""
    with _config_errors(directory):
        family, family_config = read_family_config(config)
        check_depth(directory, family_config)
        model = build()
        make_array = stored_arrays(
            model, family, family_config, directory, seed, ignore_mismatched_sizes
        )
        return with_parameters(model, make_array)


def _load_folds(directory: Path, load: Callable[..., Any]) -> Any:
    """The average of the folds' models."""
    from qa_flax.models.averaged import average_models

    folders = fold_directories(directory)
    if nested := [folder for folder in folders if is_folds(folder)]:
        raise ValueError(f"{nested[0]} is one of the folds of {directory}, and has folds itself")
    return average_models([load(folder) for folder in folders])


@contextmanager
def _config_errors(directory: Path) -> Iterator[None]:
    """Turn the errors of a config whose values have wrong types or sizes into a ValueError."""
    try:
        yield
    except (*WRONG_TYPES, MemoryError) as error:
        raise ValueError(
            f"{directory / CONFIG_FILE} describes a model that cannot be built, because a value "
            f"has a wrong type or size: {' '.join(str(error).split())}"
        ) from error


def _qa_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of `config` with two labels, the two outputs of question answering."""
    config = copy.deepcopy(config)
    if config.num_labels != 2:
        config.num_labels = 2
    return config


# ---- names ---------------------------------------------------------------------------------------


def _named_parameters(model: AutoModelForQuestionAnswering) -> NamedParameters:
    """The model's parameters by their full checkpoint names."""
    family = family_of(model.config)
    return named_parameters(model, family, family.prefix)


def _resolve_lora(config: LoraConfig, model: AutoModelForQuestionAnswering) -> LoraConfig:
    family = family_of(model.config)
    layers = [layer_name(family, path) for path, _ in adapters.dense_layers(model.encoder)]
    return adapters.resolve_config(config, layers, _named_parameters(model))
