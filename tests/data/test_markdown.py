"""Markdown -> running text; wrapped lines -> paragraphs."""

from textwrap import fill

from qa_flax.data.markdown import plain_markdown, unwrapped

MARKDOWN = """---
title: front matter
---
# The **old** mill

The mill, see [its page](https://example.org/a_(b).html) and [map][1],
burned down in `1843` <!-- or later -->
_twice_.

```python
code = "is left out"
```

![picture](mill.png)
- [x] First *item*
  goes on.
- Second __item__, with snake_case_name and 3 * 4 * 5

> A quotation
> in two lines.

| a | table |
|---|-------|
1. Numbered

Title
=====

[1]: https://example.org/map
"""


def test_only_what_is_no_text_is_taken_out():
    assert plain_markdown(MARKDOWN).split("\n\n") == [
        "The old mill",
        "The mill, see its page and map, burned down in 1843 twice.",
        "First item goes on.",
        "Second item, with snake_case_name and 3 * 4 * 5",
        "A quotation in two lines.",
        "Numbered",
        "Title",
    ]


def test_text_without_marks_stays_as_it_is():
    text = "One line.\n\nAnother one: a < b, $x_1$ and C# or 5*3."
    assert plain_markdown(text) == text


def test_wrapped_lines_are_joined_and_others_are_not():
    words = "the mill stood on the hill above the river until it burned down one night " * 5
    paragraphs = [words.strip(), words.upper().strip()]
    wrapped = "\n\n".join(fill(paragraph, 60) for paragraph in paragraphs)
    assert unwrapped(wrapped) == "\n\n".join(paragraphs)
    verses = "\n".join(f"{'word ' * (n % 4 + 1)}{n}" for n in range(12))
    assert unwrapped(verses) == verses
    long = "\n".join("a paragraph in each line " * n for n in range(20, 30))
    assert unwrapped(long) == long


def test_wrapped_chinese_has_no_blanks_at_line_ends():
    text = "磨坊位于河边的小山上在一个夜晚被烧毁了" * 8
    lines = [text[n : n + 30] for n in range(0, len(text), 30)]
    assert unwrapped("\n".join(lines)) == text
