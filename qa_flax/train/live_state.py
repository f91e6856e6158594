"""The single owner of the training state: on the cores, and copied into the model when it is read.

During training the weights are on the cores, and every update replaces them. The model that the
script and its callbacks hold is brought up to date only when it is read, so a training step copies
nothing to the host. Values that a callback writes into the model are put on the cores before the
next update.

With an average of the weights (`ema_decay`) the model reads as the average, which is evaluated and
saved, while training continues with the plain weights. A written value replaces both.
"""

import hashlib
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qa_flax.data.interrupts import interrupts_deferred
from qa_flax.device import parallel
from qa_flax.device.memory import abstract_weights
from qa_flax.device.step import TrainState, Weights, weights_of
from qa_flax.distributed import ProcessError, processes
from qa_flax.distributed.exchange import all_gather_json, barrier
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.padded import is_wrapped
from qa_flax.models.read_hooks import DeferredArray, has_read_hook, set_read_hook
from qa_flax.models.transfers import to_device, to_host


class LiveState:
    """Owns a model's weights: on the cores during training, in the model otherwise.

    Args:
        model: the model whose weights these are.
        is_sharded: whether each core holds one shard of every array instead of a replica.
    """

    def __init__(self, model: AutoModelForQuestionAnswering, is_sharded: bool):
        self.model, self._is_sharded = model, is_sharded
        self._state: TrainState | None = None
        self._variables: dict[tuple[Any, ...], nnx.Variable] = {}
        # The value that this class last gave each variable; any other was written by a callback.
        self._model_values: list[Any] = []
        self._is_current = self._is_read = self._has_arrays = False
        self._has_new_fixed = False
        self._lost: _LostWeights | None = None
        if is_sharded:  # one core may not have the memory for all weights
            with parallel.on_host():
                for arrays in weights_of(model):
                    model.set_params(arrays)

    @property
    def is_training(self) -> bool:
        """Whether the weights are on the cores."""
        return self._state is not None

    @property
    def is_lost(self) -> bool:
        """Whether a failed step has taken the weights with it; reading the model says why."""
        return self._lost is not None

    @property
    def has_new_fixed(self) -> bool:
        """Whether a callback has written into weights that are not trained."""
        return self._has_new_fixed

    def begin(self, state: TrainState) -> None:
        """Start owning `state`: until `end`, the model's weights are on the cores.

        Args:
            state: from `parallel.put_state`: arrays [D, ...], `Shard`s and `PaddedTable`s.

        Raises:
            ValueError: the model is already being trained.
        """
        if has_read_hook(self.model):
            raise ValueError(
                "this model is being trained already; wait until that training has finished"
            )
        nodes = nnx.iter_graph(self.model)
        variables = {path: node for path, node in nodes if isinstance(node, nnx.Variable)}
        self._state = state
        self._variables = {path: variables[path] for path in _paths(state.weights)}
        set_read_hook(self.model, self._read)
        self._is_read = self._has_new_fixed = False
        self._defer_arrays()

    def state(self) -> TrainState:
        """Return the state after the latest update, with values written into the model since.

        Raises:
            ValueError: a callback wrote an array of another shape or dtype, or replaced a variable.
            ProcessError: a callback wrote different values in different processes.
        """
        self._apply_model_writes()
        assert self._state is not None
        return self._state

    def replace(self, state: TrainState) -> None:
        """Replace the state by the one after one more update."""
        self._state = state
        if self._has_arrays:
            self._defer_arrays()

    def evaluation_weights(self) -> Weights:
        """Return the weights to evaluate with, on the cores: those in training, or the model's.

        With an average of the weights in training, it is the average.
        """
        if self._state is not None:
            return self.state().evaluation_weights
        is_padded = parallel.has_tiles()
        abstract = abstract_weights(self.model, self._is_sharded, is_padded=is_padded)
        return parallel.put_state(weights_of(self.model), abstract)

    def host_copy(self) -> TrainState:
        """Return the state as NumPy arrays, without fixed weights; every process must call it."""
        return parallel.gather_state(self.state()._replace(fixed=()))

    # ---- copying the weights into the model ------------------------------------------------------

    def gather_shards(self) -> None:
        """All-gather sharded weights into the model; every process must call it.

        Without sharding it does nothing: each process can read the model by itself.
        """
        if self._state is None or self._is_current or not self._is_sharded:
            return
        self._apply_model_writes()
        barrier("gathering the model's shards")  # its error names a process that does not arrive
        self._update_model()

    def _update_model(self) -> None:
        """Copy the weights of the latest update, or their average, into the model.

        A replica is copied on its core; shards are all-gathered in the host's memory.
        """
        if self._state is None or self._is_current:
            return
        params = self._state.evaluation_weights.params
        # A callback may read the model in a function that JAX traces; the weights are constants
        # there, so they must be concrete arrays.
        with jax.ensure_compile_time_eval():
            if self._is_sharded:
                with parallel.on_host():
                    arrays = [to_device(a) for a in _leaves(parallel.gather_state(params))]
            else:
                arrays = parallel.copy_first_replica(_leaves(params))
        for n, (variable, array) in enumerate(zip(self._variables.values(), arrays, strict=False)):
            if variable.get_raw_value() is self._model_values[n]:  # not written by a callback
                _set_raw_value(variable, array)
                self._model_values[n] = array
        self._is_current = self._has_arrays = True

    def end(self) -> None:
        """Write the trained weights, or their average, into the model and let go of the state.

        Every process must call it.
        """
        if self._state is not None:
            self._write_to_model(self.state().evaluation_weights.params)

    def _write_to_model(self, params: Any) -> None:
        params = parallel.gather_state(params)
        with interrupts_deferred():  # the model has the weights before or those after, whole
            self._detach()
            with parallel.on_host() if self._is_sharded else nullcontext():
                self.model.set_params(params)

    def abandon(self) -> None:
        """After an error, write the weights, or their average, into the model if possible.

        If it is not, every later read of the model raises an error that gives the reason.
        """
        if self._state is None:
            return
        params = self._state.evaluation_weights.params
        reason = "the failed step had already released them"
        if self._is_sharded and processes.count() > 1:
            # Only all processes together can gather shards, and the others may not arrive.
            reason = f"each of {processes.count()} processes holds only a shard of them"
        # The state's buffers are donated to the step, so a failed step may have deleted them.
        elif not any(array.is_deleted() for array in jax.tree.leaves(params)):
            try:
                self._apply_model_writes(in_all_processes=False)
                self._write_to_model(self._state.evaluation_weights.params)
                return
            except jax.errors.JaxRuntimeError as error:  # the latest update failed on the cores
                reason = f"could not be copied to the host ({str(error).splitlines()[0]})"
        self._state, self._lost = None, _LostWeights(reason)
        set_read_hook(self.model, self._lost)

    def _read(self) -> None:
        """Prepare the model for being read or written: the hook of the model and its arrays."""
        if self._lost is not None:  # called by a `DeferredArray` that outlived the training
            self._lost()
        if not self._is_current and self._is_sharded and processes.count() > 1:
            raise RuntimeError(
                f"during training each of {processes.count()} processes holds a shard of this "
                "model's weights, so one process alone cannot read them. Call "
                "trainer.save_model(folder) or trainer.evaluate() in every process (not only where "
                "state.is_world_process_zero is true), or read the model after train()"
            )
        self._is_read = True
        self._update_model()

    def _defer_arrays(self) -> None:
        """Replace the model's trained arrays, outdated by an update, by `DeferredArray`s."""
        assert self._state is not None
        trained = len(_leaves(self._state.params))
        self._model_values = []
        for n, variable in enumerate(self._variables.values()):
            value = variable.get_raw_value()
            if n < trained:
                value = DeferredArray(variable, tuple(value.shape), self._read)
                _set_raw_value(variable, value)
            self._model_values.append(value)
        self._is_current = self._has_arrays = False

    def _detach(self) -> None:
        set_read_hook(self.model, None)
        self._state, self._variables, self._model_values = None, {}, []
        self._is_current = False

    # ---- values that callbacks write into the model ----------------------------------------------

    def _apply_model_writes(self, in_all_processes: bool = True) -> None:
        """Put values that were written into the model on the cores.

        They replace the plain weights and the average of them, since the model has only one value.
        Invalid values are removed from the model before the error is raised. The processes compare
        what they have written, unless `in_all_processes` is False.
        """
        assert self._state is not None
        if self._is_read:
            self._check_structure()
        pairs = enumerate(zip(self._variables.values(), self._model_values, strict=True))
        written = {n: v for n, (v, value) in pairs if v.get_raw_value() is not value}
        if not written:
            return
        weights, names = self._state.weights, list(self._variables)
        leaves, structure = jax.tree.flatten(weights, is_leaf=is_wrapped)
        try:
            arrays = {n: _checked_array(v, leaves[n], names[n]) for n, v in written.items()}
            if in_all_processes:
                _check_same_in_all_processes(
                    {".".join(map(str, names[n])): array for n, array in arrays.items()}
                )
        except (ValueError, ProcessError):
            for n, variable in written.items():
                _set_raw_value(variable, self._model_values[n])
            raise
        for n, array in arrays.items():
            leaves[n] = parallel.put_state([array], [leaves[n]])[0]
            self._model_values[n] = written[n].get_raw_value()
        self._has_new_fixed |= max(written) >= len(_leaves(weights.params))
        params, fixed = jax.tree.unflatten(structure, leaves)
        average = _with_written(self._state.average, arrays)
        self._state = self._state._replace(params=params, fixed=fixed, average=average)
        self._has_arrays = True

    def _check_structure(self) -> None:
        """Check that a callback that read the model has not replaced any of its variables."""
        nodes = nnx.iter_graph(self.model)
        variables = {path: node for path, node in nodes if isinstance(node, nnx.Variable)}
        self._is_read = False
        if any(variables.get(path) is not variable for path, variable in self._variables.items()):
            raise ValueError(
                "a callback replaced modules or variables of the model during training; write into "
                "the existing variables instead: model.head.outputs.kernel[...] = array, or "
                "nnx.update(model, state)"
            )


