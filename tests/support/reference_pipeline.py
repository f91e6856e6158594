"""Answer questions with the question-answering pipeline of transformers 4.57, the reference.

A program for the Python of a virtual environment of its own, because transformers 5.3 removed the
pipeline (`tests/golden/make_pipeline_golden.py` tells how to make one):

    python tests/support/reference_pipeline.py FOLDER CALLS.json ANSWERS.json

FOLDER is a checkpoint. CALLS.json is a list of calls: dictionaries with `question`, `context` and
settings of the pipeline. ANSWERS.json gets a list of answers for each: score, start, end and text.
`ask_reference` runs it from the tests, with the Python that the environment variable
QA_FLAX_TRANSFORMERS_4 names.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHON = "QA_FLAX_TRANSFORMERS_4"


def ask_reference(python: str, folder: Path, calls: list[dict]) -> list[list[dict] | None]:
    """Return what `answers` gives for each call, from the pipeline in another Python.

    Raises:
        subprocess.CalledProcessError: the program failed; its output is on the terminal.
    """
    with tempfile.TemporaryDirectory() as working:
        asked, answered = Path(working, "calls.json"), Path(working, "answers.json")
        asked.write_text(json.dumps(calls), "utf-8")
        # Without the variables that the tests set for their own process, such as XLA_FLAGS.
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        subprocess.run(
            [python, __file__, folder, asked, answered],
            check=True,
            env=environment | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        return json.loads(answered.read_text("utf-8"))


def load(folder: Path):
    """Load a checkpoint into a pipeline on the CPU.

    Raises:
        ValueError: weights are missing or unexpected.
    """
    import torch
    from transformers import (
        AutoModelForQuestionAnswering,
        AutoTokenizer,
        QuestionAnsweringPipeline,
        logging,
    )

    logging.set_verbosity_error()
    torch.set_num_threads(1)  # rounding does not depend on the machine's number of cores
    model, report = AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    if any(report.values()):
        raise ValueError(f"{folder}: {report}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return QuestionAnsweringPipeline(model.eval(), tokenizer, device="cpu")


def answers(pipeline, call: dict) -> list[dict] | None:
    """Return the answers of one call as a list, also where the pipeline returns one dictionary.

    None where the tokenizer panics, because the question leaves too little room for the context.
    """
    try:
        result = pipeline(**call)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # not an `Exception`, and in no public module
            raise
        return None
    return result if isinstance(result, list) else [result]


def main(folder, calls, output):
    pipeline = load(Path(folder))
    calls = json.loads(Path(calls).read_text("utf-8"))
    Path(output).write_text(json.dumps([answers(pipeline, call) for call in calls]), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
