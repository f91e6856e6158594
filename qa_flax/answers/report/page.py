"""All parts of a report -> one HTML page that makes no request (host, text).

Figures, tables and diagrams are HTML and SVG from here. The questions are JSON, which the page's
script shows and filters; it writes texts with `textContent` only. A Content Security Policy allows
nothing but this script and this style sheet, by their hashes.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import Any

import numpy as np

from qa_flax import __version__
from qa_flax.answers.report import charts, html
from qa_flax.answers.report.bootstrap import MIN_CLUSTERS, RESAMPLES, Means
from qa_flax.answers.report.questions import CHANGES, OUTCOMES, Comparison, Outcome, Questions
from qa_flax.answers.report.reliability import Reliability
from qa_flax.answers.report.rows import FIELDS, PageRows, script_json
from qa_flax.answers.report.slices import Slice
from qa_flax.answers.report.thresholds import Curve


@dataclass
class Report:
    """Everything that a page shows."""

    title: str
    """Of the page: the folder's name."""
    prefix: str
    """Of the evaluation's files; "" for none."""
    description: Mapping[str, str]
    """What was evaluated, by name: the folder, the model, the data."""
    questions: Questions
    rows: PageRows
    language: str
    """A BCP 47 tag for the texts of the data; "" if it is not known."""
    slices: list[Slice] = field(default_factory=list)
    slice_means: list[Means] = field(default_factory=list)
    overall: Means | None = None
    """Exact match and F1 of all questions, those with and those without an answer; with a
    comparison also their differences, of the compared questions in a fourth group."""
    threshold: float = 0.0
    curve: Curve | None = None
    reliability: Reliability | None = None
    comparison: Comparison | None = None
    learning_curves: str = ""
    """An SVG picture; "" if there is none."""
    notes: list[str] = field(default_factory=list)

    def summary(self) -> list[str]:
        """Return the scores, and the difference of two evaluations, as lines of text."""
        overall, lines = self.overall, []
        if overall is None:
            return lines
        names = [(0, 0, "EM"), (0, 1, "F1")]
        if self.comparison is not None:
            names += [(3, 2, "difference in EM"), (3, 3, "difference in F1")]
        for group, column, name in names:
            value, low, high = (100 * part[group, column] for part in overall[:3])
            sign = "+" if group else ""
            line = f"{name} {value:{sign}.1f}"
            if low == low:
                line += f" (95%: {low:{sign}.1f} to {high:{sign}.1f})"
                line += f", {_p_value(overall.p_values[group, column])}" if group else ""
            lines.append(line)
        return lines


def _p_value(value: float) -> str:
    least = 1 / RESAMPLES  # that resamples can show
    return f"p at most {least:g}" if value <= least else f"p = {value:.3f}"


