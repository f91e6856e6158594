"""Programs that are compiled in other threads, and lines about them."""

import threading
import time

import pytest

from qa_flax.distributed import preemption
from qa_flax.train import compiling
from qa_flax.train.compiling import Compiling


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(compiling, "SECONDS_UNTIL_LINE", 0.3)
    monkeypatch.setattr(compiling, "SECONDS_BETWEEN_LINES", 0.5)


def slow():
    time.sleep(1.5)
    return 3


def test_lines_appear_only_if_somebody_waits(impatient, capsys):
    with Compiling("the step", is_shown=True) as programs:
        programs.add("a", "2 x 8 tokens", lambda: 1)
        assert programs.result("a") == 1
        assert capsys.readouterr().err == ""
        programs.add("b", "4 x 8 tokens", slow)
        assert programs.result("b") == 3
        first, second, *_, last = capsys.readouterr().err.splitlines()
        assert first == "Compiling the step for 4 x 8 tokens on each core"
        assert second == "Compiling the step for 4 x 8 tokens on each core, 1 s so far"
        assert last.startswith("Compiled the step for 4 x 8 tokens in 1.")
        assert programs.result("b") == 3
    with Compiling("the step", is_shown=False) as programs:
        programs.add("b", "4 x 8 tokens", slow)
        assert programs.result("b") == 3
    assert capsys.readouterr().err == ""


def test_the_first_is_there_before_the_second_is_compiled():
    wanted = threading.Event()
    with Compiling("the step", is_shown=True) as programs:
        programs.add("a", "", lambda: "first")
        programs.add("a", "", lambda: "not compiled again")
        programs.add("b", "", lambda: wanted.wait(60))
        assert programs.result("a") == "first"
        wanted.set()
        assert programs.result("b") is True


def test_an_error_of_the_compiler_reaches_the_caller():
    def fail():
        raise MemoryError("the compiler's")

    with Compiling("the step", is_shown=True) as programs:
        programs.add("a", "", fail)
        with pytest.raises(MemoryError, match="the compiler's"):
            programs.result("a")


def test_sigterm_does_not_wait_for_the_compiler(monkeypatch):
    released, begun = threading.Event(), []

    def check():
        raise preemption.Preempted

    monkeypatch.setattr(compiling, "AT_ONCE", 1)
    monkeypatch.setattr(preemption, "check", check)

    def compile_both():
        with Compiling("the step", is_shown=True) as programs:
            programs.add("a", "", lambda: released.wait(60))
            programs.add("b", "", lambda: begun.append(1))
            programs.result("a")

    with pytest.raises(preemption.Preempted):
        compile_both()
    released.set()
    time.sleep(0.2)
    assert not begun
