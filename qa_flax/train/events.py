"""What callbacks see and change, and how they are notified: shared by trainer and loop (host)."""

import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

import transformers
from tqdm import tqdm
from transformers.trainer_callback import CallbackHandler, TrainerControl, TrainerState

from qa_flax.distributed import processes

logger = logging.getLogger(__name__)


def plain_metrics(value: Any) -> Any:
    """Convert NumPy, JAX and torch scalars to Python numbers, also inside dicts, lists and tuples.

    transformers does the same, so that metrics can be logged and saved as JSON.
    """
    if isinstance(value, Mapping):
        return {name: plain_metrics(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        items = map(plain_metrics, value)
        return list(items) if isinstance(value, list) else tuple(items)
    if hasattr(value, "item") and math.prod(getattr(value, "shape", ())) == 1:
        return value.item()
    return value


class Events:
    """The arguments, state and control that callbacks receive, and the log history.

    Args:
        args: the trainer's arguments.
        handler: the handler of the trainer's callbacks. Its `model` is the trainer's, which always
            reads as the weights of the latest update (`live_state.py`).
    """

    def __init__(self, args: transformers.TrainingArguments, handler: CallbackHandler):
        self.args, self.handler = args, handler
        self._warnings: set[str] = set()
        self.reset()

    def reset(self) -> None:
        """Set state and control to what they are before the first event of a training."""
        is_main = processes.is_main()
        self.state = TrainerState(is_local_process_zero=is_main, is_world_process_zero=is_main)
        self.control = TrainerControl()

    def notify(self, event: str, *positional: Any) -> None:
        """Call `event` of each callback, in their order, and store the control that they return.

        Args:
            event: the name of a callback method, such as `on_step_end`.
            *positional: further arguments of the handler's method of that name.
        """
        call = getattr(self.handler, event)
        self.control = call(self.args, self.state, self.control, *positional)

    def log(self, logs: dict[str, Any]) -> None:
        """Add `epoch` to `logs`, append them to `state.log_history` and notify the callbacks."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        if getattr(self.args, "include_num_input_tokens_seen", "no") != "no":
            logs["num_input_tokens_seen"] = self.state.num_input_tokens_seen
        entry = {**plain_metrics(logs), "step": self.state.global_step}
        self.state.log_history.append(entry)
        self.notify("on_log", logs)

    def warn_once(self, subject: str, message: str | None) -> None:
        """Log a warning about a subject, unless it was logged before; None: there is none."""
        line = f"{subject}: {message}"
        if message is not None and line not in self._warnings:
            self._warnings.add(line)
            self.warn(line)

    def warn(self, message: str) -> None:
        """Log a warning on a line of its own, above the progress bars."""
        with tqdm.external_write_mode(file=sys.stderr, nolock=True):
            logger.warning("%s", message)
