"""Programs that are compiled in other threads, and lines about them."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from qa_flax.distributed import preemption
from qa_flax.train import compiling
from qa_flax.train.compiling import Compiling


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(compiling, "SECONDS_UNTIL_LINE", 0.3)
    monkeypatch.setattr(compiling, "SECONDS_BETWEEN_LINES", 0.5)


class Lowered:
    """What `add` gets from JAX: traced, to be compiled by `job`."""

    def __init__(self, job):
        self.compile = job


def lowered(job):
    return lambda: Lowered(job)


def slow():
    time.sleep(1.5)
    return 3


def test_lines_appear_only_if_somebody_waits(impatient, capsys):
    with Compiling("the step", is_shown=True) as programs:
        programs.add("a", "2 x 8 tokens", lowered(lambda: 1))
        assert programs.result("a") == 1
        assert capsys.readouterr().err == ""
        programs.add("b", "4 x 8 tokens", lowered(slow))
        assert programs.result("b") == 3
        first, second, *_, last = capsys.readouterr().err.splitlines()
        assert first == "Compiling the step for 4 x 8 tokens on each core"
        assert second == "Compiling the step for 4 x 8 tokens on each core, 1 s so far"
        assert last.startswith("Compiled the step for 4 x 8 tokens in 1.")
        assert programs.result("b") == 3
    with Compiling("the step", is_shown=False) as programs:
        programs.add("b", "4 x 8 tokens", lowered(slow))
        assert programs.result("b") == 3
    assert capsys.readouterr().err == ""


def test_the_first_is_there_before_the_second_is_compiled():
    wanted = threading.Event()
    with Compiling("the step", is_shown=True) as programs:
        programs.add("a", "", lowered(lambda: "first"))
        programs.add("a", "", lowered(lambda: "not compiled again"))
        programs.add("b", "", lowered(lambda: wanted.wait(60)))
        assert programs.result("a") == "first"
        wanted.set()
        assert programs.result("b") is True


def test_an_error_of_the_compiler_reaches_the_caller():
    def fail():
        raise MemoryError("the compiler's")

    with Compiling("the step", is_shown=True) as programs:
        programs.add("a", "", lowered(fail))
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
            programs.add("a", "", lowered(lambda: released.wait(60)))
            programs.add("b", "", lowered(lambda: begun.append(1)))
            programs.result("a")

    with pytest.raises(preemption.Preempted):
        compile_both()
    released.set()
    time.sleep(0.2)
    assert not begun


def test_a_program_is_traced_in_the_thread_that_adds_it():
    """JAX's settings hold there: a context such as `default_matmul_precision` is a thread's own."""

    def lower():
        return jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((4, 4), jnp.float32))

    with Compiling("the step", is_shown=True) as programs:
        with jax.default_matmul_precision("highest"):
            programs.add("a", "", lower)
        programs.add("b", "", lower)
        texts = [programs.result(key).as_text() for key in "ab"]
    assert ["highest" in text for text in texts] == [True, False]
