"""The one owner of a training's state: on the cores, and in the model when somebody reads it.

While a model is trained its weights are on the cores, and every update replaces them. The model
that the script and the callbacks hold is brought up to date when it is read, not before: a step
copies nothing to the host. What they write into it goes to the cores before the next update.
"""

import hashlib
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qa_flax.device import parallel
from qa_flax.device.step import TrainState, Weights, weights_of
from qa_flax.distributed import ProcessError, processes
from qa_flax.distributed.exchange import all_gather_json, barrier
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.models.read_hooks import DeferredArray, has_read_hook, set_read_hook
from qa_flax.models.sharding import Shard, abstract_shards, is_shard


class LiveState:
    """A model's weights, wherever they are: in the model or, while it is trained, on the cores.

    Args:
        model: whose weights they are.
        is_sharded: whether each core holds a shard of every array instead of a copy.
    """

    def __init__(self, model: AutoModelForQuestionAnswering, is_sharded: bool):
        self.model, self._is_sharded = model, is_sharded
        self._state: TrainState | None = None
        self._variables: dict[tuple[Any, ...], nnx.Variable] = {}
        self._in_model: list[Any] = []  # what each variable holds, unless somebody wrote it
        self._is_current = self._is_read = self._has_arrays = False
        self._lost: _Lost | None = None
        if is_sharded:  # one core may not have room for all of it
            with parallel.on_host():
                model.set_params(weights_of(model).params)

    @property
    def is_training(self) -> bool:
        """Whether the weights are on the cores."""
        return self._state is not None

    def begin(self, state: TrainState) -> None:
        """From now on the weights are these, on the cores.

        Raises:
            ValueError: another training has them.
        """
        if has_read_hook(self.model):
            raise ValueError("this model is being trained already: one training at a time")
        nodes = nnx.iter_graph(self.model)
        variables = {path: node for path, node in nodes if isinstance(node, nnx.Variable)}
        self._state = state
        self._variables = {path: variables[path] for path in _paths(state.weights)}
        set_read_hook(self.model, self._read)
        self._is_read = False
        self._hold_back()

    def state(self) -> TrainState:
        """The state after the last update, with what was written into the model since."""
        self._take_what_was_written()
        assert self._state is not None
        return self._state

    def replace(self, state: TrainState) -> None:
        """The state after one more update."""
        self._state = state
        if self._has_arrays:
            self._hold_back()

    def evaluation_weights(self) -> Weights:
        """On the cores, the weights to evaluate with: those of the last update, or the model's.

        The one place to give evaluation others, such as an average of many updates.
        """
        if self._state is not None:
            return self.state().weights
        weights = weights_of(self.model)
        abstract = abstract_shards(weights, parallel.core_count()) if self._is_sharded else weights
        return parallel.put_state(weights, abstract)

    def host_copy(self) -> TrainState:
        """The state as NumPy, without what no step changes; every process calls it."""
        return parallel.gather_state(self.state()._replace(fixed=()))

    # ---- in the model ----------------------------------------------------------------------------

    def gather_shards(self) -> None:
        """Make the model readable in every process; all of them call it.

        Without shards it is readable in any case, by each process alone.
        """
        if self._state is None or self._is_current or not self._is_sharded:
            return
        self._take_what_was_written()
        barrier("reading the model's shards")  # a process that does not come is named
        self._bring_up_to_date()

    def _bring_up_to_date(self) -> None:
        """Put the weights into the model.

        One core's copy stays on that core; shards are gathered in the host's memory.
        """
        if self._state is None or self._is_current:
            return
        params = self._state.params
        # Also while JAX traces somebody's function: these are arrays all the same.
        with jax.ensure_compile_time_eval():
            if self._is_sharded:
                with parallel.on_host():
                    arrays = [jnp.asarray(a) for a in _leaves(parallel.gather_state(params))]
            else:
                arrays = parallel.copy_first_replica(_leaves(params))
        for n, (variable, array) in enumerate(zip(self._variables.values(), arrays, strict=False)):
            if variable.get_raw_value() is self._in_model[n]:  # else somebody has written it
                _put(variable, array)
                self._in_model[n] = array
        self._is_current = self._has_arrays = True

    def end(self) -> None:
        """The model holds the weights by itself again; every process calls it."""
        if self._state is not None:
            self._give_back(self.state().params)

    def _give_back(self, params: Any) -> None:
        params = parallel.gather_state(params)
        self._leave()
        with parallel.on_host() if self._is_sharded else nullcontext():
            self.model.set_params(params)

    def abandon(self) -> None:
        """After an error: as `end` if that can be done, else the model says why it has no weights.

        Shards of several processes can be gathered by all of them alone, and the others may not
        come; a step that failed may have taken the state with it.
        """
        if self._state is None:
            return
        reason = "the step that failed took them with it"
        if self._is_sharded and processes.count() > 1:
            reason = f"each of {processes.count()} processes holds a shard of them"
        elif not any(array.is_deleted() for array in jax.tree.leaves(self._state.params)):
            try:
                self._take_what_was_written(is_alone=True)
                self._give_back(self._state.params)
                return
            except jax.errors.JaxRuntimeError as error:  # what the cores computed last has failed
                reason = f"the cores could not give them ({str(error).splitlines()[0]})"
        self._state, self._lost = None, _Lost(reason)
        set_read_hook(self.model, self._lost)

    def _read(self) -> None:
        """Somebody is about to read the model, or to write it."""
        if self._lost is not None:  # a part of it that was kept
            self._lost()
        if not self._is_current and self._is_sharded and processes.count() > 1:
            raise RuntimeError(
                f"while it is trained, each of {processes.count()} processes holds a shard of this "
                "model's weights, and one process alone cannot read them. Call "
                "trainer.save_model(folder) or trainer.evaluate() in every process (not only where "
                "state.is_world_process_zero is true), or read the model after train()"
            )
        self._is_read = True
        self._bring_up_to_date()

    def _hold_back(self) -> None:
        """The model holds no trained weights: they would be old after the next update."""
        assert self._state is not None
        trained = len(_leaves(self._state.params))
        self._in_model = []
        for n, variable in enumerate(self._variables.values()):
            value = variable.get_raw_value()
            if n < trained:
                value = DeferredArray(variable, tuple(value.shape), self._read)
                _put(variable, value)
            self._in_model.append(value)
        self._is_current = self._has_arrays = False

    def _leave(self) -> None:
        set_read_hook(self.model, None)
        self._state, self._variables, self._in_model = None, {}, []
        self._is_current = False

    # ---- what was written into it ----------------------------------------------------------------

    def _take_what_was_written(self, is_alone: bool = False) -> None:
        """Onto the cores, unless it does not fit: then it is as if it had not been written."""
        assert self._state is not None
        if self._is_read:
            self._check_structure()
        both = enumerate(zip(self._variables.values(), self._in_model, strict=True))
        written = {n: v for n, (v, held) in both if v.get_raw_value() is not held}
        if not written:
            return
        weights, names = self._state.weights, list(self._variables)
        leaves, structure = jax.tree.flatten(weights, is_leaf=is_shard)
        try:
            arrays = {n: _checked(v, leaves[n], names[n]) for n, v in written.items()}
            if not is_alone:
                _check_alike({".".join(map(str, names[n])): a for n, a in arrays.items()})
        except (ValueError, ProcessError):
            for n, variable in written.items():
                _put(variable, self._in_model[n])
            raise
        for n, array in arrays.items():
            leaves[n] = parallel.put_state([array], [leaves[n]])[0]
            self._in_model[n] = written[n].get_raw_value()
        params, fixed = jax.tree.unflatten(structure, leaves)
        self._state = self._state._replace(params=params, fixed=fixed)
        self._has_arrays = True

    def _check_structure(self) -> None:
        """Whoever read the model may have put other modules into it."""
        now = {p: v for p, v in nnx.iter_graph(self.model) if isinstance(v, nnx.Variable)}
        self._is_read = False
        if any(now.get(path) is not variable for path, variable in self._variables.items()):
            raise ValueError(
                "a callback put other modules or variables into the model while it was trained; "
                "write the values of those that are there: model.head.outputs.kernel[...] = array, "
                "or nnx.update(model, state)"
            )


