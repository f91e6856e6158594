"""`report_to`: transformers' callbacks for TensorBoard, Weights & Biases and others (host).

A tracker that cannot be used is an error before any work; one that fails later does not stop the
training.
"""

import functools
import logging
import os
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import transformers
from transformers import TrainerCallback
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from transformers.trainer_callback import CallbackHandler

from qa_flax.distributed import processes

logger = logging.getLogger(__name__)

EXTRAS = ("tensorboard", "wandb", "trackio")
"""The trackers that are installed with an extra of this package."""
PACKAGES = {"azure_ml": "azureml-sdk"}
"""The packages of other trackers, where they have another name."""


class TrackerError(ValueError):
    """A tracker of `report_to` is unknown, not installed or not logged in."""


def tracker_callbacks(args: transformers.TrainingArguments) -> list[TrainerCallback]:
    """Return the callbacks of `report_to`, guarded against their errors.

    Raises:
        TrackerError: says what is missing, and how to get it or do without.
    """
    names = [args.report_to] if isinstance(args.report_to, str) else list(args.report_to or ())
    return [
        callback for name in names for callback in _callbacks(name, _without(name, names, args))
    ]


def _callbacks(name: str, without: str) -> list[TrainerCallback]:
    if name in ("none", "all"):
        return [c for each in _names(name) for c in _callbacks(each, without)]
    disabled = os.environ.get("WANDB_DISABLED", "")
    if name not in INTEGRATION_TO_CALLBACK:
        similar = get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
        hint = f"did you mean {similar[0]!r}? " if similar else ""
        raise TrackerError(
            f"report_to={name!r}: there is no such tracker; {hint}allowed: "
            f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}; or {without}"
        )
    if name == "wandb" and disabled.lower() in ("1", "true", "yes", "on"):
        raise TrackerError(
            f"report_to='wandb', but the environment variable WANDB_DISABLED is {disabled!r}; "
            f"unset it, or {without}"
        )
    if name not in _names("all"):
        install = f"'qa-flax[{name}]'" if name in EXTRAS else PACKAGES.get(name, name)
        raise TrackerError(
            f"report_to={name!r}: {name} is not installed; install it with pip install {install}, "
            f"or {without}"
        )
    if name == "wandb" and processes.is_main():
        _check_wandb(without)
    callbacks = [make() for make in get_reporting_integration_callbacks(name)]
    for callback in callbacks:
        _guard(callback, name)
    return callbacks


def _names(report_to: str) -> list[str]:
    return [] if report_to == "none" else get_available_reporting_integrations()


def _without(name: str, names: list[str], args: transformers.TrainingArguments) -> str:
    others = [other for other in names if other != name] or ["none"]
    if vars(args).get("_is_command_line"):
        return f"use --report_to {' '.join(others)}"
    return f"use report_to={others[0] if len(others) == 1 else others!r}"


def _check_wandb(without: str) -> None:
    """Refuse to start without a way to log in: `wandb.init` would ask, or fail later.

    Raises:
        TrackerError: there is no API key.
    """
    import wandb

    is_local = os.environ.get("WANDB_MODE", "online") not in ("online", "shared")
    if is_local or wandb.run is not None or _has_wandb_key(wandb):
        return
    raise TrackerError(
        "report_to='wandb': no API key of Weights & Biases was found; run `wandb login` or set "
        f"WANDB_API_KEY, set WANDB_MODE=offline to write local files only, or {without}"
    )


def _has_wandb_key(wandb: Any) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    return bool(wandb.login(prompt=False))


def _guard(callback: TrainerCallback, name: str) -> None:
    """Let the callback's events log an error instead of raising it, and stop calling it then.

    The callback's type stays what it is, since scripts look for callbacks by their type.
    """
    failed = False

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def event(*arguments: Any, **kwargs: Any) -> Any:
            nonlocal failed
            if failed:
                return None
            try:
                return method(*arguments, **kwargs)
            except Exception as error:
                failed = True
                reason = " ".join(str(error).split()) or "no reason given"
                logger.warning(
                    "%s failed (%s: %s) and receives no more values; the training continues "
                    "without it.",
                    name,
                    type(error).__name__,
                    reason,
                )
                return None

        return event

    for event in dir(CallbackHandler):
        if event.startswith("on_") and hasattr(callback, event):
            setattr(callback, event, guarded(getattr(callback, event)))
