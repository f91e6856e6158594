"""The transformers part of `answer.py`: answer questions with 4.57's pipeline on the CPU.

It runs in the Python of a virtual environment with transformers 4.57 and imports nothing of
qa_flax. It reads questions from the JSON file QUESTIONS, then lines from stdin. For each it answers
all questions and prints a line of JSON:

- `all` prints the seconds;
- `host` prints the seconds with a model that returns the logits of the last `all`, at no cost;
- `answers` prints the answers of the last of these.

    python tests/benchmarks/answer_peer.py FOLDER QUESTIONS [BATCH_SIZE]
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
import transformers

transformers.logging.set_verbosity_error()


def main(folder, questions, batch_size=None):
    rows = json.loads(Path(questions).read_text("utf-8"))
    texts = {name: [row[name] for row in rows] for name in ("question", "context")}
    pipeline = transformers.pipeline("question-answering", folder, device="cpu")
    pipeline._batch_size = None if batch_size is None else int(batch_size)
    own_forward = pipeline.model.forward
    outputs = []

    def recording(input_ids=None, attention_mask=None, token_type_ids=None):
        outputs.append(own_forward(input_ids, attention_mask, token_type_ids))
        return outputs[-1]

    def seconds(forward):
        pipeline.model.forward = forward
        started = time.perf_counter()
        answers = pipeline(**texts)
        return time.perf_counter() - started, answers

    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    reply({"stack": f"{versions}, {torch.get_num_threads()} threads"})
    answers = []
    for line in sys.stdin:
        command = line.strip()
        if command == "answers":
            reply(answers)
            continue
        if command == "all":
            outputs.clear()
            taken, answers = seconds(recording)
        else:
            replay = iter(outputs)
            taken, answers = seconds(
                lambda input_ids=None, attention_mask=None, token_type_ids=None, replay=replay: (
                    next(replay)
                )
            )
        reply(taken)


def reply(value):
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
