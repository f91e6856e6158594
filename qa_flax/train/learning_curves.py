"""Learning curves as an SVG picture: loss, exact match and F1, and accuracies by step (host, text).

The picture is made from the log history alone, and has no scripts and no fonts of its own. Its
colours are attributes of the shapes; a style sheet replaces them where the viewer prefers dark.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard
from xml.sax.saxutils import escape

from qa_flax import storage

FILE = "learning_curves.svg"

_PLOT_WIDTH, _PLOT_HEIGHT = 284, 170
_LEFT, _RIGHT, _BOTTOM = 46, 18, 40
_ROW = 16
_PANEL_WIDTH = _LEFT + _PLOT_WIDTH + _RIGHT
_MOST_POINTS = 400
_MOST_MARKERS = 30

# Of the background, text, marks of minor importance, grid, and the data sets; light and dark.
_LIGHT = ("#ffffff", "#1f2328", "#59636e", "#d8dee4")
_DARK = ("#0d1117", "#e6edf3", "#9198a1", "#2f353d")
_SETS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#6e7781")
_DARK_SETS = ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#f778ba", "#b1bac4")

Point = tuple[float, float]


class LearningCurves:
    """A picture of learning curves: `str(...)` is its SVG text, and notebooks show it."""

    def __init__(self, svg: str):
        self._svg = svg

    def __str__(self) -> str:
        return self._svg

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._svg)} characters of SVG>"

    def _repr_svg_(self) -> str:
        return self._svg

    def save(self, file: str | os.PathLike) -> None:
        """Write the picture to a file, local or in a bucket."""
        storage.write_text(storage.path(file), self._svg)


def learning_curves(
    source: Any, *, best_step: int | None = None, title: str | None = None
) -> LearningCurves:
    """Draw the loss, exact match and F1, and the accuracies of a training by step.

    A panel is drawn if there are values for it. After the training, only evaluations of the weights
    of a step count: the one after `load_best_model_at_end` is left out.

    Args:
        source: `trainer.state.log_history`, a list of dicts with `step`; or `trainer.state`; or the
            path of a `trainer_state.json`, or of a folder with this file.
        best_step: the step to mark; None: that of the best model, if `source` has it, else of the
            lowest `eval_loss` or the highest `eval_f1`.
        title: a heading, such as the name of the run.

    Returns:
        An object that notebooks show, with the SVG text as `str(...)` and a method `save(file)`.

    Raises:
        ValueError: `source` is none of these.
        FileNotFoundError: there is no such file.

    Example:
        >>> import qa_flax
        >>> history = [{"step": 10, "loss": 2.5}, {"step": 10, "eval_loss": 2.0},
        ...            {"step": 20, "loss": 1.5}, {"step": 20, "eval_loss": 1.8}]
        >>> curves = qa_flax.learning_curves(history, title="a run")
        >>> "lowest validation loss: step 20" in str(curves)
        True
        >>> curves.save("curves.svg")
    """
    history, recorded_best = _read(source)
    best_step = recorded_best if best_step is None else best_step
    panels = panels_of(history)
    mark = (best_step, f"best model: step {best_step:,}") if best_step is not None else None
    return LearningCurves(_svg(panels, mark or _best_of(panels), title, _epochs(history)))


def has_curves(history: Sequence[Mapping[str, Any]], prefix: str = "") -> bool:
    """Whether a training logged anything to draw, with names that begin with `prefix`.

    An evaluation without a training, which is logged at step 0, does not count.
    """
    lines = [series for panel in panels_of(history) for series in panel.series]
    return any(line.points[-1][0] > 0 for line in lines if line.key.startswith(prefix))


# ---- the values ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One line: its name in the log, its label, its points, and how it is drawn."""

    key: str
    label: str
    points: list[Point]
    """(step, value) in the order of the steps; values that are not finite leave a gap."""
    color: int
    is_dashed: bool


@dataclass(frozen=True)
class Panel:
    """One diagram."""

    title: str
    series: list[Series]


