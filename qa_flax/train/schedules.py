"""The learning rate of every update, by transformers' names (host).

A rate is a number that the host hands to the step, so schedules that follow a metric are no
different from those that follow a formula. The formulas are those that transformers documents for
`lr_scheduler_type`; names and defaults of `lr_scheduler_kwargs` are its own.
"""

import inspect
import math
from collections import deque
from collections.abc import Callable
from typing import Any


class Schedule:
    """Learning rates of updates 0, 1, ...; `rate(step)` may depend on the metrics seen so far."""

    follows_metric = False

    def __init__(self, learning_rate: float):
        self.learning_rate = learning_rate
        self._last = learning_rate

    def rate(self, step: int) -> float:
        """The learning rate of update `step`."""
        self._last = self.learning_rate * self._share(step)
        return self._last

    def get_last_lr(self) -> list[float]:
        """The rate last asked for, by the name that callbacks know from PyTorch."""
        return [self._last]

    def observe(self, metric: float) -> None:
        """An evaluation's value of the metric to follow; formulas do not look at it."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the arguments."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the schedule that gave `state`."""

    def _share(self, step: int, /) -> float:
        raise NotImplementedError


def make_schedule(
    kind: str,
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    settings: dict[str, Any] | None = None,
    *,
    greater_is_better: bool = False,
) -> Schedule:
    """The schedule of transformers' `lr_scheduler_type` of that name.

    Args:
        kind: one of `SCHEDULES`.
        learning_rate: the highest rate.
        warmup_steps: updates over which the rate grows from 0.
        total_steps: updates in all.
        settings: transformers' `lr_scheduler_kwargs`.
        greater_is_better: of the metric that `reduce_lr_on_plateau` and `greedy` follow, where
            `settings` have no `mode`.

    Raises:
        ValueError: the kind is unknown, or a setting is unknown, missing or out of range.
    """
    if kind not in SCHEDULES:
        raise ValueError(
            f"lr_scheduler_type={kind!r} is not supported; choose one of {', '.join(SCHEDULES)}"
        )
    settings = dict(settings or {})
    maker = SCHEDULES[kind]
    allowed = inspect.signature(maker).parameters
    given = {
        "learning_rate": learning_rate,
        "warmup_steps": warmup_steps,
        "total_steps": total_steps,
    }
    names = [name for name in allowed if name not in given]
    unknown = sorted(settings.keys() - set(names))
    if unknown:
        raise ValueError(
            f"lr_scheduler_kwargs: lr_scheduler_type={kind!r} has no {', '.join(unknown)}; it has: "
            f"{', '.join(names) or 'none'}"
        )
    if "mode" in allowed:
        settings.setdefault("mode", "max" if greater_is_better else "min")
    missing = [n for n in names if allowed[n].default is inspect.Parameter.empty]
    if missing := [name for name in missing if name not in settings]:
        raise ValueError(
            f"lr_scheduler_kwargs: lr_scheduler_type={kind!r} needs {', '.join(missing)}"
        )
    made = maker(**{n: value for n, value in given.items() if n in allowed}, **settings)
    return made if isinstance(made, Schedule) else _Formula(learning_rate, made)


Share = Callable[[int], float]  # of the highest rate, at an update


class _Formula(Schedule):
    def __init__(self, learning_rate: float, share: Share):
        super().__init__(learning_rate)
        self._share = share


# ---- formulas ------------------------------------------------------------------------------------


def _after_warmup(warmup_steps: int, total_steps: int, share: Callable[[float], float]) -> Share:
    """0 to 1 over the warm-up; then `share` of the part of the other updates that is done."""

    def at(step: int) -> float:
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        return max(0.0, share((step - warmup_steps) / max(1, total_steps - warmup_steps)))

    return at


def _half_cosines(part: float, num_cycles: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * part))


def _linear(warmup_steps: int, total_steps: int) -> Share:
    return _after_warmup(warmup_steps, total_steps, lambda part: 1.0 - part)


def _cosine(warmup_steps: int, total_steps: int, num_cycles: float = 0.5) -> Share:
    return _after_warmup(warmup_steps, total_steps, lambda part: _half_cosines(part, num_cycles))


def _cosine_with_restarts(warmup_steps: int, total_steps: int, num_cycles: int = 1) -> Share:
    def share(part: float) -> float:
        return 0.0 if part >= 1.0 else _half_cosines(num_cycles * part % 1.0, 0.5)

    return _after_warmup(warmup_steps, total_steps, share)


def _polynomial(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
) -> Share:
    if lr_end >= learning_rate:
        raise ValueError(
            f"lr_scheduler_kwargs: lr_end is {lr_end}, and must be below learning_rate "
            f"({learning_rate})"
        )
    end = lr_end / learning_rate
    return _after_warmup(
        warmup_steps, total_steps, lambda part: end + (1.0 - end) * max(0.0, 1.0 - part) ** power
    )


def _constant() -> Share:
    return lambda step: 1.0


def _constant_with_warmup(warmup_steps: int) -> Share:
    return _after_warmup(warmup_steps, warmup_steps + 1, lambda part: 1.0)


