"""Learning-rate schedules, by the names of transformers' `lr_scheduler_type` (host).

The host computes each rate and passes it to the training step as a number, so a schedule may
depend on evaluation metrics. The rates, and the names and defaults of `lr_scheduler_kwargs`, are
those of transformers.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable
from typing import Any


class Schedule:
    """The learning rates of updates 0, 1, ...; `rate(step)` may depend on the metrics so far."""

    follows_metric = False
    """Whether the rates depend on the metrics that `observe` receives."""

    def __init__(self, learning_rate: float):
        self.learning_rate = learning_rate
        self._last = learning_rate

    def rate(self, step: int) -> float:
        """Return the learning rate of update `step`."""
        self._last = self.learning_rate * self._multiplier(step)
        return self._last

    def get_last_lr(self) -> list[float]:
        """Return the latest result of `rate`, in a list; the name is PyTorch's, for callbacks."""
        return [self._last]

    def observe(self, metric: float) -> None:
        """Receive the metric of an evaluation; schedules with a formula ignore it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint, as JSON values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""

    def _multiplier(self, step: int, /) -> float:
        raise NotImplementedError


def make_schedule(
    kind: str,
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    kwargs: dict[str, Any] | None = None,
    *,
    greater_is_better: bool = False,
) -> Schedule:
    """Build the schedule that transformers' `lr_scheduler_type` names.

    Args:
        kind: one of `SCHEDULES`.
        learning_rate: the highest rate.
        warmup_steps: updates over which the rate grows from 0 to `learning_rate`.
        total_steps: updates of the whole training.
        kwargs: transformers' `lr_scheduler_kwargs`.
        greater_is_better: whether a higher metric is better, for the schedules that follow a
            metric (`reduce_lr_on_plateau`, `greedy`). Ignored if `kwargs` has `mode`.

    Returns:
        A schedule for updates 0 to `total_steps - 1`.

    Raises:
        ValueError: the kind is unknown, or one of `kwargs` is unknown, missing or out of range.
    """
    if kind not in SCHEDULES:
        raise ValueError(
            f"lr_scheduler_type={kind!r} is not supported; choose one of {', '.join(SCHEDULES)}"
        )
    kwargs = dict(kwargs or {})
    build = SCHEDULES[kind]
    parameters = inspect.signature(build).parameters
    common = {
        "learning_rate": learning_rate,
        "warmup_steps": warmup_steps,
        "total_steps": total_steps,
    }
    names = [name for name in parameters if name not in common]
    unknown = sorted(kwargs.keys() - set(names))
    if unknown:
        raise ValueError(
            f"lr_scheduler_kwargs: lr_scheduler_type={kind!r} does not accept "
            f"{', '.join(unknown)}; it accepts: {', '.join(names) or 'none'}"
        )
    if "mode" in parameters:
        kwargs.setdefault("mode", "max" if greater_is_better else "min")
    required = [n for n in names if parameters[n].default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in kwargs]:
        raise ValueError(
            f"lr_scheduler_kwargs: lr_scheduler_type={kind!r} needs {', '.join(missing)}"
        )
    result = build(**{n: value for n, value in common.items() if n in parameters}, **kwargs)
    return result if isinstance(result, Schedule) else _Formula(learning_rate, result)


Multiplier = Callable[[int], float]
"""Update -> its rate divided by the highest rate."""


class _Formula(Schedule):
    def __init__(self, learning_rate: float, multiplier: Multiplier):
        super().__init__(learning_rate)
        self._multiplier = multiplier


# ---- formulas ------------------------------------------------------------------------------------


def _after_warmup(
    warmup_steps: int, total_steps: int, decay: Callable[[float], float]
) -> Multiplier:
    """Build a linear warm-up from 0 to 1, then `decay(progress)`, with `progress` from 0 to 1."""

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        return max(0.0, decay((step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return multiplier


def _cosine_wave(progress: float, num_cycles: float) -> float:
    """Return a cosine between 1 and 0, which falls from 1 to 0 in half a cycle."""
    return 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress))


def _linear(warmup_steps: int, total_steps: int) -> Multiplier:
    return _after_warmup(warmup_steps, total_steps, lambda progress: 1.0 - progress)


def _cosine(warmup_steps: int, total_steps: int, num_cycles: float = 0.5) -> Multiplier:
    return _after_warmup(
        warmup_steps, total_steps, lambda progress: _cosine_wave(progress, num_cycles)
    )


def _cosine_with_restarts(warmup_steps: int, total_steps: int, num_cycles: int = 1) -> Multiplier:
    def decay(progress: float) -> float:
        return 0.0 if progress >= 1.0 else _cosine_wave(num_cycles * progress % 1.0, 0.5)

    return _after_warmup(warmup_steps, total_steps, decay)


def _polynomial(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
) -> Multiplier:
    if lr_end >= learning_rate:
        raise ValueError(
            f"lr_scheduler_kwargs: lr_end is {lr_end}; it must be below learning_rate "
            f"({learning_rate})"
        )
    end = lr_end / learning_rate
    return _after_warmup(
        warmup_steps,
        total_steps,
        lambda progress: end + (1.0 - end) * max(0.0, 1.0 - progress) ** power,
    )


def _constant() -> Multiplier:
    return lambda step: 1.0


def _constant_with_warmup(warmup_steps: int) -> Multiplier:
    return _after_warmup(warmup_steps, warmup_steps + 1, lambda progress: 1.0)


def _inverse_sqrt(warmup_steps: int, timescale: int | None = None) -> Multiplier:
    scale = timescale or warmup_steps or 10_000

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        return 1.0 / math.sqrt((step + scale - warmup_steps) / scale)

    return multiplier


def _min_multiplier(learning_rate: float, min_lr: float | None, min_lr_rate: float | None) -> float:
    """Return the lowest rate divided by the highest rate."""
    if min_lr is not None and min_lr_rate is None:
        return min_lr / learning_rate
    if min_lr_rate is not None and min_lr is None:
        return min_lr_rate
    raise ValueError("lr_scheduler_kwargs: set exactly one of min_lr and min_lr_rate")


def _cosine_with_min_lr(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> Multiplier:
    low = _min_multiplier(learning_rate, min_lr, min_lr_rate)
    return _after_warmup(
        warmup_steps,
        total_steps,
        lambda progress: low + (1.0 - low) * _cosine_wave(progress, num_cycles),
    )


def _cosine_warmup_with_min_lr(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> Multiplier:
    low = _min_multiplier(learning_rate, min_lr, min_lr_rate)

    def multiplier(step: int) -> float:
        if step < warmup_steps:  # the first rate is above 0, unlike in the other schedules
            if warmup_lr_rate is None:
                return (step + 1) / warmup_steps
            return warmup_lr_rate + (1.0 - warmup_lr_rate) * step / max(1, warmup_steps - 1)
        progress = (step - warmup_steps + 1) / max(1, total_steps - warmup_steps)
        return max(0.0, low + (1.0 - low) * _cosine_wave(progress, num_cycles))

    return multiplier


_RAMPS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, cycles: progress,
    "cosine": lambda progress, cycles: 1.0 - _cosine_wave(progress, cycles),
    "1-sqrt": lambda progress, cycles: 1.0 - math.sqrt(1.0 - progress),
}
"""`warmup_type` and `decay_type` -> (progress, cosine cycles) -> a value that grows from 0 to 1."""


def _warmup_stable_decay(
    warmup_steps: int,
    total_steps: int,
    num_decay_steps: int,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> Multiplier:
    for name, kind in (("warmup_type", warmup_type), ("decay_type", decay_type)):
        if kind not in _RAMPS:
            raise ValueError(
                f"lr_scheduler_kwargs: {name} is {kind!r}; choose one of {', '.join(_RAMPS)}"
            )
    if num_stable_steps is None:
        num_stable_steps = total_steps - warmup_steps - num_decay_steps
    decay_start = warmup_steps + num_stable_steps

    def decay(progress: float) -> float:
        if decay_type == "1-sqrt":  # not the warm-up in reverse, unlike the other types
            return 1.0 - math.sqrt(progress)
        return 1.0 - _RAMPS[decay_type](progress, num_cycles)

    def multiplier(step: int) -> float:
        if step < warmup_steps:
            value = _RAMPS[warmup_type](step / max(1, warmup_steps), 0.5)
        elif step < decay_start:
            return 1.0
        elif step < decay_start + num_decay_steps:
            value = decay((step - decay_start) / max(1, num_decay_steps))
        else:
            return min_lr_ratio
        return max(0.0, min_lr_ratio + (1.0 - min_lr_ratio) * value)

    return multiplier


# ---- schedules that follow a metric --------------------------------------------------------------


class _MetricSchedule(Schedule):
    """Base class: the rate changes only in `observe`, depending on the metric of an evaluation."""

    follows_metric = True

    def __init__(
        self, learning_rate: float, mode: str, factor: float, threshold: float, threshold_mode: str
    ):
        super().__init__(learning_rate)
        for name, value, allowed in (
            ("mode", mode, ("min", "max")),
            ("threshold_mode", threshold_mode, ("rel", "abs")),
        ):
            if value not in allowed:
                raise ValueError(
                    f"lr_scheduler_kwargs: {name} is {value!r}; it must be {' or '.join(allowed)}"
                )
        if factor >= 1.0:
            raise ValueError(f"lr_scheduler_kwargs: factor is {factor}; it must be below 1")
        self._sign = 1.0 if mode == "min" else -1.0
        self._factor = factor
        self._threshold, self._is_relative = threshold, threshold_mode == "rel"
        self._now = learning_rate
        self._best: float | None = None

    def rate(self, step: int) -> float:
        self._last = self._now
        return self._now

    def state_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self._state_names()}
        return {name: list(v) if isinstance(v, deque) else v for name, v in values.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._state_names():
            value, current = state[name], getattr(self, name)
            is_window = isinstance(current, deque)
            setattr(self, name, deque(value, current.maxlen) if is_window else value)

    def _state_names(self) -> tuple[str, ...]:
        """Return the names of the attributes to save, which are also the keys in a checkpoint."""
        raise NotImplementedError

    def _is_better(self, metric: float) -> bool:
        if self._best is None:
            return not math.isnan(metric)
        margin = self._threshold * (self._best if self._is_relative else 1.0)
        return self._sign * metric < self._sign * self._best - margin


class ReduceOnPlateau(_MetricSchedule):
    """Multiplies the rate by `factor` after more than `patience` evaluations without improvement.

    The schedule, its arguments and their defaults are those of PyTorch's `ReduceLROnPlateau`.
    """

    def __init__(
        self,
        learning_rate: float,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ):
        super().__init__(learning_rate, mode, factor, threshold, threshold_mode)
        self._patience, self._cooldown, self._min_lr, self._eps = patience, cooldown, min_lr, eps
        self._bad = self._cooling = 0

    def _state_names(self) -> tuple[str, ...]:
        return ("_now", "_best", "_bad", "_cooling")

    def observe(self, metric: float) -> None:
        """Count evaluations without improvement, and lower the rate after too many of them."""
        if self._is_better(metric):
            self._best, self._bad = metric, 0
        else:
            self._bad += 1
        if self._cooling > 0:
            self._cooling, self._bad = self._cooling - 1, 0
        if self._bad > self._patience:
            lower = max(self._now * self._factor, self._min_lr)
            if self._now - lower > self._eps:
                self._now = lower
            self._cooling, self._bad = self._cooldown, 0


class Greedy(_MetricSchedule):
    """Divides the rate by `factor` while the metric improves, and multiplies it by it otherwise.

    Each change needs more than `patience` evaluations in a row with, or without, an improvement.
    This is GreedyLR (arXiv 2512.14527) as in transformers 5.
    """

    def __init__(
        self,
        learning_rate: float,
        mode: str = "min",
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        threshold_mode: str = "abs",
        cooldown: int = 0,
        warmup: int = 0,
        min_lr: float = 1e-3,
        max_lr: float = 1.0,
        eps: float = 1e-8,
        smooth: bool = False,
        window_size: int = 50,
        reset_start: int = 500,
    ):
        super().__init__(learning_rate, mode, factor, threshold, threshold_mode)
        self._patience, self._cooldown, self._warmup = patience, cooldown, warmup
        self._min_lr, self._max_lr, self._eps = min_lr, max_lr, eps
        self._smooth, self._reset_start = smooth, reset_start
        self._seen: deque[float] = deque(maxlen=window_size)
        self._reset()

    def _reset(self) -> None:
        # `_resting`: how many of the next evaluations to ignore, after a change of the rate.
        # `_left`: how many more reductions at the lowest rate cause the next reset.
        self._now, self._best = self.learning_rate, None
        self._good = self._bad = self._resting = 0
        self._left = self._reset_start
        self._seen.clear()

    def _state_names(self) -> tuple[str, ...]:
        return ("_now", "_best", "_good", "_bad", "_resting", "_left", "_seen")

    def observe(self, metric: float) -> None:
        """Count successive evaluations with or without improvement, and change the rate."""
        self._seen.append(metric)
        if self._smooth:
            metric = sum(self._seen) / len(self._seen)
        if self._resting > 0:
            self._resting -= 1
            self._good = self._bad = 0
            return
        if self._is_better(metric):
            self._best, self._good, self._bad = metric, self._good + 1, 0
        else:
            self._good, self._bad = 0, self._bad + 1
        if self._good > self._patience:
            self._raise_rate()
        elif self._bad > self._patience:
            self._lower_rate()

    def _raise_rate(self) -> None:
        higher = min(self._now / self._factor, self._max_lr)
        self._now = higher if higher - self._now > self._eps else self._now
        self._left = self._reset_start
        self._resting, self._good = self._warmup, 0

    def _lower_rate(self) -> None:
        lower = max(self._now * self._factor, self._min_lr)
        self._now = lower if self._now - lower > self._eps else self._now
        if self._now <= self._min_lr:
            self._left -= 1
            if self._left <= 0:
                self._reset()
        self._resting, self._bad = self._cooldown, 0


SCHEDULES: dict[str, Callable[..., Multiplier | Schedule]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "constant": _constant,
    "constant_with_warmup": _constant_with_warmup,
    "inverse_sqrt": _inverse_sqrt,
    "reduce_lr_on_plateau": ReduceOnPlateau,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "cosine_warmup_with_min_lr": _cosine_warmup_with_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
    "greedy": Greedy,
}