class _Lost:
    """What a model does when it is read whose weights are gone."""

    def __init__(self, reason: str):
        self._reason = reason

    def __call__(self) -> None:
        raise RuntimeError(
            f"this model's weights were on the cores when its training failed, and {self._reason}; "
            "load the last checkpoint with AutoModelForQuestionAnswering.from_pretrained(...)"
        )


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=is_shard)


def _paths(weights: Weights) -> list[tuple[Any, ...]]:
    """Where in the model each array of the state belongs, in the order of the state's leaves."""
    return [
        tuple(part.key for part in path if isinstance(part, jax.tree_util.DictKey))
        for tree in weights
        for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_shard)
    ]


def _put(variable: nnx.Variable, value: Any) -> None:
    # NNX allows no writing while JAX traces a function, and somebody's function may read the model:
    # to it the weights are constants, which they are after this as before.
    object.__setattr__(variable, "_raw_value", value)


def _checked(variable: nnx.Variable, leaf: Any, path: tuple[Any, ...]) -> np.ndarray:
    """What was written into a variable, float32, of the shape that the cores hold."""
    shape = leaf.shape if isinstance(leaf, Shard) else leaf.shape[1:]
    array = np.asarray(variable.get_raw_value())
    if array.shape != tuple(shape) or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"a callback wrote an array of shape {array.shape} ({array.dtype}) into the model's "
            f"{'.'.join(map(str, path))}; it must be {tuple(shape)} of floats"
        )
    return array.astype(np.float32)


def _check_alike(arrays: dict[str, np.ndarray]) -> None:
    """Several processes must write the same, or each trains a model of its own from then on."""
    if processes.count() == 1:
        return
    written = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    if any(other != written for other in all_gather_json("weights written by a callback", written)):
        raise ProcessError(
            f"a callback wrote other weights into the model in one process than in another "
            f"({', '.join(written)}); write the same in every process"
        )