def render(report: Report) -> str:
    """Return the page."""
    sections = [
        ("scores", "Scores", _scores(report)),
        ("comparison", "Comparison", _comparison(report)),
        ("slices", "Where it fails", _slices(report)),
        ("no-answer", "No-answer threshold", _threshold(report)),
        ("calibration", "Confidence", _calibration(report)),
        ("training", "Training", _training(report)),
        ("questions", "Questions", _questions(report)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{id_}">{name}</a>' for id_, name, _ in sections)
    body = "".join(
        f'<section id="{id_}"><h2>{name}</h2>{content}</section>' for id_, name, content in sections
    )
    style, script = _file("page.css"), _file("page.js")
    values = {
        "title": html.text(report.title),
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "description": _description(report),
        "notes": "".join(f'<p class="warning">{html.text(note)}</p>' for note in report.notes),
        "links": links,
        "body": body,
        "about": _about(report),
        "settings": script_json(_settings(report)),
        "first": report.rows.first,
        "blocks": "".join(
            f'<script type="application/octet-stream" class="block">{block}</script>\n'
            for block in report.rows.packed
        ),
    }
    return Template(_file("page.html")).substitute(values)


def _file(name: str) -> str:
    return (resources.files("qa_flax.answers.report") / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return the Content Security Policy: nothing but the page's own script and style."""

    def hashed(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    return (
        f"default-src 'none'; script-src {hashed(script)}; style-src {hashed(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _settings(report: Report) -> dict[str, Any]:
    """Return what the script needs to know beside the rows."""
    questions = report.questions
    return {
        "fields": FIELDS,
        "outcomes": {int(outcome): name for outcome, name in OUTCOMES.items()},
        "changes": {int(c): n for c, n in CHANGES.items()} if report.comparison else {},
        "slices": [{"name": s.name, "labels": s.labels} for s in report.slices],
        "isLabelled": questions.is_labelled,
        "total": len(questions),
        "count": report.rows.count,
        "language": report.language,
        "outcomeCounts": _counts(questions.outcome, len(OUTCOMES)),
    }


def _counts(values: np.ndarray, size: int) -> list[int]:
    return np.bincount(values, minlength=size).tolist()


# ---- sections ------------------------------------------------------------------------------------


def _description(report: Report) -> str:
    parts = (
        f"<div><dt>{html.text(name)}</dt><dd>{html.data_text(value)}</dd></div>"
        for name, value in report.description.items()
    )
    return "".join(parts)


def _scores(report: Report) -> str:
    questions = report.questions
    counts = _counts(questions.outcome, len(OUTCOMES))
    parts = [(f"outcome-{outcome}", counts[outcome] / len(questions)) for outcome in OUTCOMES]
    legend = "".join(
        f'<li><button type="button" data-outcome="{int(outcome)}"><i class="dot outcome-{outcome}">'
        f"</i>{name} <b>{html.number(counts[outcome])}</b></button></li>"
        for outcome, name in OUTCOMES.items()
        if counts[outcome]
    )
    named = ", ".join(f"{counts[o]} {name}" for o, name in OUTCOMES.items() if counts[o])
    bar = charts.outcome_bar(parts, f"of {len(questions)} questions {named}")
    return f'<div class="group">{_headline(report)}</div>{bar}<ul class="legend">{legend}</ul>'


def _headline(report: Report) -> str:
    """Return exact match and F1: of all questions, and of those with and without an answer."""
    overall = report.overall
    if overall is None:
        return ""
    groups = [(0, "", "")]
    if report.questions.version_2:
        groups = [(0, "all questions", ""), (1, "with an answer", "small")]
        groups.append((2, "without an answer", "small"))
    parts = []
    for group, name, kind in groups:
        if np.isnan(overall.values[group, 0]):
            continue
        figures = "".join(
            html.figure(
                metric,
                html.percent(overall.values[group, column]),
                html.interval(overall.low[group, column], overall.high[group, column]),
                kind,
            )
            for column, metric in enumerate(("Exact match", "F1"))
        )
        heading = f"<h3>{name}</h3>" if name else ""
        parts.append(f'<div>{heading}<dl class="figures">{figures}</dl></div>')
    return "".join(parts)


def _slices(report: Report) -> str:
    if report.overall is None:
        return ""
    mean = float(report.overall.values[0, 1])
    tables, single = [], []
    for index, (slice_, means) in enumerate(zip(report.slices, report.slice_means, strict=True)):
        if len(slice_.labels) > 1:
            counts = _counts(slice_.group, len(slice_.labels))
            tables.append(html.slice_table(slice_, index, counts, means, mean))
        else:
            label = html.data_text(slice_.labels[0])
            single.append(f"{html.text(slice_.name.lower())}: {label}")
    same = (
        f'<p class="muted">The same for all questions: {"; ".join(single)}.</p>' if single else ""
    )
    intro = (
        "The vertical line in each bar is the F1 of all questions. Click a group to see its "
        "questions."
    )
    if any(np.isnan(means.low[:, 1]).any() for means in report.slice_means):
        intro += (
            f" There is no interval for fewer than {MIN_CLUSTERS} contexts, or if all scores are "
            "equal."
        )
    intro = f'<p class="muted">{intro}</p>'
    return f'{intro}<div class="slices">{"".join(tables)}</div>{same}' if tables else same


def _threshold(report: Report) -> str:
    curve, used = report.curve, report.threshold
    if curve is None:
        return ""
    gain = curve.best_f1[1] - curve.at_used[1]
    exact_gain = curve.best_exact[1] - curve.at_used[0]
    figures = [
        html.figure("Used threshold", f"{used:.2f}", f"F1 {curve.at_used[1]:.1f}", "small"),
        html.figure(
            "Best for F1", f"{curve.best_f1[0]:.2f}", f"F1 {curve.best_f1[1]:.1f}", "small"
        ),
        html.figure(
            "Gain in F1",
            f"{gain:+.1f}",
            f"{exact_gain:+.1f} EM, at {curve.best_exact[0]:.2f}",
            "small",
        ),
    ]
    advice = (
        '<p class="muted">A question is left empty if its null odds exceed the threshold '
        "(<code>--null_score_diff_threshold</code>). The best threshold is chosen on these "
        "questions, so expect a smaller gain on others.</p>"
    )
    key = _key([("first", "F1"), ("second", "exact match"), ("used", "used"), ("best", "best")])
    chart = charts.threshold_chart(curve, used)
    return (
        f'<div class="beside"><figure>{chart}{key}</figure><div><dl class="figures">'
        f"{''.join(figures)}</dl>{advice}</div></div>"
    )


def _calibration(report: Report) -> str:
    diagram = report.reliability
    if diagram is None:
        return ""
    figures = [
        html.figure("Calibration error", f"{diagram.ece:.3f}", "ECE, 10 bins", "small"),
        html.figure(
            "Coverage",
            f"{html.percent(diagram.coverage_at_80)}%",
            "of the questions, with 80% of the answers right",
            "small",
        ),
    ]
    advice = (
        '<p class="muted">The confidence of an answer is its probability in the n-best list. In a '
        "calibrated model 80% of the answers with a confidence of 0.8 are right, and the points "
        "are on the diagonal. <code>qa-flax run --calibrate</code> fits a temperature.</p>"
    )
    key = _key([("first", "exact match"), ("counts", "number of questions")])
    return (
        f'<div class="beside"><figure>{charts.reliability_chart(diagram)}{key}</figure><div>'
        f'<dl class="figures">{"".join(figures)}</dl>{advice}</div></div>'
    )


def _key(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<span><i class="key {kind}"></i>{name}</span>' for kind, name in entries)
    return f"<figcaption>{items}</figcaption>"


def _training(report: Report) -> str:
    if not report.learning_curves:
        return ""
    data = base64.b64encode(report.learning_curves.encode("utf-8", "replace")).decode()
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="learning curves"><img '
        f'alt="Learning curves of the training" src="data:image/svg+xml;base64,{data}"></div>'
    )


def _comparison(report: Report) -> str:
    comparison, overall = report.comparison, report.overall
    if comparison is None or overall is None:
        return ""
    compared = int(comparison.compared.sum())
    figures = []
    for column, metric in ((2, "Difference in exact match"), (3, "Difference in F1")):
        value, p = 100 * overall.values[3, column], overall.p_values[3, column]
        low, high = 100 * overall.low[3, column], 100 * overall.high[3, column]
        note = "for every question"
        if low == low:
            note = f"{low:+.1f} to {high:+.1f}; {_p_value(p)}"
        figures.append(html.figure(metric, f"{value:+.1f}", note))
    now, before = report.questions, comparison
    means = [
        (html.text(report.title), now.exact, now.f1),
        (html.data_text(comparison.folder), before.exact, before.f1),
    ]
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        f"<td>{html.percent(float(exact[comparison.compared].mean()))}</td>"
        f"<td>{html.percent(float(f1[comparison.compared].mean()))}</td></tr>"
        for name, exact, f1 in means
    )
    counts = _counts(comparison.change, len(CHANGES))
    legend = "".join(
        f'<li><button type="button" data-change="{int(change)}"><i class="dot change-{change}"></i>'
        f"{name} <b>{html.number(counts[change])}</b></button></li>"
        for change, name in CHANGES.items()
        if counts[change]
    )
    note = (
        f"{html.number(compared)} questions are in both evaluations. Mended: right here and wrong "
        "in the other, by exact match. The difference is this evaluation minus the other, with a "
        "paired bootstrap."
    )
    return (
        f'<dl class="figures">{"".join(figures)}</dl><ul class="legend">{legend}</ul>'
        '<table class="plain"><thead><tr><th scope="col">evaluation</th><th scope="col">EM</th>'
        f'<th scope="col">F1</th></tr></thead><tbody>{rows}</tbody></table>'
        f'<p class="muted">{note}</p>'
    )


def _questions(report: Report) -> str:
    outcomes = [(o, n) for o, n in OUTCOMES.items() if (report.questions.outcome == o).any()]
    chips = [("all", "all")]
    if report.questions.is_labelled and len(outcomes) > 1:
        chips.append(("mistakes", "all mistakes"))
    chips += [(str(int(outcome)), name) for outcome, name in outcomes]
    default = "mistakes" if len(chips) > 1 and chips[1][0] == "mistakes" else "all"
    buttons = "".join(
        f'<button type="button" class="chip" data-outcome="{key}" '
        f'aria-pressed="{"true" if key == default else "false"}">{name}</button>'
        for key, name in chips
    )
    changes = ""
    if report.comparison is not None:
        options = "".join(f'<option value="{int(c)}">{n}</option>' for c, n in CHANGES.items())
        changes = (
            '<label>compared <select id="change"><option value="">any</option>'
            f"{options}</select></label>"
        )
    return Template(_file("questions.html")).substitute(buttons=buttons, changes=changes)


def _about(report: Report) -> str:
    questions, rows = report.questions, report.rows
    total = len(questions)
    lines = []
    if rows.count < total:
        mistakes = int((questions.outcome != Outcome.RIGHT).sum()) if questions.is_labelled else 0
        part = (
            f"{html.number(rows.mistakes)} of the {html.number(mistakes)} mistakes, the most "
            "confident first, and a random sample of "
            f"{html.number(rows.count - rows.mistakes)} right answers"
            if questions.is_labelled
            else "the least confident answers first"
        )
        lines.append(
            f"This page lists {html.number(rows.count)} of {html.number(total)} questions, so that "
            f"it opens fast: {part}. All figures, tables and diagrams count every question."
        )
    if report.overall is not None:
        by = (
            "contexts, because questions about one context are right or wrong together"
            if len(questions.contexts) >= MIN_CLUSTERS
            else "questions"
        )
        lines.append(
            f"Intervals: 95%, percentile bootstrap with {RESAMPLES:,} resamples of {by}. Of many "
            "groups, some are better or worse by chance."
        )
        rules = f"MLQA's rules for {questions.language}" if questions.language else "SQuAD's rules"
        version = "v2.0" if questions.version_2 else "v1.1"
        lines.append(f"Exact match and F1: {html.text(rules)}, {version}.")
    lines.append(f"Written by qa-flax {__version__}. The page makes no network requests.")
    return "".join(f"<p>{line}</p>" for line in lines)
