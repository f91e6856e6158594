"""What an evaluation of the trainer leaves for `qa-flax report` beside the answers (host)."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from qa_flax import messages
from qa_flax.answers.record import described, question_records, write_record
from qa_flax.answers.written import WrittenAnswers
from qa_flax.data.origin import origin_of
from qa_flax.data.tables import span_source
from qa_flax.distributed import processes

logger = messages.logger(__name__)


def leave_records(
    written: Iterable[WrittenAnswers], references: Any, examples: Any, model: str | None
) -> None:
    """Write `{prefix}_report.json` beside the answers that a `post_process_function` wrote.

    It has the scores of SQuAD's scorers; with `language`, a script's own scores may differ. Only
    the main process writes.

    Args:
        written: the answers.
        references: the questions' gold answers, as the function returned them: rows with `id` and
            `answers`. Others are not read; then the questions have no scores.
        examples: the examples that it was given.
        model: the model's folder or Hub id.
    """
    if not processes.is_main():
        return
    golds = gold_texts(references)
    for answers in written:
        settings = {"model": model, "language": None} | answers.settings
        questions = question_records(
            {str(id_): text for id_, text in answers.texts.items()},
            golds,
            Counter(map(str, span_source(answers.features).example_ids)),
            version_2_with_negative=bool(settings["version_2_with_negative"]),
            language=None,
        )
        source = described(origin_of(examples)) | {"part": None}
        try:
            write_record(answers.folder, answers.prefix, source, settings, questions)
        except OSError as error:  # the metrics are not lost for it
            logger.warning("the evaluation cannot be noted for qa-flax report: %s", error)


def gold_texts(references: Any) -> dict[str, list[str]]:
    """Return the gold answers of references by id; {} if they have another form.

    Example:
        >>> gold_texts([{"id": 7, "answers": {"text": ["Elbe"], "answer_start": [4]}}])
        {'7': ['Elbe']}
    """
    try:
        return {
            str(row["id"]): [str(text) for text in row["answers"]["text"]] for row in references
        }
    except (TypeError, KeyError, IndexError):
        return {}