def panels_of(history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The panels for which the history has values."""
    entries = list(_entries_of_training(history))
    names = dict.fromkeys(name for entry in entries for name in entry)
    sets = {"train": "training"} | {prefix: _label(prefix) for prefix in _eval_prefixes(names)}

    def panel(title: str, metrics: Sequence[tuple[str, str]]) -> Panel:
        series = []
        for color, (prefix, label) in enumerate(sets.items()):
            for number, (metric, text) in enumerate(metrics):
                key = "loss" if (prefix, metric) == ("train", "loss") else f"{prefix}_{metric}"
                if prefix == "train" and metric == "loss" and "loss" not in names:
                    continue
                if points := _points(entries, key):
                    text_of = f"{label} {text}".strip()
                    series.append(Series(key, text_of, points, color, number > 0))
        return Panel(title, series)

    # SQuAD v2.0's metric has the name "exact".
    exact = "exact" if any(f"{prefix}_exact" in names for prefix in sets) else "exact_match"
    panels = [
        panel("Loss", [("loss", "")]),
        panel("Exact match (EM) and F1", [("f1", "F1"), (exact, "EM")]),
        panel(
            "Accuracy of starts and ends, %",
            [("accuracy_start", "start"), ("accuracy_end", "end")],
        ),
    ]
    return [panel for panel in panels if panel.series]


def _entries_of_training(history: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The entries but for evaluations after the training, if there were any during it.

    They may be of other weights than those of the last step, such as the best model's.
    """
    ended_at, is_evaluated = None, False
    for entry in history:
        is_evaluation = any(name.startswith("eval_") for name in entry)
        if is_evaluation and is_evaluated and entry.get("step") == ended_at:
            continue
        is_evaluated |= is_evaluation and entry.get("step", 0) > 0
        if "train_runtime" in entry:
            ended_at = entry.get("step")
        yield entry


def _eval_prefixes(names: Mapping[str, Any]) -> list[str]:
    """`eval`, or `eval_<name>` for each of several evaluation sets."""
    found = (re.fullmatch(r"(eval(?:_.+)?)_(?:loss|runtime)", name) for name in names)
    prefixes = dict.fromkeys(match[1] for match in found if match)
    return list(prefixes) or ["eval"]


def _label(prefix: str) -> str:
    name = prefix.removeprefix("eval").removeprefix("_")
    return "validation" if not name else name if len(name) <= 12 else name[:11] + "…"


def _points(entries: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """(step, value) of a name, sorted by step; of several values at a step the first."""
    values: dict[float, float] = {}
    for entry in entries:
        step, value = entry.get("step"), entry.get(key)
        if _is_number(step) and math.isfinite(step) and _is_number(value):
            values.setdefault(float(step), float(value))
    points = sorted(values.items())
    return points if any(math.isfinite(value) for _, value in points) else []


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _best_of(panels: Sequence[Panel]) -> tuple[float, str] | None:
    """The step of the lowest validation loss, or of the highest validation F1, and its label."""
    series = {line.key: line.points for panel in panels for line in panel.series}
    for key, sign, words in (("eval_loss", 1, "lowest"), ("eval_f1", -1, "highest")):
        points = [point for point in series.get(key, ()) if math.isfinite(point[1])]
        if len(points) > 1:
            name = "F1" if key == "eval_f1" else "loss"
            step = min((sign * value, step) for step, value in points)[1]
            return step, f"{words} validation {name}: step {step:,.0f}"
    return None


def _epochs(history: Sequence[Mapping[str, Any]]) -> float | None:
    epochs = [entry["epoch"] for entry in history if _is_number(entry.get("epoch"))]
    return max(epochs, default=None)


def _read(source: Any) -> tuple[list[Mapping[str, Any]], int | None]:
    """The log history, and the step of the best model if it is known."""
    best = None
    if isinstance(source, str | os.PathLike):
        path = storage.path(source)
        file = path / "trainer_state.json" if path.is_dir() else path
        source = json.loads(file.read_text())
    if isinstance(source, Mapping):
        source, best = source.get("log_history"), source.get("best_global_step")
    elif hasattr(source, "log_history"):
        source, best = source.log_history, getattr(source, "best_global_step", None)
    is_list = isinstance(source, list | tuple)
    if not is_list or not all(isinstance(entry, Mapping) for entry in source):
        raise ValueError(
            f"learning_curves: got a {type(source).__name__}; pass trainer.state.log_history (a "
            "list of dicts), trainer.state, or the path of a trainer_state.json"
        )
    return list(source), best or None


# ---- the picture ---------------------------------------------------------------------------------


def _svg(
    panels: Sequence[Panel],
    best: tuple[float, str] | None,
    title: str | None,
    epochs: float | None,
) -> str:
    heading = 30 if title else 8
    legend_rows = max((math.ceil(len(panel.series) / 2) for panel in panels), default=1)
    top = heading + 24 + legend_rows * _ROW + 20
    width = max(1, len(panels)) * _PANEL_WIDTH
    height = top + _PLOT_HEIGHT + _BOTTOM
    steps = [step for panel in panels for series in panel.series for step, _ in series.points]
    last = max(steps, default=0.0)
    parts = [
        _shape("rect", "bg", fill=_LIGHT[0], x=0, y=0, width=width, height=height, rx=6),
        _text(14, 20, title, "text", size=14, weight="bold") if title else "",
        *(
            _panel(panel, n * _PANEL_WIDTH + _LEFT, heading, top, last, best, epochs)
            for n, panel in enumerate(panels)
        ),
    ]
    if not panels:
        parts.append(_text(width / 2, height / 2, "Nothing was logged.", "text", "middle"))
    name = escape(f"Learning curves{': ' + title if title else ''}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" '
        f"viewBox=\"0 0 {width} {height}\" font-family=\"system-ui, 'Segoe UI', 'DejaVu Sans', "
        f'Arial, sans-serif" font-size="11">\n<title>{_clean(name)}</title>\n{_style()}\n'
        + "\n".join(part for part in parts if part)
        + "\n</svg>\n"
    )


def _style() -> str:
    """The dark colours; classes have a prefix, since a notebook's page has other pictures, too."""
    kinds = zip(("bg", "text", "minor", "grid"), _DARK, strict=True)
    rules = [
        f".lc-{kind} {{ {'stroke' if kind == 'grid' else 'fill'}: {color} }}"
        for kind, color in kinds
    ]
    rules += [f".lc-rule {{ stroke: {_DARK[2]} }}"]
    for number, color in enumerate(_DARK_SETS):
        rules += [f".lc-line{number} {{ stroke: {color} }}", f".lc-dot{number} {{ fill: {color} }}"]
    return "<style>@media (prefers-color-scheme: dark) { " + " ".join(rules) + " }</style>"


def _panel(
    panel: Panel,
    left: float,
    heading: float,
    top: float,
    last: float,
    best: tuple[float, str] | None,
    epochs: float | None,
) -> str:
    """One diagram whose plot has its upper left corner at (left, top)."""
    right, bottom = left + _PLOT_WIDTH, top + _PLOT_HEIGHT
    values = [y for series in panel.series for _, y in series.points if math.isfinite(y)]
    low, high, y_ticks = _value_axis(values)
    last = max(last, 1.0)

    def at(point: Point) -> Point:
        x, y = point
        return (
            left + x / last * _PLOT_WIDTH,
            bottom - (y - low) / (high - low) * _PLOT_HEIGHT,
        )

    parts = [_text(left, heading + 14, panel.title, "text", size=12.5, weight="bold")]
    parts += [
        item
        for number, series in enumerate(panel.series)
        for item in _legend(
            series, left + number % 2 * _PLOT_WIDTH / 2, heading + 31 + number // 2 * _ROW
        )
    ]
    for value in y_ticks:
        y = at((0, value))[1]
        parts.append(_line("grid", _LIGHT[3], (left, y), (right, y)))
        parts.append(_text(left - 6, y + 4, _number(value, y_ticks), "minor", "end"))
    x_ticks = _ticks(0, last, 5, is_whole=True)
    for value in x_ticks:
        x = at((value, low))[0]
        parts.append(_line("rule", _LIGHT[2], (x, bottom), (x, bottom + 4)))
        parts.append(_text(x, bottom + 16, _number(value, x_ticks), "minor", "middle"))
    parts.append(_line("rule", _LIGHT[2], (left, bottom), (right, bottom)))
    unit = "step" if epochs is None else f"step ({_epoch_count(epochs)})"
    parts.append(_text(left + _PLOT_WIDTH / 2, bottom + 31, unit, "minor", "middle"))
    if best is not None and 0 <= best[0] <= last:
        parts += _best_mark(best[1], at((best[0], low))[0], left, top)
    for series in panel.series:
        parts += _curve(series, at)
    return "\n".join(parts)


def _legend(series: Series, x: float, y: float) -> list[str]:
    color = series.color % len(_SETS)
    sample = _line(
        f"line{color}", _SETS[color], (x, y - 4), (x + 20, y - 4), width=2, dashed=series.is_dashed
    )
    return [sample, _text(x + 26, y, series.label, "text")]


def _best_mark(label: str, x: float, left: float, top: float) -> list[str]:
    """A vertical line, and its label above the plot, where it covers no curve."""
    share = (x - left) / _PLOT_WIDTH
    anchor = "start" if share < 0.3 else "end" if share > 0.7 else "middle"
    line = _line("rule", _LIGHT[2], (x, top - 4), (x, top + _PLOT_HEIGHT), dashed=True)
    return [line, _text(x, top - 8, label, "minor", anchor, size=10.5)]


def _curve(series: Series, at: Any) -> list[str]:
    color = series.color % len(_SETS)
    parts = []
    for segment in _segments(series.points):
        places = [at(point) for point in _thinned(segment)]
        if len(places) > 1:
            coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(
                _shape(
                    "polyline",
                    f"line{color}",
                    points=coordinates,
                    fill="none",
                    stroke=_SETS[color],
                    stroke_width=1.8 if len(places) <= 100 else 1,
                    stroke_linejoin="round",
                    **({"stroke_dasharray": "5 3"} if series.is_dashed else {}),
                )
            )
        if len(places) == 1 or len(series.points) <= _MOST_MARKERS:
            parts += [_dot(f"dot{color}", _SETS[color], place) for place in places]
    return parts


def _segments(points: Sequence[Point]) -> list[list[Point]]:
    """Split the points where a value is not finite."""
    segments: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            segments[-1].append(point)
        elif segments[-1]:
            segments.append([])
    return [segment for segment in segments if segment]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Keep the lowest and the highest point of each of some hundred parts, so that peaks stay."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    parts = _MOST_POINTS // 2
    kept = {0, len(points) - 1}
    for part in range(parts):
        first, end = part * len(points) // parts, (part + 1) * len(points) // parts
        values = range(first, end)
        kept |= {min(values, key=lambda n: points[n][1]), max(values, key=lambda n: points[n][1])}
    return [points[n] for n in sorted(kept)]


# ---- axes ----------------------------------------------------------------------------------------


def _value_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """The lowest and highest value of an axis that ends at ticks, and its ticks."""
    low, high = min(values), max(values)
    if 0 <= low < high / 2:
        low = 0.0
    if not low < high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    step = _step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [number * step for number in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _ticks(low: float, high: float, count: int, *, is_whole: bool = False) -> list[float]:
    step = _step((high - low) / count)
    step = max(1.0, round(step)) if is_whole else step
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= least * (1 - 1e-9))


def _number(value: float, ticks: Sequence[float]) -> str:
    """A tick's value with the digits that its distance to the next one needs."""
    distance = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    if max(map(abs, ticks)) >= 1e7 or distance < 1e-6:
        return f"{value:.3g}"
    digits = max(0, -math.floor(math.log10(distance) + 1e-9))
    return f"{value:,.{digits}f}"


def _epoch_count(epochs: float) -> str:
    count = f"{epochs:.4g}"
    return f"{count} epoch" if count == "1" else f"{count} epochs"


# ---- elements ------------------------------------------------------------------------------------


def _shape(tag: str, kind: str, **attributes: Any) -> str:
    values = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<{tag} class="lc-{kind}"{values}/>'


def _line(
    kind: str, color: str, start: Point, end: Point, *, width: float = 1, dashed: bool = False
) -> str:
    (x1, y1), (x2, y2) = start, end
    dashes = {"stroke_dasharray": "5 3"} if dashed else {}
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return _shape("line", kind, **ends, stroke=color, stroke_width=width, **dashes)


def _dot(kind: str, color: str, place: Point) -> str:
    x, y = place
    return _shape("circle", kind, cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.4, fill=color)


def _text(
    x: float,
    y: float,
    text: str,
    kind: str,
    anchor: str = "start",
    *,
    size: float = 11,
    weight: str = "normal",
) -> str:
    color = _LIGHT[1] if kind == "text" else _LIGHT[2]
    return (
        f'<text class="lc-{kind}" x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}" '
        f'font-size="{size}" font-weight="{weight}">{_clean(escape(text))}</text>'
    )


def _clean(text: str) -> str:
    """Leave out control characters, which XML does not allow."""
    return re.sub(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]", "", text)