class _LostWeights:
    """The read hook of a model whose weights are lost: raises an error that gives the reason."""

    def __init__(self, reason: str):
        self._reason = reason

    def __call__(self) -> None:
        raise RuntimeError(
            f"this model's weights were on the cores when its training failed, and {self._reason}; "
            "load the latest checkpoint with AutoModelForQuestionAnswering.from_pretrained(...)"
        )


def _with_written(average: Any, arrays: dict[int, np.ndarray]) -> Any:
    """The average of the parameters with written values in it.

    Args:
        average: None: there is none.
        arrays: the values by their number among the leaves of all weights: parameters, then fixed.
    """
    # These copies are not those of the parameters: the step donates the buffers of both.
    leaves, structure = jax.tree.flatten(average, is_leaf=is_wrapped)
    for n, array in arrays.items():
        if n < len(leaves):
            leaves[n] = parallel.put_state([array], [leaves[n]])[0]
    return structure.unflatten(leaves)


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=is_wrapped)


def _paths(weights: Weights) -> list[tuple[Any, ...]]:
    """The path in the model of each array of the weights, in the order of their leaves."""
    return [
        tuple(part.key for part in path if isinstance(part, jax.tree_util.DictKey))
        for tree in weights
        for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_wrapped)
    ]


def _set_raw_value(variable: nnx.Variable, value: Any) -> None:
    # NNX forbids writing while JAX traces a function, and a function being traced may read the
    # model. The weights are constants of that function, so this write does not change its result.
    object.__setattr__(variable, "_raw_value", value)


def _checked_array(variable: nnx.Variable, leaf: Any, path: tuple[Any, ...]) -> np.ndarray:
    """The variable's value as float32, of the shape of its array on the cores.

    Raises:
        ValueError: the value has another shape, or is not floating point.
    """
    shape = leaf.shape if is_wrapped(leaf) else leaf.shape[1:]
    array = to_host(variable.get_raw_value())
    if array.shape != tuple(shape) or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"a callback wrote an array of shape {array.shape} and dtype {array.dtype} into the "
            f"model's {'.'.join(map(str, path))}; the shape must be {tuple(shape)}, and the dtype "
            "floating point"
        )
    return array.astype(np.float32)


def _check_same_in_all_processes(arrays: dict[str, np.ndarray]) -> None:
    """Check that all processes wrote the same values: otherwise their models would diverge.

    Raises:
        ProcessError: names the arrays.
    """
    if processes.count() == 1:
        return
    digests = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    gathered = all_gather_json("weights written by a callback", digests)
    if any(other != digests for other in gathered):
        raise ProcessError(
            "a callback wrote different weights into the model in different processes "
            f"({', '.join(digests)}); write the same values in every process"
        )
