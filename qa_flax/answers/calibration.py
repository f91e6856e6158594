"""Stage 6 of 7: what turns a model's scores into confidences, and its file (host).

A `Calibration` has a temperature and a no-answer threshold, both fitted on validation data by
`calibration_fit.py`, used by `confidence.py`, and kept as `calibration.json` in the model's folder.
It belongs to the weights that it was fitted with, whose fingerprint it holds.

How its figures are measured is part of their names, in the class and in the file:

| names | measured on |
|---|---|
| `temperature`, `no_answer_threshold` | fitted on all questions |
| `fitted_...` | counts of these questions and of the contexts they are about |
| `held_out_..._before` | all questions, with temperature 1 and threshold 0: nothing is fitted |
| `held_out_..._after`, `held_out_confidence_at_80` | all questions, each with the temperature and \
threshold fitted on the other folds' contexts (cross-fitting) |
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from qa_flax import storage
from qa_flax.messages import first_few
from qa_flax.models.files import CALIBRATION_FILE
from qa_flax.ranges import POSITIVE, Range, at_least, check_numbers

FORMAT = "qa_flax calibration 1"
"""The value of "format" in the file, which tells it from other programs' files of that name."""

_COUNT = at_least(0)
_FRACTION = Range("a number from 0 to 1, or null", lambda v: 0 <= v <= 1, is_optional=True)
_RANGES = {
    "temperature": POSITIVE,
    "no_answer_threshold": Range("a number, or null", lambda v: True, is_optional=True),
    "fitted_questions": _COUNT,
    "fitted_questions_without_answer": _COUNT,
    "fitted_contexts": _COUNT,
    "held_out_folds": _COUNT,
    "held_out_ece_before": _FRACTION,
    "held_out_ece_after": _FRACTION,
    "held_out_accuracy_before": _FRACTION,
    "held_out_accuracy_after": _FRACTION,
    "held_out_coverage_at_80_before": _FRACTION,
    "held_out_coverage_at_80_after": _FRACTION,
    "held_out_confidence_at_80": _FRACTION,
}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A temperature and a no-answer threshold, and how well they did on questions not fitted on.

    `Calibration()` changes nothing: a confidence is then the softmax of the raw scores. `str()`
    gives the report in a few lines.

    ECE is the expected calibration error and coverage the share of questions that can be answered
    with at least 80% right, see `confidence.py`. Accuracies, ECE and coverage are from 0 to 1, and
    None where they were not measured. What an answer is counts: exact match, and "no answer" where
    the question has none.

    Raises:
        ValueError: a value is out of its range; NaN and infinity always are.

    Example:
        >>> from qa_flax.answers.calibration import Calibration
        >>> calibration = Calibration(temperature=2.0)
        >>> calibration.no_answer_threshold is None
        True
    """

    temperature: float = 1.0
    """What scores are divided by before the softmax; above 1 it makes confidences smaller."""

    no_answer_threshold: float | None = None
    """What the null score must exceed the best score by for "no answer" to win; None: not fitted,
    because the questions all have an answer, or none has."""

    fingerprint: str | None = None
    """Which weights it was fitted with, see `models/fingerprint.py`; None: unknown."""

    fitted_questions: int = 0
    fitted_questions_without_answer: int = 0
    fitted_contexts: int = 0
    held_out_folds: int = 0
    """Into how many parts the contexts were divided for cross-fitting; 0: it was not possible."""
    held_out_ece_before: float | None = None
    held_out_ece_after: float | None = None
    held_out_accuracy_before: float | None = None
    held_out_accuracy_after: float | None = None
    held_out_coverage_at_80_before: float | None = None
    held_out_coverage_at_80_after: float | None = None
    held_out_confidence_at_80: float | None = None
    """The lowest confidence among the answers that `held_out_coverage_at_80_after` counts."""

    notes: tuple[str, ...] = ()
    """What to know about the fit and the figures: too few questions, nothing to fit."""

    def __post_init__(self):
        check_numbers(_RANGES, **{name: getattr(self, name) for name in _RANGES})
        is_text = isinstance(self.fingerprint, str) or self.fingerprint is None
        if not is_text or not all(isinstance(note, str) for note in self.notes):
            raise ValueError("fingerprint must be text or null, and notes a list of texts")

    def __str__(self) -> str:
        return "\n".join(self.report())

    def report(self) -> list[str]:
        """Return lines that say what was measured, what was fitted and what to know about it."""
        contexts = f"{self.fitted_questions:,} questions about {self.fitted_contexts:,} contexts"
        how = (
            f"measured with values fitted on other contexts ({self.held_out_folds} folds)"
            if self.held_out_folds
            else "measured before the fit only"
        )
        threshold = self.no_answer_threshold
        fitted = "none" if threshold is None else f"{threshold:.3f}"
        return [
            f"Calibration on {contexts}, {how}:",
            *describe(self.metrics()),
            f"  temperature {self.temperature:.3f}, no-answer threshold {fitted}",
            *(f"  Note: {note}" for note in self.notes),
        ]

    def metrics(self) -> dict[str, float]:
        """Return the measured figures and the fitted values by short names, without None."""
        values = {
            name.removeprefix("held_out_"): getattr(self, name)
            for name in _RANGES
            if name.startswith("held_out_") and name != "held_out_folds"
        }
        values["temperature"] = self.temperature
        values["no_answer_threshold"] = self.no_answer_threshold
        return {name: value for name, value in values.items() if value is not None}

    def write(self, folder: str | os.PathLike) -> None:
        """Write `calibration.json` into a folder, here or in a bucket, atomically.

        Raises:
            OSError: the file cannot be written.
        """
        values = {"format": FORMAT} | dataclasses.asdict(self)
        text = storage.json_text(values, indent=2)
        storage.write_text(storage.path(folder) / CALIBRATION_FILE, f"{text}\n")

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Calibration":
        """Read `calibration.json` of a folder, here or in a bucket.

        Raises:
            FileNotFoundError: there is none.
            OSError: the file cannot be read.
            ValueError: the file is damaged, of another program, or of a newer version.
        """
        file = storage.path(folder) / CALIBRATION_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{folder} has no {CALIBRATION_FILE}: this model is not calibrated; make one with "
                "QuestionAnswerer.calibrate(examples, folder=...) or qa-flax run --calibrate"
            )
        try:
            values = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            content = storage.foreign_content(file)
            reason = str(error) if content is None else f"it is {content}"
            raise ValueError(_unusable(file, f"is not JSON ({reason})")) from error
        problem = _problem(values)
        if problem is not None:
            raise ValueError(_unusable(file, problem))
        try:
            fields: dict[str, Any] = {name: values[name] for name in _names()}
            fields["notes"] = tuple(fields["notes"])
            return cls(**fields)
        except ValueError as error:
            raise ValueError(_unusable(file, f"has a wrong value: {error}")) from error


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(Calibration)]


def _problem(values: Any) -> str | None:
    """Return what is wrong with the fields of a file, or None."""
    if not isinstance(values, Mapping) or values.get("format") != FORMAT:
        return f'is not of this program or version: "format" is not "{FORMAT}"'
    names = {"format", *_names()}
    if unknown := sorted(values.keys() - names):
        return f"has fields that this version of qa_flax does not know: {first_few(unknown)}"
    if missing := sorted(names - values.keys()):
        return f"lacks fields: {first_few(missing)}"
    return None if isinstance(values["notes"], list) else 'has a wrong value: "notes" is no list'


def _unusable(file: storage.AnyPath, problem: str) -> str:
    return f"{file} {problem}; calibrate the model again, or delete the file"


# What is measured, with its name in `Calibration.metrics` and whether it is shown in percent.
_MEASURED = (
    ("expected calibration error", "ece", False),
    ("accuracy", "accuracy", True),
    ("coverage at 80% accuracy", "coverage_at_80", True),
)


def describe(metrics: Mapping[str, float]) -> list[str]:
    """Return a line for each figure that was measured; `metrics` has the names of `metrics()`."""
    lines = []
    for title, name, is_share in _MEASURED:
        if f"{name}_before" in metrics:
            values = [metrics.get(f"{name}_{when}") for when in ("before", "after")]
            lines.append(f"  {title}: {' -> '.join(_shown(v, is_share) for v in values)}")
    if "confidence_at_80" in metrics:
        lowest = f"{metrics['confidence_at_80']:.3f}"
        lines[-1] += f" (the answers with a confidence of at least {lowest})"
    return lines


def _shown(value: float | None, is_share: bool) -> str:
    if value is None:
        return "not measured"
    return f"{100 * value:.1f}%" if is_share else f"{value:.3f}"
