"""What callbacks see and change, and telling them of events; trainer and loop share one."""

from typing import Any

import transformers
from transformers.trainer_callback import CallbackHandler, TrainerControl, TrainerState

from qa_flax.distributed import processes


class Events:
    """The state and control that callbacks get, and the log history.

    Args:
        args: the trainer's.
        handler: of its callbacks; their `model` is the trainer's, whose weights are always those of
            the last finished update (`live_state.py`).
    """

    def __init__(self, args: transformers.TrainingArguments, handler: CallbackHandler):
        self.args, self.handler = args, handler
        self.reset()

    def reset(self) -> None:
        """As before the first event of a training."""
        is_main = processes.is_main()
        self.state = TrainerState(is_local_process_zero=is_main, is_world_process_zero=is_main)
        self.control = TrainerControl()

    def notify(self, event: str, *positional: Any, **kwargs: Any) -> None:
        """Tell the callbacks of an event, in their order; `control` is as they leave it."""
        if kwargs:  # what transformers' own methods do not pass on
            call = self.handler.call_event
            self.control = call(event, self.args, self.state, self.control, **kwargs)
        else:
            call = getattr(self.handler, event)
            self.control = call(self.args, self.state, self.control, *positional)

    def log(self, logs: dict[str, Any]) -> None:
        """Add `epoch` to `logs`, append them to `state.log_history`, tell the callbacks."""
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        if getattr(self.args, "include_num_input_tokens_seen", "no") != "no":
            logs["num_input_tokens_seen"] = self.state.num_input_tokens_seen
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.notify("on_log", logs)
