"""The passage around an answer, for a terminal: marked, cut at words and wrapped (host, text)."""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

MARGIN = 140  # columns on each side of the answer, at most
ELLIPSIS = "..."

# What would move the cursor, change colours or turn the direction of what follows.
_CONTROLS = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]"
)
_JOINER = "\u200d"
_VIRAMA = 9  # the class of signs that join the letters of India's scripts


class Marks(NamedTuple):
    """What is printed before and after an answer."""

    before: str
    after: str
    has_width: bool
    """Whether they take up columns; otherwise they are repeated in each line."""


BRACKETS = Marks("[[", "]]", True)
HIGHLIGHT = Marks("\x1b[1;7m", "\x1b[0m", False)


class _Cell(NamedTuple):
    """A character with what combines with it."""

    text: str
    width: int
    is_marked: bool


def passage(context: str, start: int, end: int, width: int, marks: Marks = BRACKETS) -> list[str]:
    """Return the lines of the text around an answer.

    White space is shown as one blank. Characters that are drawn together are not separated, and
    those of right-to-left scripts keep their order, which the terminal turns.

    Args:
        context: the text.
        start: the answer's first character.
        end: the character after its last.
        width: columns of a line.
        marks: what marks the answer.

    Example:
        >>> passage("Ada wrote the first program in 1843.", 31, 35, 20)
        ['Ada wrote the first', 'program in [[1843]].']
    """
    margin = min(MARGIN, 3 * width // 2)
    while _combines(context, start):
        start -= 1
    while _combines(context, end):
        end += 1
    cells = [
        *_side(context[max(0, start - 4 * margin) : start], margin, is_left=True),
        *_cells(context[start:end], is_marked=True),
        *_side(context[end : end + 4 * margin], margin, is_left=False),
    ]
    if marks.has_width:
        cells = _bracketed(cells, marks)
    return [_line(cells, marks) for cells in _wrapped(_single_blanks(cells), width)]


def shown(text: str) -> str:
    """Return a text in one line, without characters that would disturb a terminal."""
    return "".join(cell.text for cell in _single_blanks(_cells(text, is_marked=False))).strip()


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(cell.width for cell in _cells(text, is_marked=False))


# ---- cells ---------------------------------------------------------------------------------------


def _cells(text: str, *, is_marked: bool) -> list[_Cell]:
    cells: list[_Cell] = []
    for cluster in _clusters(_CONTROLS.sub("", text)):
        blank = not cluster.strip()
        cells.append(_Cell(" " if blank else cluster, 1 if blank else _width(cluster), is_marked))
    return cells


def _clusters(text: str) -> Iterator[str]:
    """Yield characters with what combines with them."""
    first = 0
    for n in range(1, len(text) + 1):
        if not _combines(text, n):
            yield text[first:n]
            first = n


def _combines(text: str, n: int) -> bool:
    """Whether the character `n` is drawn together with the one before it."""
    if not 0 < n < len(text):
        return False
    before, this = text[n - 1], text[n]
    if this < "\u0300":
        return this == "\n" and before == "\r"
    if _is_flag(this) and _is_flag(before):  # two letters make a flag
        letters = itertools.takewhile(_is_flag, (text[k] for k in range(n - 1, -1, -1)))
        return sum(1 for _ in letters) % 2 == 1
    is_modifier = "\U0001f3fb" <= this <= "\U0001f3ff"  # the colour of a skin
    is_mark = unicodedata.category(this) in ("Mn", "Me", "Mc") or this in (_JOINER, "\u200c")
    is_joined = before == _JOINER or unicodedata.combining(before) == _VIRAMA
    return is_mark or is_modifier or is_joined or _is_vowel_of_syllable(before, this)


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _is_vowel_of_syllable(before: str, this: str) -> bool:
    """Whether two letters of Korean belong to one syllable."""
    return "\u1160" <= this <= "\u11ff" and "\u1100" <= before <= "\u11ff"


def _width(cluster: str) -> int:
    wide = unicodedata.east_asian_width(cluster[0]) in "WF" or "\ufe0f" in cluster
    return 2 if wide else int(unicodedata.category(cluster[0]) not in ("Mn", "Me", "Cf"))


def _side(text: str, margin: int, *, is_left: bool) -> list[_Cell]:
    """Return the text on a side of the answer, of at most `margin` columns and cut at a word."""
    cells = _cells(text, is_marked=False)
    ordered = cells[::-1] if is_left else cells
    kept: list[_Cell] = []
    room = margin
    for cell in ordered:
        if (room := room - cell.width) < 0:
            break
        kept.append(cell)
    if len(kept) < len(cells):
        blanks = [n for n, cell in enumerate(kept) if cell.text == " "]
        if blanks and blanks[-1] > len(kept) // 2:  # else there are no words to cut between
            del kept[blanks[-1] :]
            kept.append(_Cell(" ", 1, False))
        kept.append(_Cell(ELLIPSIS, len(ELLIPSIS), False))
    return kept[::-1] if is_left else kept


def _single_blanks(cells: list[_Cell]) -> list[_Cell]:
    """Leave out blanks after blanks."""
    return [
        cell
        for n, cell in enumerate(cells)
        if not (cell.text == " " and n and cells[n - 1].text == " ")
    ]


def _bracketed(cells: list[_Cell], marks: Marks) -> list[_Cell]:
    """Add the marks to the first and to the last character of the answer."""
    marked = [n for n, cell in enumerate(cells) if cell.is_marked]
    if marked:
        first, last = marked[0], marked[-1]
        width = cells[first].width + len(marks.before)
        cells[first] = _Cell(marks.before + cells[first].text, width, True)
        width = cells[last].width + len(marks.after)
        cells[last] = _Cell(cells[last].text + marks.after, width, True)
    return cells


# ---- lines ---------------------------------------------------------------------------------------


def _wrapped(cells: list[_Cell], width: int) -> Iterator[list[_Cell]]:
    line: list[_Cell] = []
    used = 0
    for part in _parts(cells):
        size = sum(cell.width for cell in part)
        if used + size > width and line:
            yield _trimmed(line)
            line, used = [], 0
            if part[0].text == " ":
                continue
        for cell in part:
            if used + cell.width > width and line:  # a word of more than a line
                yield line
                line, used = [], 0
            line.append(cell)
            used += cell.width
    if _trimmed(line):
        yield _trimmed(line)


def _parts(cells: list[_Cell]) -> Iterator[list[_Cell]]:
    """Yield the parts that a line may end between: words, blanks and wide characters."""
    part: list[_Cell] = []
    for cell in cells:
        if part and _may_break(part[-1], cell):
            yield part
            part = []
        part.append(cell)
    if part:
        yield part


def _may_break(before: _Cell, after: _Cell) -> bool:
    if " " in (before.text, after.text):
        return True
    ends, begins = unicodedata.category(before.text[-1]), unicodedata.category(after.text[0])
    is_wide = before.width >= 2 or after.width >= 2  # a marked one is wider
    return is_wide and ends not in ("Ps", "Pi") and begins not in ("Pe", "Pf", "Po")


def _trimmed(line: list[_Cell]) -> list[_Cell]:
    return line[:-1] if line and line[-1].text == " " else line


def _line(cells: Iterable[_Cell], marks: Marks) -> str:
    text, is_marked = "", False
    for cell in cells:
        if not marks.has_width and cell.is_marked != is_marked:
            text += marks.before if cell.is_marked else marks.after
        text += cell.text
        is_marked = cell.is_marked
    return text + (marks.after if is_marked and not marks.has_width else "")
