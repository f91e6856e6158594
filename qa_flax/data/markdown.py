"""Markdown and wrapped lines -> lines of running text (host, text).

No more is taken out of Markdown than what is no text for a reader: the front matter, code blocks,
comments, tables, pictures and the targets of links, and the marks of headings, lists, quotations
and emphasis.
"""

import itertools

import regex

from qa_flax.data.sentences import UNSPACED

# Each is searched in the whole text: from a line that opens to the one that closes.
_BLOCKS = (
    regex.compile(r"\A---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", regex.S),  # front matter
    regex.compile(
        r"^ {0,3}(?P<fence>`{3,}|~{3,}).*?(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)", regex.S | regex.M
    ),
    regex.compile(r"<!--.*?-->", regex.S),
    regex.compile(r"^[ \t]*\|.*$", regex.M),  # rows of a table
    regex.compile(r"^[ \t]*(?:[-*_=][ \t]*){3,}$", regex.M),  # rules, and underlined headings
    regex.compile(r"^[ ]{0,3}\[[^\]\n]+\]:[ \t]*\S.*$", regex.M),  # targets of links
)
_HEADING = regex.compile(r"^ {0,3}#{1,6}[ \t]+(.*?)[ \t#]*$", regex.M)
_QUOTATION = regex.compile(r"^ {0,3}(?:>[ \t]?)+", regex.M)
_ITEM = regex.compile(r"^[ \t]*(?:[-*+]|\d{1,3}[.)])[ \t]+(?:\[[ xX]\][ \t]+)?", regex.M)
_IMAGE = regex.compile(r"!\[[^\]\n]*\](?:\([^)\n]*\)|\[[^\]\n]*\])")
_LINK = regex.compile(r"\[([^\]\n]+)\](?:\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\)|\[[^\]\n]*\])")
_EMPHASIS = regex.compile(r"(?<![\w\\])(\*\*|__|`+|\*|_)(?=\S)([^\n]+?)(?<=\S)\1(?!\w)")


_BLANK_LINES = regex.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def plain_markdown(text: str) -> str:
    r"""Return the running text of Markdown, with a line for each paragraph, heading and item.

    Args:
        text: Markdown, with line feeds at the ends of lines.

    Example:
        >>> plain_markdown("# The *mill*\n- It [burned](a.html)\n  down.\n- It was built again.\n")
        'The mill\n\nIt burned down.\n\nIt was built again.'
    """
    for block in _BLOCKS:
        text = block.sub("", text)
    text = _HEADING.sub(lambda match: f"\n{match[1]}\n", text)
    text = _ITEM.sub("\n", _QUOTATION.sub("", text))
    text = _LINK.sub(r"\1", _IMAGE.sub("", text))
    for _ in range(2):  # bold in italics
        text = _EMPHASIS.sub(r"\2", text)
    return _joined(text)


MIN_BREAKS, MIN_FULL = 4, 0.8
"""How many line ends inside paragraphs, and how many full lines of them, show wrapped lines."""
LONGEST_WRAPPED = 160
_FIRST = regex.compile(rf"\s*([{UNSPACED}]|[^\s{UNSPACED}]+)", regex.V1)
_JOIN = regex.compile(r"[ \t]*\n[ \t]*(?=\S)")
_NO_BLANK = regex.compile(rf"(?<=[{UNSPACED}])[ \t]*\n[ \t]*(?=[{UNSPACED}])", regex.V1)


def unwrapped(text: str) -> str:
    """Return a text whose paragraphs are one line each, if its lines are wrapped at a width.

    They are if, inside paragraphs, the first word of the next line would seldom have fitted on the
    line before. Other line ends are kept: verses, lists, or a paragraph in each line.
    """
    full = total = 0
    for paragraph in _BLANK_LINES.split(text):
        lines = [line.rstrip() for line in paragraph.split("\n") if line.strip()]
        if len(lines) < 3:
            continue
        width = max(map(len, lines))
        total += len(lines) - 1
        if width <= LONGEST_WRAPPED:
            for line, following in itertools.pairwise(lines):
                first = _FIRST.match(following)
                full += first is not None and len(line) + 1 + len(first[1]) > width
    if total < MIN_BREAKS or full < MIN_FULL * total:
        return _BLANK_LINES.sub("\n\n", text)
    return _joined(text)


def _joined(text: str) -> str:
    paragraphs = (paragraph.strip() for paragraph in _BLANK_LINES.split(text))
    joined = (_JOIN.sub(" ", _NO_BLANK.sub("", paragraph)) for paragraph in paragraphs)
    return "\n\n".join(paragraph for paragraph in joined if paragraph)
