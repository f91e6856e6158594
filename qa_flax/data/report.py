"""Stage 1 of 7: what was found in the rows of a source, in as few messages as possible (host)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from qa_flax.data.readers import ExampleError, Row
from qa_flax.data.rejected import RejectedRow
from qa_flax.messages import MAX_SHOWN, first_few


class Note(Enum):
    """Something about a row that is used; a row has each kind as often as it has such answers."""

    ANSWER = "an answer"
    MISALIGNED = "an answer that is not at its answer_start"
    NEGATIVE = "one of these whose answer_start is negative"
    NOWHERE = "one of these whose text does not occur in the context"
    SIMILAR = "one of these whose text occurs in another spelling"
    MOVED = "an answer that was moved to where its text occurs"
    RESPELLED = "one of these that got the spelling of the context"
    PLACED = "an answer without start whose place was found"
    BLANK = "a blank text, which was left out"
    HAS_ANSWER = "is_impossible is true, but there are answers"
    HAS_NONE = "is_impossible is false, but there are no answers"
    UNREADABLE = "is_impossible is neither true nor false"


_MAX_TRIED = 200  # answers that are looked for in other spellings: each takes a millisecond
_REPAIRS = {Note.MOVED, Note.PLACED, Note.BLANK}


@dataclass
class RowReport:
    """What was found in one row: problems, for which it cannot be used, and notes."""

    id: str
    problems: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    tries_spellings: bool = True
    """Whether to look for answers in other spellings only to report how many there are."""
    says_none: bool = False
    """Whether the row says with `is_impossible` that it has no answer, and has none."""


class Report:
    """Collects what was found in a source, to report all of it at the end.

    Args:
        name: what messages call the source.
        rows: number of rows.
        skips: whether rows with problems are left out; otherwise `finish` raises.
        can_skip: whether the caller could ask for that.
        unread: parts of the source that are no rows, and were left out before.
    """

    def __init__(
        self,
        name: str,
        rows: int,
        *,
        skips: bool = False,
        can_skip: bool = False,
        unread: Sequence[RejectedRow] = (),
    ):
        self.name, self.rows, self.skips, self.can_skip = name, rows, skips, can_skip
        self.rows += len(unread)
        self.rejected, self._unread = list(unread), unread
        self.repaired = 0
        self._problems: dict[str, list[str]] = {}  # problem -> ids of its rows
        self._notes: dict[Note, list[str]] = {note: [] for note in Note}  # -> ids of its rows

    def row(self, id_: str) -> RowReport:
        """Return the report of a row, to be added."""
        return RowReport(id_, tries_spellings=len(self._notes[Note.NOWHERE]) < _MAX_TRIED)

    def add(self, row: Row, report: RowReport) -> bool:
        """Add what was found in a row; return whether the row is used."""
        for problem in dict.fromkeys(report.problems):
            self._problems.setdefault(problem, []).append(report.id)
        if report.problems:
            has_id = row.get("id") is not None
            reasons = tuple(dict.fromkeys(report.problems))
            self.rejected.append(RejectedRow(reasons, row, report.id if has_id else None))
            return not self.skips
        for note in report.notes:
            self._notes[note].append(report.id)
        self.repaired += not _REPAIRS.isdisjoint(report.notes)
        return True

    def finish(self, misaligned: str, warn: Callable[..., None]) -> None:
        """Raise if rows cannot be used and are not left out, and warn about those that are odd.

        Raises:
            ExampleError: rows are invalid.
        """
        if self._problems or self._unread:
            if not self.skips or len(self.rejected) == self.rows:
                raise ExampleError(self._error(misaligned))
            lines = "".join(self._problem_lines())
            warn("%s: left out %d of %d rows:%s", self.name, len(self.rejected), self.rows, lines)
        self._warn_of_repairs(warn)
        self._warn_of_misaligned(misaligned, warn)
        self._warn_of_contradictions(warn)

    def _problem_lines(self) -> list[str]:
        reasons: dict[str, int] = {}
        for row in self._unread:
            where = "" if row.line is None else f"line {row.line}: "
            text = f"{where}{'; '.join(row.reasons)}"
            reasons[text] = reasons.get(text, 0) + 1
        lines = list(reasons)[:MAX_SHOWN]
        if more := len(self._unread) - sum(reasons[line] for line in lines):
            lines.append(f"{more} more that cannot be read")
        lines += [f"{problem}: {summary(ids)}" for problem, ids in self._problems.items()]
        return [f"\n  - {line}" for line in lines]

    def _error(self, misaligned: str) -> str:
        some = "none" if self.skips else "some"
        verb = "can" if self.skips else "cannot"
        advice = "Correct or remove these rows"
        if self.can_skip and not self.skips:
            advice += ', or leave them out with bad_rows="skip"'
        hint = ""
        if misaligned == "refuse" and any("answer_start" in problem for problem in self._problems):
            hint = f" {_REPAIR}."
        return (
            f"{self.name}: {some} of the {self.rows} examples {verb} be used:"
            + "".join(self._problem_lines())
            + f"\n{advice}.{hint}"
        )

    def _share(self, note: Note) -> str:
        """Return a number of answers, as in `37 of 300 (12%); rows: 36 (ids "a", "b", ...)`."""
        ids, count = self._notes[note], len(self._notes[Note.ANSWER])
        percent = 100 * len(ids) / max(count, 1)
        share = f"{percent:.0f}%" if percent >= 1 else f"{percent:.1g}%"
        return f"{len(ids)} of {count} ({share}); rows: {summary(list(dict.fromkeys(ids)))}"

    def _warn_of_repairs(self, warn: Callable[..., None]) -> None:
        notes, name = self._notes, self.name
        if ids := notes[Note.BLANK]:
            warn("%s: blank answers count as no answer: %s", name, summary(ids))
        if ids := notes[Note.PLACED]:
            message = "%s: answers without answer_start, placed where their text occurs once: %s"
            warn(message, name, summary(ids))
        if notes[Note.MOVED]:
            message = "%s: answers moved to where their text occurs in the context: %s"
            warn(message, name, self._share(Note.MOVED))
        if ids := notes[Note.RESPELLED]:
            warn("%s: answers that got the spelling of the context: %s", name, summary(ids))

    def _warn_of_misaligned(self, misaligned: str, warn: Callable[..., None]) -> None:
        if self._notes[Note.MISALIGNED]:
            message = "%s: answers not at their answer_start: %s. %s"
            consequence = " ".join(self._consequences(misaligned))
            warn(message, self.name, self._share(Note.MISALIGNED), consequence)

    def _consequences(self, misaligned: str) -> list[str]:
        total, nowhere = len(self._notes[Note.MISALIGNED]), self._notes[Note.NOWHERE]
        elsewhere, similar = total - len(nowhere), len(self._notes[Note.SIMILAR])
        if misaligned == "keep":
            line = "They are used as they are, for training, too."
            if negative := self._notes[Note.NEGATIVE]:
                line += f" Those with a negative one, {summary(negative)}, are trained on as with"
                line += ' misaligned="drop".'
            return [line, f"{_REPAIR}."] if elsewhere or similar else [line]
        lines = []
        if elsewhere:
            places = "Their text occurs" if not nowhere else f"The text of {elsewhere} occurs"
            lines.append(f"{places} elsewhere in the context: training uses the nearest place.")
        if nowhere:
            texts = (
                "Their text occurs" if not elsewhere else f"The text of {summary(nowhere)} occurs"
            )
            lines.append(
                f"{texts} nowhere in the context: a question without another answer is left out of "
                "training."
            )
        lines.append("Evaluation uses all of them as they are.")
        if similar and misaligned != "repair":
            lines.append(f'misaligned="repair" finds {similar} of these in another spelling.')
        elif elsewhere:
            lines.append('misaligned="repair" moves them for evaluation, too.')
        return lines

    def _warn_of_contradictions(self, warn: Callable[..., None]) -> None:
        notes = self._notes
        # Test data without answers may say of every question that it has one.
        has_none = notes[Note.HAS_NONE] if notes[Note.ANSWER] else []
        parts = [
            f"{text}: {summary(ids)}"
            for ids, text in (
                (notes[Note.HAS_ANSWER], "true, but there are answers"),
                (has_none, "false, but there is no answer"),
            )
            if ids
        ]
        if parts:
            message = "%s: is_impossible contradicts the answers, and the answers decide: it is %s"
            warn(message, self.name, "; ".join(parts))
        if ids := notes[Note.UNREADABLE]:
            message = "%s: is_impossible is neither true nor false and is ignored: %s"
            warn(message, self.name, summary(ids))


_REPAIR = 'misaligned="repair" moves answers to where their text occurs'


def summary(ids: list[str]) -> str:
    """Format the number of ids and the first few, as in `3 (ids "a", "b", "c")`."""
    return f"{len(ids)} (ids {_names(ids)})"


def _names(ids: list[str]) -> str:
    return first_few(list(dict.fromkeys(ids)), lambda id_: json.dumps(id_, ensure_ascii=False))


def counts_line(name: str, *, read: int, repaired: int, rejected: int) -> str:
    """Return the line that says what became of the rows of a source."""
    used = read - repaired - rejected
    return f"{name}: {read} read = {used} used + {repaired} repaired + {rejected} rejected"