def _inverse_sqrt(warmup_steps: int, timescale: int | None = None) -> Share:
    scale = timescale or warmup_steps or 10_000

    def at(step: int) -> float:
        if step < warmup_steps:
            return step / max(1, warmup_steps)
        return 1.0 / math.sqrt((step + scale - warmup_steps) / scale)

    return at


def _lowest(learning_rate: float, min_lr: float | None, min_lr_rate: float | None) -> float:
    if min_lr is not None and min_lr_rate is None:
        return min_lr / learning_rate
    if min_lr_rate is not None and min_lr is None:
        return min_lr_rate
    raise ValueError("lr_scheduler_kwargs: give one of min_lr and min_lr_rate")


def _cosine_with_min_lr(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> Share:
    low = _lowest(learning_rate, min_lr, min_lr_rate)
    return _after_warmup(
        warmup_steps,
        total_steps,
        lambda part: low + (1.0 - low) * _half_cosines(part, num_cycles),
    )


def _cosine_warmup_with_min_lr(
    learning_rate: float,
    warmup_steps: int,
    total_steps: int,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> Share:
    low = _lowest(learning_rate, min_lr, min_lr_rate)

    def at(step: int) -> float:
        if step < warmup_steps:  # begins above 0
            if warmup_lr_rate is None:
                return (step + 1) / warmup_steps
            return warmup_lr_rate + (1.0 - warmup_lr_rate) * step / max(1, warmup_steps - 1)
        part = (step - warmup_steps + 1) / max(1, total_steps - warmup_steps)
        return max(0.0, low + (1.0 - low) * _half_cosines(part, num_cycles))

    return at


_RAMPS: dict[str, Callable[[float, float], float]] = {  # from 0 to 1
    "linear": lambda part, cycles: part,
    "cosine": lambda part, cycles: 1.0 - _half_cosines(part, cycles),
    "1-sqrt": lambda part, cycles: 1.0 - math.sqrt(1.0 - part),
}


def _warmup_stable_decay(
    warmup_steps: int,
    total_steps: int,
    num_decay_steps: int,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> Share:
    for name, kind in (("warmup_type", warmup_type), ("decay_type", decay_type)):
        if kind not in _RAMPS:
            raise ValueError(
                f"lr_scheduler_kwargs: {name} is {kind!r}; choose one of {', '.join(_RAMPS)}"
            )
    if num_stable_steps is None:
        num_stable_steps = total_steps - warmup_steps - num_decay_steps
    decay_begins = warmup_steps + num_stable_steps

    def fall(part: float) -> float:
        if decay_type == "1-sqrt":
            return 1.0 - math.sqrt(part)
        return 1.0 - _RAMPS[decay_type](part, num_cycles)

    def at(step: int) -> float:
        if step < warmup_steps:
            share = _RAMPS[warmup_type](step / max(1, warmup_steps), 0.5)
        elif step < decay_begins:
            return 1.0
        elif step < decay_begins + num_decay_steps:
            share = fall((step - decay_begins) / max(1, num_decay_steps))
        else:
            return min_lr_ratio
        return max(0.0, min_lr_ratio + (1.0 - min_lr_ratio) * share)

    return at


# ---- schedules that follow a metric --------------------------------------------------------------


class _Following(Schedule):
    """A rate that changes with an evaluation's metric: what the two below have in common."""

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
        kept = {name: getattr(self, name) for name in self._changing()}
        return {name: list(v) if isinstance(v, deque) else v for name, v in kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._changing():
            value, before = state[name], getattr(self, name)
            is_window = isinstance(before, deque)
            setattr(self, name, deque(value, before.maxlen) if is_window else value)

    def _changing(self) -> tuple[str, ...]:
        raise NotImplementedError

    def _is_better(self, metric: float) -> bool:
        if self._best is None:
            return not math.isnan(metric)
        margin = self._threshold * (self._best if self._is_relative else 1.0)
        return self._sign * metric < self._sign * self._best - margin


class ReduceOnPlateau(_Following):
    """The rate times `factor` after more than `patience` evaluations without a better metric."""

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

    def _changing(self) -> tuple[str, ...]:
        return ("_now", "_best", "_bad", "_cooling")

    def observe(self, metric: float) -> None:
        """Count an evaluation that is no better, or forget the count."""
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


class Greedy(_Following):
    """The rate over `factor` while the metric gets better, times `factor` while it does not.

    Source: GreedyLR, arXiv 2512.14527, as in transformers 5.
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
        self._start_over()

    def _start_over(self) -> None:
        self._now, self._best = self.learning_rate, None
        self._good = self._bad = self._resting = 0
        self._left = self._reset_start
        self._seen.clear()

    def _changing(self) -> tuple[str, ...]:
        return ("_now", "_best", "_good", "_bad", "_resting", "_left", "_seen")

    def observe(self, metric: float) -> None:
        """Count evaluations that are better, or not, in a row."""
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
                self._start_over()
        self._resting, self._bad = self._cooldown, 0


SCHEDULES: dict[str, Callable[..., Share | Schedule]] = {
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
