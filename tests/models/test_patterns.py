"""Regular expressions of a model's files end in time, and match as Python's `re` does."""

import re
import time

import pytest

from qa_flax.models import patterns
from qa_flax.models.patterns import matching

NAMES = tuple(
    f"bert.encoder.layer.{layer}.{part}"
    for layer in range(12)
    for part in ("attention.self.query", "attention.self.value", "output.dense")
)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(query|value)",
        r"^(?!.*output).*layer\.[0-3]\..*",
        r"(?i).*QUERY$",
        "query",
        "",
        ".*",
        "\\d\N{BULLET}",
    ],
)
def test_matches_are_those_of_re(pattern):
    expected = {name for name in NAMES if re.fullmatch(pattern, name)}
    assert matching(pattern, NAMES) == expected


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "*", "(" * 3000, "(?P<a>.)(?P<a>.)", "\\"])
def test_what_is_no_expression_is_refused(pattern):
    with pytest.raises(ValueError, match="is not a regular expression: ") as refused:
        matching(pattern, NAMES)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("pattern", ["(.*)*!", "(?:" + "x?" * 40 + ")*y", "(.|.)" * 60 + "!"])
def test_an_expression_that_does_not_end_is_stopped(pattern, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.5)
    start = time.monotonic()
    try:
        assert matching(pattern, NAMES) == frozenset()
    except ValueError as error:
        assert "takes more than 0.5 s" in str(error)  # noqa: PT017
    assert time.monotonic() - start < 5


def test_one_that_fills_the_memory_is_stopped(monkeypatch):
    monkeypatch.setattr(patterns, "MAX_MEMORY", 2**25)
    with pytest.raises(ValueError, match="takes too much memory"):
        matching("|".join(["(.)x*"] * 40_000), NAMES)
