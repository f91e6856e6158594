"""What `qa-flax run` notes of an evaluation, for `qa-flax report` (host)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qa_flax.answers.record import described, question_records, write_record
from qa_flax.commands.arguments import DataArguments
from qa_flax.commands.run.split import SPLITS
from qa_flax.distributed import exchange, processes

_SETTINGS = (
    *("version_2_with_negative", "null_score_diff_threshold", "language", "max_seq_length"),
    *("doc_stride", "n_best_size", "max_answer_length", "hf_compatible"),
)


def write_evaluation(
    output_dir: str,
    stage: str,
    model: str | None,
    data_args: DataArguments,
    answers: Mapping[Any, str],
    golds: Mapping[Any, Sequence[str]],
    window_ids: Sequence[str],
) -> None:
    """Write `{stage}_report.json` for the questions of all processes, in the main one.

    Args:
        output_dir: where the answers are.
        stage: eval or predict.
        model: the model's folder or Hub id.
        data_args: the data, and how the answers were found and scored.
        answers: the answer to each question of this process, by id.
        golds: the gold answers, by id.
        window_ids: the question of each window.
    """
    records = question_records(
        answers,
        golds,
        Counter(window_ids),
        version_2_with_negative=data_args.version_2_with_negative,
        language=data_args.language,
    )
    if processes.count() > 1:
        parts = exchange.all_gather_json("scores by question", records)
        records = {id_: record for part in parts for id_, record in part.items()}
    if not processes.is_main():
        return
    settings = {"model": model} | {name: getattr(data_args, name) for name in _SETTINGS}
    write_record(output_dir, stage, _source(stage, data_args), settings, records)


def _source(stage: str, data_args: DataArguments) -> dict[str, Any]:
    """Return where the data of a stage is, and how its rows are read."""
    part, split = None, SPLITS[stage]
    if stage == "eval" and data_args.validation_split is not None:
        part, split = f"validation_split {data_args.validation_split}", "train"
    elif stage == "eval" and data_args.folds is not None:
        part, split = "a fold of the training data", "train"
    file = getattr(data_args, f"{split}_file")
    origin: dict[str, Any] = {"file": file}
    if not file:
        origin = {
            "dataset_name": data_args.dataset_name,
            "dataset_config_name": data_args.dataset_config_name,
            "split": split,
        }
    return described(origin) | {"read": _reading(data_args), "part": part}


def _reading(data_args: DataArguments) -> dict[str, Any]:
    """Return the arguments of `read_examples` other than the source."""
    return {
        "misaligned": data_args.misaligned_answers,
        "bad_rows": data_args.bad_rows,
        "columns": {
            "question": data_args.question_column,
            "context": data_args.context_column,
            "answers": data_args.answer_column,
            "id": data_args.id_column,
        },
    }
