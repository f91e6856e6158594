"""Where progress bars are shown: what stderr is."""

import sys
from types import SimpleNamespace

import pytest
import tiny

from qa_flax import prepare_train_features
from qa_flax.data import screen


def run_in(monkeypatch, *, terminal: bool = False, kernel: bool = False, cell: bool = False):
    shell = SimpleNamespace(kernel=object()) if kernel else SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    if cell or kernel:
        monkeypatch.setenv("JPY_PARENT_PID", "1")


PLACES = {
    "a log": ({}, (False, False, False)),
    "a terminal": ({"terminal": True}, (False, True, True)),
    "a notebook": ({"kernel": True}, (True, True, False)),
    "a notebook that calls itself a terminal": (
        {"kernel": True, "terminal": True},
        (True, True, False),
    ),
    "a command that a cell starts": ({"terminal": True, "cell": True}, (False, True, False)),
}


@pytest.mark.parametrize("place", PLACES)
def test_bars_are_shown_where_they_are_readable(place, monkeypatch):
    settings, expected = PLACES[place]
    run_in(monkeypatch, **settings)
    assert (screen.in_notebook(), screen.shows_bar(), screen.shows_nested_bars()) == expected


def test_a_process_without_ipython_is_no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not screen.in_notebook()
    assert "IPython" not in sys.modules


@pytest.mark.parametrize(("terminal", "disable"), [(True, False), (True, True), (False, False)])
def test_tokenizing_shows_a_bar_or_in_a_log_a_line(terminal, disable, monkeypatch, capsys):
    run_in(monkeypatch, terminal=terminal)
    settings = {"disable_tqdm": disable}
    prepare_train_features(tiny.examples(answerable=True), tiny.tokenizer(), 24, 3, **settings)
    shown = capsys.readouterr().err
    assert ("Tokenizing: 100%" in shown) != disable
    assert ("\r" in shown) == (terminal and not disable)
    if not terminal:
        assert shown.count("\n") == 1
