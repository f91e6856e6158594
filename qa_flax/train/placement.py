"""What scripts read of the training arguments about processes, cores and devices (host).

transformers computes these values with torch and accelerate. Here they are JAX's: a process is a
JAX process, and what PyTorch calls a GPU is a core. JAX is imported when a value needs it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers.training_args import ParallelMode

from qa_flax.models.torch_device import Device


def _index_and_count() -> tuple[int, int]:
    """The index of this process and the number of processes, without starting a JAX backend."""
    if "jax" not in sys.modules:  # processes join through JAX, so this one is alone
        return 0, 1
    from qa_flax.distributed import processes

    return processes.index(), processes.count()


def _is_read_by_transformers() -> bool:
    """Whether transformers' own Trainer reads the property from which this is called."""
    frame, inside = sys._getframe(1), (__name__, "transformers.training_args")
    while frame is not None and frame.f_globals.get("__name__") in inside:
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == "transformers.trainer"


class Placement:
    """The properties of transformers' TrainingArguments that need torch there; a mix-in.

    `train_batch_size` and `eval_batch_size` are transformers' own: the rows per core times `n_gpu`.
    """

    @property
    def device(self) -> Device:
        """Where scripts put inputs, "cpu"; the training step copies batches to the cores itself."""
        return Device("cpu")

    @property
    def _setup_devices(self) -> Device:
        return self.device

    @property
    def n_gpu(self) -> int:
        """The number of this process's cores. Reading it starts JAX.

        transformers' own Trainer, which does not use JAX's cores, gets 0, as on a CPU: scripts may
        give both trainers the same arguments.
        """
        if _is_read_by_transformers():
            return 0
        from qa_flax.device import parallel

        return parallel.process_core_count()

    @property
    def _n_gpu(self) -> int:
        return self.n_gpu

    @_n_gpu.setter
    def _n_gpu(self, count: int) -> None:
        if count != self.n_gpu:
            raise ValueError(
                f"_n_gpu={count!r}: JAX uses all {self.n_gpu} cores of this process; to use fewer, "
                "set CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS before the script starts"
            )

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return _index_and_count()[1]

    @property
    def process_index(self) -> int:
        """The index of this process, from 0."""
        return _index_and_count()[0]

    @property
    def local_process_index(self) -> int:
        """`process_index`: one process of the whole run logs and writes, not one per machine."""
        return self.process_index

    @property
    def should_log(self) -> bool:
        """Whether this process is the main one, the only one that logs."""
        return self.process_index == 0

    @property
    def should_save(self) -> bool:
        """Whether this process is the main one, the only one that writes files."""
        return self.process_index == 0

    @property
    def parallel_mode(self) -> ParallelMode:
        """transformers' name for the distribution: over processes, over cores, or none."""
        if self.world_size > 1:
            return ParallelMode.DISTRIBUTED
        return ParallelMode.NOT_DISTRIBUTED if self.n_gpu > 1 else ParallelMode.NOT_PARALLEL

    @property
    def distributed_state(self) -> "DistributedState":
        """The processes, with the names of accelerate's `PartialState`."""
        return DistributedState()

    @contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """Let the main process do the work first; the others wait, and then do it, too.

        With one process nothing waits. Every process must enter the context.

        Args:
            local: has no effect: the main process of the run comes first in both cases.
            desc: names the work in the error message of a process that waited too long.
        """
        with _main_first(desc):
            yield


class DistributedState:
    """The processes of the run, with the names that scripts read of accelerate's `PartialState`."""

    device = Device("cpu")

    @property
    def num_processes(self) -> int:
        """The number of processes."""
        return _index_and_count()[1]

    @property
    def process_index(self) -> int:
        """The index of this process, from 0."""
        return _index_and_count()[0]

    local_process_index = process_index

    @property
    def use_distributed(self) -> bool:
        """Whether there are several processes."""
        return self.num_processes > 1

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the main one."""
        return self.process_index == 0

    is_local_main_process = is_main_process

    @property
    def is_last_process(self) -> bool:
        """Whether this process has the largest index."""
        return self.process_index == self.num_processes - 1

    def wait_for_everyone(self) -> None:
        """Wait until every process has called this."""
        _barrier("wait_for_everyone")

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let the main process do the work first."""
        with _main_first("main_process_first"):
            yield

    local_main_process_first = main_process_first

    def on_main_process(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, or on the other processes one that does nothing."""
        return function if self.is_main_process else lambda *args, **kwargs: None

    on_local_main_process = on_main_process

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the main process."""
        if self.is_main_process:
            print(*args, **kwargs)


@contextmanager
def _main_first(work: str) -> Iterator[None]:
    is_main = _index_and_count()[0] == 0
    if not is_main:
        _barrier(work)
    try:
        yield
    finally:
        if is_main:
            _barrier(work)


def _barrier(label: str) -> None:
    if _index_and_count()[1] > 1:
        from qa_flax.distributed.exchange import barrier

        barrier(label)


class LocalRank:
    """The attribute `local_rank`: as given; -1, as in transformers, or with several the index.

    Scripts compare it with -1 and 0 to find the main process.
    """

    name = "local_rank"

    def __get__(self, args: Any, owner: type | None = None) -> int:
        if args is None:
            return -1
        value = vars(args).get(self.name, -1)
        index, count = _index_and_count()
        return index if value == -1 and count > 1 else value

    def __set__(self, args: Any, value: int) -> None:
        vars(args)[self.name] = value
