"""Diagrams of a report as SVG elements that take their colours from the page (host, text).

Each has a width of 360 units, so that its text stays readable on a phone.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qa_flax.answers.report.reliability import Reliability
from qa_flax.answers.report.thresholds import Curve

_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 10, 10, 36


def outcome_bar(shares: Sequence[tuple[str, float]], label: str) -> str:
    """Return one bar with a part for each outcome: (class, share of 0 to 1).

    `label` is what a screen reader says of it.
    """
    parts, x = [], 0.0
    for kind, share in shares:
        if share > 0:
            width = max(0.0, 1000 * share - 2)
            parts.append(_shape("rect", kind, x=x, y=0, width=width, height=14))
            x += 1000 * share
    box = 'viewBox="0 0 1000 14" preserveAspectRatio="none"'
    return f'<svg class="outcomes" {box} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def interval_bar(value: float, low: float, high: float, mean: float) -> str:
    """Return a bar of a score in percent with its interval and a line at the mean of all.

    `low` is NaN if there is no interval.
    """
    parts = [
        _shape("rect", "track", x=0, y=5, width=100, height=6),
        _shape("rect", "bar", x=0, y=5, width=value, height=6),
        _shape("line", "mean", x1=mean, x2=mean, y1=1, y2=15),
    ]
    if low == low:
        parts.append(_shape("line", "interval", x1=low, x2=high, y1=8, y2=8))
    box = 'viewBox="0 0 100 16" preserveAspectRatio="none"'
    return f'<svg class="meter" {box} aria-hidden="true">{"".join(parts)}</svg>'


def threshold_chart(curve: Curve, used: float) -> str:
    """Return exact match and F1 by no-answer threshold, with the used and the best one."""
    # The null odds of a question without any span are as high as floats go.
    low, high = np.quantile(curve.thresholds, [0.02, 0.98], method="nearest").tolist()
    rules = [(value, kind) for value, kind in ((used, "used"), (curve.best_f1[0], "best"))]
    rules = [(value, kind) for value, kind in rules if abs(value) < 1e6]
    low, high = min([low, *(v for v, _ in rules)]), max([high, *(v for v, _ in rules)])
    shown = (curve.thresholds >= low) & (curve.thresholds <= high)
    xs, exact, f1 = curve.thresholds[shown], curve.exact[shown], curve.f1[shown]
    frame = _Frame((low, high), _nice_range([*exact, *f1]))
    parts = [frame.axes("threshold on the null odds", _ticks(low, high, 5))]
    parts += [frame.line(xs, exact, "series second"), frame.line(xs, f1, "series first")]
    parts += [frame.vertical(value, kind) for value, kind in rules]
    parts += [frame.dot(*curve.best_f1, "best")] if rules[-1:] and rules[-1][1] == "best" else []
    label = (
        f"F1 is {curve.at_used[1]:.1f} at the threshold {used:.2f} of the evaluation, and at most "
        f"{curve.best_f1[1]:.1f}, at {curve.best_f1[0]:.2f}"
    )
    return _svg(parts, label)


def reliability_chart(diagram: Reliability) -> str:
    """Return the reliability diagram: accuracy by confidence, and the number of questions."""
    frame = _Frame((0.0, 1.0), (0.0, 100.0))
    parts = [frame.axes("confidence", [0, 0.2, 0.4, 0.6, 0.8, 1])]
    largest = max(1, int(diagram.counts.max()))
    for i, count in enumerate(diagram.counts.tolist()):
        if not count:
            continue
        accuracy, confidence = 100 * float(diagram.accuracy[i]), float(diagram.confidence[i])
        left, right = frame.x(i / 10) + 2, frame.x((i + 1) / 10) - 2
        share = count / largest
        box = {"x": left, "width": right - left}
        height = frame.y(0) - frame.y(100 * share)
        parts.append(_shape("rect", "counts", **box, y=frame.y(100 * share), height=height))
        parts.append(frame.dot(confidence, accuracy, "first"))
    present = diagram.counts > 0
    points = diagram.confidence[present], 100 * diagram.accuracy[present]
    parts.append(frame.line(np.array([0.0, 1.0]), np.array([0.0, 100.0]), "diagonal"))
    parts.append(frame.line(*points, "series first"))
    label = f"accuracy by confidence; the expected calibration error is {diagram.ece:.3f}"
    return _svg(parts, label)


class _Frame:
    """The plot area of a diagram with its two ranges."""

    def __init__(self, across: tuple[float, float], up: tuple[float, float]):
        self._across, self._up = across, up

    def x(self, value: float) -> float:
        low, high = self._across
        share = (value - low) / (high - low) if high > low else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._up
        share = (value - low) / (high - low) if high > low else 0.5
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, title: str, ticks: Sequence[float]) -> str:
        parts = []
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        for value in _ticks(*self._up, 5):
            y = self.y(value)
            parts.append(_shape("line", "grid", x1=_LEFT, x2=right, y1=y, y2=y))
            parts.append(_text(_LEFT - 6, y + 4, f"{value:g}", "end"))
        for value in ticks:
            parts.append(_text(self.x(value), bottom + 16, f"{value:g}", "middle"))
        parts.append(_text((_LEFT + right) / 2, _HEIGHT - 3, title, "middle"))
        return "".join(parts)

    def line(self, xs: np.ndarray, ys: np.ndarray, kind: str) -> str:
        points = zip(xs.tolist(), ys.tolist(), strict=True)
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f'<polyline class="{kind}" points="{path}"/>'

    def vertical(self, value: float, kind: str) -> str:
        x = self.x(value)
        return _shape("line", f"rule {kind}", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM)

    def dot(self, x: float, y: float, kind: str) -> str:
        return _shape("circle", f"dot {kind}", cx=self.x(x), cy=self.y(y), r=3.5)


def _svg(parts: Sequence[str], label: str) -> str:
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return f'<svg class="chart" {box} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _shape(tag: str, kind: str, **attributes: Any) -> str:
    values = "".join(f' {name}="{round(float(v), 2):g}"' for name, v in attributes.items())
    return f'<{tag} class="{kind}"{values}/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _nice_range(values: Sequence[float]) -> tuple[float, float]:
    """Return a range in steps of 10 around percentages."""
    low, high = 10 * math.floor(min(values) / 10), 10 * math.ceil(max(values) / 10)
    return (float(low), float(high)) if high > low else (float(low) - 10, float(high) + 10)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most about `most` round numbers in a range."""
    span = high - low
    if not 0 < span < math.inf:
        return [low] if math.isfinite(low) else []
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(f * power for f in (1, 2, 5, 10) if f * power * most >= span * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(n * step, 10) + 0.0 for n in range(first, last + 1)]
