"""The Hugging Face part of `throughput.py`: train or evaluate in turns, on the CPU.

It uses transformers' model, sampler, collator and schedule, PyTorch's AdamW, and the loops of
`tests/support/oracle.py` for answers and scores. Nothing of `qa_flax` is imported. `throughput.py`
starts it, and writes FILE. It prints a line of JSON when it is ready, and one for each line that it
reads from stdin; between these it waits and computes nothing.

- `warm` does a little of the work, which is not counted;
- `turn` does the next part of the work and prints how many windows in how many seconds;
- `scores` prints the results of an evaluation of the model as it is, for each part of the data.

    python tests/benchmarks/throughput_torch.py STAGE SIDE FOLDER FILE
"""

import contextlib
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import numpy as np
import oracle  # pyright: ignore[reportMissingImports]
import torch
import transformers
from transformers.trainer_pt_utils import LengthGroupedSampler

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOO_SLOW = 5
"""A CPU without bfloat16 is tens to hundreds of times slower in it than in float32."""


def main(stage, side, folder, file):
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    stack = f"{versions}, {torch.get_num_threads()} threads"
    slower = bfloat16_against_float32() if "bf16" in side else 0
    if slower > TOO_SLOW:
        skip = f"too slow: a matrix product in bfloat16 takes {slower:.0f} times that in float32"
        reply({"stack": stack, "skip": skip})
        return
    peer = Peer(side, folder, json.loads(Path(file).read_text("utf-8")))
    turns = peer.training() if stage == "train" else peer.evaluation()
    reply({"stack": stack, "skip": None})
    for line in sys.stdin:
        command = line.strip()
        if command == "warm":
            peer.warm_up(stage)
            reply(None)
        elif command == "turn":
            reply(next(turns))
        else:
            reply([peer.evaluate(*part) for part in peer.parts])


def bfloat16_against_float32():
    """How many times as long as in float32 a matrix product takes in bfloat16."""
    best = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix, times = torch.ones(512, 512, dtype=dtype), []
        for _ in range(4):
            began = time.perf_counter()
            _ = matrix @ matrix
            times.append(time.perf_counter() - began)
        best.append(min(times))
    return best[1] / best[0]


class Peer:
    """A model of transformers with the windows that it trains on and is evaluated on."""

    def __init__(self, side, folder, job):
        self.settings = settings = job["settings"]
        self.is_padded = side == "hf"
        self.is_bfloat16 = "bf16" in side
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
        self.collate = transformers.DataCollatorWithPadding(
            tokenizer,
            padding="max_length" if self.is_padded else "longest",
            max_length=settings["max_seq_length"],
        )
        inputs = [*tokenizer.model_input_names, "start_positions", "end_positions"]
        self.train = dicts({name: job["train"][name] for name in inputs if name in job["train"]})
        self.parts = [(part["rows"], dicts(part["windows"])) for part in job["eval"]]

    def autocast(self):
        if not self.is_bfloat16:
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def warm_up(self, stage):
        """The first calls allocate memory and choose kernels; no weight is changed."""
        if stage == "train":
            self.model.train()
            self.loss(range(min(self.settings["train_batch"], len(self.train)))).backward()
            self.model.zero_grad()
            return
        self.logits(self.parts[0][1][: 2 * self.settings["eval_batch"]])

    def training(self):
        """Train an epoch; yield after each part of it."""
        settings = self.settings
        transformers.set_seed(settings["seed"])
        batches = self.epoch()
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings["learning_rate"], weight_decay=0.0, fused=True
        )
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, len(batches))
        self.model.train()
        for part in range(settings["turns"]):
            # Dealt out like cards, because the sampler sorts by length: each part has its share of
            # long and short batches.
            own = batches[part :: settings["turns"]]
            began = time.perf_counter()
            for rows in own:
                loss = self.loss(rows)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                loss.item()
            seconds = time.perf_counter() - began
            yield {"windows": sum(map(len, own)), "seconds": seconds}

    def epoch(self):
        """The rows of each batch: in random order, or as `group_by_length` has them."""
        size = self.settings["train_batch"]
        lengths = [len(window["input_ids"]) for window in self.train]
        if self.is_padded:
            order = torch.randperm(len(lengths)).tolist()
        else:
            order = list(LengthGroupedSampler(size, lengths=lengths))
        return [order[i : i + size] for i in range(0, len(order), size)]

    def loss(self, rows):
        batch = self.collate([self.train[row] for row in rows])
        with self.autocast():
            return self.model(**batch).loss

    def evaluation(self):
        """Evaluate the parts of the questions, over and over; yield after each."""
        while True:
            yield from (self.evaluate(*part) for part in self.parts)

    def evaluate(self, rows, windows):
        """Windows -> logits -> answers -> scores, with the time of it all and of the first step."""
        began = time.perf_counter()
        logits = self.logits(windows)
        forward = time.perf_counter() - began
        answers = oracle.postprocess_plain(rows, windows, logits)
        scores = oracle.squad_v1_plain(answers, rows)
        seconds = time.perf_counter() - began
        return scores | {
            "windows": len(windows),
            "questions": len(rows),
            "seconds": seconds,
            "forward": forward,
        }

    def logits(self, windows):
        """Start and end logits, [N, L] each; -100 beyond a batch's width, as HF's Trainer has."""
        self.model.eval()
        names = self.collate.tokenizer.model_input_names
        lengths = [len(window["input_ids"]) for window in windows]
        order = range(len(windows))
        if not self.is_padded:
            order = sorted(order, key=lambda row: -lengths[row])
        width = self.settings["max_seq_length"] if self.is_padded else max(lengths)
        starts, ends = (np.full((len(windows), width), -100, np.float32) for _ in range(2))
        size = self.settings["eval_batch"]
        for first in range(0, len(windows), size):
            rows = order[first : first + size]
            inputs = [{name: windows[row][name] for name in names} for row in rows]
            with torch.inference_mode(), self.autocast():
                output = self.model(**self.collate(inputs))
            for into, values in ((starts, output.start_logits), (ends, output.end_logits)):
                into[list(rows), : values.shape[1]] = values.float().numpy()
        return starts, ends


def dicts(columns):
    """Columns as a list of rows."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def reply(value):
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
