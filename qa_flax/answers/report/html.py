"""Texts and tables of a report as HTML (host, text).

Texts of the data are escaped. Characters that HTML does not allow, such as NUL and half of a
surrogate pair, are shown as U+FFFD.
"""

import html
import re
from collections.abc import Sequence

from qa_flax.answers.report.bootstrap import Means
from qa_flax.answers.report.charts import interval_bar
from qa_flax.answers.report.slices import Slice

_NOT_ALLOWED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef]")
DASH = "\u2013"


def text(value: object) -> str:
    """Return a text as HTML.

    Example:
        >>> text("</script>\\0")
        '&lt;/script&gt;\ufffd'
    """
    return _NOT_ALLOWED.sub("\ufffd", html.escape(str(value)))


def data_text(value: object, language: str = "") -> str:
    """Return a text of the data as HTML, in its own direction."""
    lang = f' lang="{text(language)}"' if language else ""
    return f'<bdi dir="auto"{lang}>{text(value)}</bdi>'


def percent(value: float) -> str:
    """Return a share of 0 to 1 in percent with one digit; a dash for NaN."""
    return DASH if value != value else f"{100 * value:.1f}"


def interval(low: float, high: float) -> str:
    """Return the ends of an interval of shares in percent; one dash if there is none."""
    return DASH if low != low else f"{percent(low)}{DASH}{percent(high)}"


def number(value: int) -> str:
    """Return a number with commas."""
    return f"{value:,}"


def figure(name: str, value: str, note: str = "", kind: str = "") -> str:
    """Return a large number with its name above and a note below."""
    below = f'<span class="note">{note}</span>' if note else ""
    return (
        f'<div class="figure {kind}"><dt>{name}</dt><dd><span class="value">{value}</span>'
        f"{below}</dd></div>"
    )


def slice_table(slice_: Slice, index: int, counts: Sequence[int], means: Means, f1: float) -> str:
    """Return the table of a slice: one line for each group, with a button that filters by it.

    Args:
        slice_: the slice.
        index: its number on the page.
        counts: how many questions each group has.
        means: exact match and F1 of each group.
        f1: the mean of all questions.
    """
    unit = f' <span class="unit">{text(slice_.unit)}</span>' if slice_.unit else ""
    rows = []
    for group, (label, count) in enumerate(zip(slice_.labels, counts, strict=True)):
        (exact, mean), (exact_low, low), (exact_high, high) = (
            part[group, :2] for part in means[:3]
        )
        bar = interval_bar(100 * mean, 100 * low, 100 * high, 100 * f1)
        button = (
            f'<button type="button" data-slice="{index}" data-group="{group}" '
            f'title="Show these questions">{data_text(label)}</button>'
        )
        rows.append(
            f'<tr><th scope="row">{button}</th><td>{number(count)}</td><td>{percent(exact)}'
            f'<span class="ci below">{interval(exact_low, exact_high)}</span></td>'
            f"<td>{percent(mean)}</td>"
            f'<td class="meter-cell"><div class="meter-box">{bar}<span class="ci">'
            f"{interval(low, high)}</span></div></td></tr>"
        )
    return (
        f'<section class="slice"><h3 id="slice-{index}">{text(slice_.name)}{unit}</h3>'
        f'<table aria-labelledby="slice-{index}"><thead><tr><th scope="col">group</th>'
        '<th scope="col"><abbr title="number of questions">n</abbr></th>'
        '<th scope="col"><abbr title="exact match, with its 95% interval">EM</abbr></th>'
        '<th scope="col">F1</th>'
        '<th scope="col" class="meter-cell">F1 with 95% interval</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )
