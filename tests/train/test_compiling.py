"""Lines about what is being compiled."""

import threading
import time

import pytest

from qa_flax.distributed import preemption
from qa_flax.train import compiling as module
from qa_flax.train.compiling import compiling


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_UNTIL_LINE", 0.3)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.5)


def run(jobs, is_shown=True):
    with compiling("the step", jobs, is_shown) as compiled:
        return compiled.results()


def test_lines_appear_only_if_it_takes_long(impatient, capsys):
    assert run([lambda: 1, lambda: 2]) == [1, 2]
    assert capsys.readouterr().err == ""

    def slow():
        time.sleep(1.2)
        return 3

    assert run([lambda: 1, slow]) == [1, 3]
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "Compiling the step for 2 shapes of batches (1 of 2 done)"
    assert second.startswith("Compiling the step for 2 shapes of batches (1 of 2 done, 1 s so far")
    assert last.startswith("Compiled the step for 2 shapes of batches in 1.")
    assert run([slow], is_shown=False) == [3]
    assert capsys.readouterr().err == ""


def test_several_are_compiled_at_a_time():
    both = threading.Barrier(2, timeout=60)
    assert sorted(run([both.wait, both.wait])) == [0, 1]


def test_an_error_of_the_compiler_reaches_the_caller():
    def fail():
        raise MemoryError("the compiler's")

    with pytest.raises(MemoryError, match="the compiler's"):
        run([lambda: 1, fail])


def test_sigterm_does_not_wait_for_the_compiler(monkeypatch):
    released = threading.Event()

    def check():
        raise preemption.Preempted

    monkeypatch.setattr(preemption, "check", check)
    with pytest.raises(preemption.Preempted):
        run([lambda: released.wait(60)])
    released.set()
