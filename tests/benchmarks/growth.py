"""Time and host memory of training and evaluation on 1, 4 and 16 times as many windows.

    python tests/benchmarks/growth.py [--questions 600] [--factors 1 4 16]

Each size runs in a process of its own: a tiny BERT is trained for one epoch on generated questions,
then evaluated with its answers written to files. Time must grow as the number of windows does, and
memory beside the windows and the answers must not grow. Prints a table for `docs/scaling.md`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]
os.environ["JAX_PLATFORMS"] = "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=600, help="of the smallest size")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        print(json.dumps(measure(arguments.only)))
        return
    print(
        "| windows | training, ms a window | evaluation, ms a window | data, MB | beside it, MB |"
    )
    print("|---|---|---|---|---|")
    for factor in arguments.factors:
        command = [sys.executable, __file__, "--only", str(factor * arguments.questions)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        windows = found["windows"]
        train, evaluation = (1000 * found[name] / windows for name in ("train", "evaluation"))
        print(
            f"| {windows:,} | {train:.2f} | {evaluation:.2f} | {found['data']:.1f} | "
            f"{found['beside']:.0f} |",
            flush=True,
        )


def measure(questions: int) -> dict[str, float]:
    """Train and evaluate on so many questions."""
    import tiny
    from tiny_trainers import compute_metrics
    from transformers.trainer_utils import EvalPrediction

    from qa_flax import QuestionAnsweringTrainer, TrainingArguments
    from qa_flax.answers.postprocess import postprocess_qa_predictions
    from qa_flax.answers.spans import SearchSettings
    from qa_flax.data.features import make_windows

    settings = SearchSettings(False, 20, 30, True)
    first = resident()
    examples = tiny.repeated_examples(questions)
    lengths = {"max_seq_length": 96, "doc_stride": 16, "labels": True}
    windows = make_windows(examples, tiny.tokenizer(), disable_tqdm=True, **lengths)
    data = resident() - first

    def post_process(examples, windows, logits):
        with tempfile.TemporaryDirectory() as folder:
            answers = postprocess_qa_predictions(examples, windows, logits, output_dir=folder)
        predictions = [{"id": k, "prediction_text": v} for k, v in answers.items()]
        references = [{"id": e["id"], "answers": e["answers"]} for e in examples]
        return EvalPrediction(predictions=predictions, label_ids=references)

    with tempfile.TemporaryDirectory() as folder:
        trainer = QuestionAnsweringTrainer(
            model=tiny.model(),
            args=TrainingArguments(
                folder,
                num_train_epochs=1,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=32,
                packing=True,
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=windows,
            eval_dataset=windows,
            eval_examples=examples,
            post_process_function=post_process,
            compute_metrics=compute_metrics,
            search_settings=settings,
        )
        seconds = {}
        for name, call in (("train", trainer.train), ("evaluation", trainer.evaluate)):
            call()  # compiles
            began = time.monotonic()
            call()
            seconds[name] = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"windows": len(windows), "data": data, "beside": peak - data} | seconds


def resident() -> float:
    """This process's resident memory in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


if __name__ == "__main__":
    main()
