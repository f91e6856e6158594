"""Questions at a prompt, from the command line or from standard input; their answers in words."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from qa_flax.answering.answerer import QuestionAnswerer
from qa_flax.commands.answer.passage import BRACKETS, HIGHLIGHT, passage, shown
from qa_flax.commands.answer.progress import Progress
from qa_flax.commands.answer.texts import Texts
from qa_flax.commands.wording import in_flags
from qa_flax.data.answers import is_unicode
from qa_flax.messages import printable

PROMPT = "Question: "
ENDS = ("quit", "exit", "quit()", "exit()", ":q")
_INDENT = "  "
_NARROWEST = 20


class Asker:
    """Asks questions about texts, and prints the answers with the passages around them.

    Args:
        answerer: the model.
        texts: what is asked about.
        progress: the answerer's.
    """

    def __init__(self, answerer: QuestionAnswerer, texts: Texts, progress: Progress):
        self.answerer, self.texts, self.progress = answerer, texts, progress
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:  # what the terminal cannot show does not stop the command
            reconfigure(errors="replace")
        is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.marks = HIGHLIGHT if sys.stdout.isatty() and not is_plain else BRACKETS

    def print(self, question: str) -> None:
        """Answer a question and print its answers, best first.

        Raises:
            ValueError: the question cannot be answered.
        """
        with self.progress.of_question():
            result = self.answerer({"question": question, **self.texts.entries})
        answers = [result] if isinstance(result, dict) else result
        width = max(_NARROWEST, shutil.get_terminal_size().columns) - len(_INDENT)
        for number, answer in enumerate(answers, 1):
            rank = "" if len(answers) == 1 else f"{number}. "
            print(rank + _headline(answer))
            if answer["answer"]:
                context = self.texts.of(answer.get("context"))
                lines = passage(context, answer["start"], answer["end"], width, self.marks)
                print("\n".join(_INDENT + line for line in lines))
        if not answers:
            print(self._none())
        sys.stdout.flush()

    def print_all(self, questions: Iterable[str], *, names_each: bool) -> None:
        """Answer questions one after the other, each with its text above if `names_each`."""
        for number, question in enumerate(questions):
            if names_each:
                print("\n" * bool(number) + PROMPT + shown(question), flush=True)
            self.print(question)

    def _none(self) -> str:
        settings = self.answerer.settings
        if settings.answers is None:
            return "(no answer was found)"
        return f"(no answer with a confidence of at least {settings.threshold:g}: see --threshold)"


def _headline(answer: dict[str, Any]) -> str:
    """The answer with its figures in one line."""
    names = [name for name in ("confidence", "score") if name in answer]
    figures = [f"{name} {_rounded(answer[name])}" for name in names]
    if not answer["answer"]:
        return f"(no answer)  {', '.join(figures)}"
    place = f"characters {answer['start']}-{answer['end']}"
    if answer.get("context") is not None:
        place = f"{shown(answer['context'])}, {place}"
    return f"{shown(answer['answer'])}  {', '.join(figures)}, {place}"


def _rounded(number: float) -> str:
    return f"{number:.4f}" if number >= 0.001 or not number else f"{number:.1e}"


# ---- questions -----------------------------------------------------------------------------------


def ask(asker: Asker) -> None:
    """Answer questions at a prompt until an empty line, "quit" or the end of the input.

    Ctrl-C while a question is answered leads back to the prompt.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (lets the prompt edit lines and recall earlier ones)
    print('Ask in one line; an empty line, "quit" or Ctrl-D ends.', file=sys.stderr)
    while (question := _next_question()) is not None:
        try:
            asker.print(question)
            print(flush=True)
        except KeyboardInterrupt:
            print("\ninterrupted; Ctrl-D ends", file=sys.stderr)
        except ValueError as error:
            print(f"qa-flax: {printable(in_flags(str(error)))}", file=sys.stderr)


def _next_question() -> str | None:
    """Read a question at the prompt; None: there is none any more."""
    while True:
        try:
            question = _typed().strip()
            if is_unicode(question):
                return question if question and question.lower() not in ENDS else None
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise
        except UnicodeDecodeError:
            pass  # as what is no Unicode otherwise
        print("qa-flax: that is no UTF-8 text; set the terminal to UTF-8", file=sys.stderr)


def _typed() -> str:
    if sys.stdout.isatty():
        return input(PROMPT)
    print(PROMPT, end="", file=sys.stderr, flush=True)  # the answers go to a file or a pipe
    return sys.stdin.readline()


def piped_questions() -> Iterator[str]:
    """Yield the lines of standard input that are not blank.

    Raises:
        ValueError: there are none, or they are no Unicode text.
    """
    count = 0
    try:
        for line in sys.stdin:
            if not is_unicode(line):
                raise ValueError(f"standard input: question {count + 1} is not UTF-8 text")
            if question := line.strip("\ufeff \t\r\n"):
                count += 1
                yield question
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text ({error})") from error
    if not count:
        raise ValueError(
            "no question: standard input is empty; give --question or --input, pipe questions, one "
            "in each line, or start the command in a terminal"
        )
