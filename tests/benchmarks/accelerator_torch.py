"""The part of `accelerator.py` that measures Hugging Face's BERT, in a process of its own.

The windows, the shapes and the arithmetic are those of the other sides; nothing of `qa_flax` is
imported. Weights are float32, autocast computes in bfloat16, and AdamW is PyTorch's fused one. The
loss is not copied to the host, so that no update waits. Prints a line of JSON for each result.

    python tests/benchmarks/accelerator_torch.py JOB
"""

import json
import sys
import time
import traceback

import numpy as np
import torch
import transformers
from accelerator_data import ANSWER, UPDATES, Job, arrays_of, config_of, lengths_of, row
from torch.nn.functional import cross_entropy
from transformers.trainer_pt_utils import LengthGroupedSampler

transformers.logging.set_verbosity_error()

WARM = 8
"""Batches before those that are timed, in training and in evaluation, which allocate memory."""
WIDTHS = 8
"""Batches are as wide as their longest window, rounded up to a multiple of this, as suits a GPU."""


def main(text):
    job = Job(**json.loads(text))
    device = torch.device(job.peer_device)
    if device.type == "cuda" and not torch.cuda.is_available():
        reply(kind="skipped", reason=f"PyTorch {torch.__version__} has no CUDA device")
        return
    try:
        Peer(job, device).measure()
    except Exception as error:  # too little memory, say; other rows are measured all the same
        traceback.print_exc()
        reason = str(error).splitlines() or [""]
        reply(kind="failed", reason=f"{type(error).__name__}: {reason[0][:200]}")
        sys.exit(1)


class Peer:
    """A model of transformers with random weights, and windows like SQuAD's.

    Args:
        job: what to measure.
        device: where.
    """

    def __init__(self, job, device):
        self.job, self.device = job, device
        self.is_flat = "flash" in job.side
        attention = "flash_attention_2" if self.is_flat else "sdpa"
        transformers.set_seed(0)
        self.model = transformers.BertForQuestionAnswering._from_config(
            config_of(job.model), attn_implementation=attention
        ).to(device)
        backend = "gpu" if device.type == "cuda" else "cpu"
        self.batches = job.batches(backend)
        count = UPDATES * self.windows("training")
        self.arrays = arrays_of(job.model, count)
        self.lengths = lengths_of(count)

    def windows(self, stage):
        return self.batches.windows(stage, is_full=True)

    def measure(self):
        for stage, batches in (("evaluation", self.evaluation()), ("training", self.training())):
            self.reset_peak()
            for _ in range(WARM):
                next(batches)
            self.wait()
            done, loss, began = 0, torch.tensor(torch.nan), time.perf_counter()
            while time.perf_counter() - began < self.job.seconds:
                windows, loss = next(batches)
                done += windows
            self.wait()
            seconds = time.perf_counter() - began
            if not torch.isfinite(loss):
                raise ValueError(f"the loss is {float(loss)}")
            further = {"windows_at_once": self.windows(stage), "loss": float(loss)}
            further |= {"peak_bytes": self.peak(), "memory_from": "device"}
            found = row(self.job, stage, done, seconds, (self.name(), 1), **further)
            versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
            reply(kind="row", versions=versions, **found)

    def training(self):
        """Yield the number of windows and the loss of each update, epoch after epoch."""
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, weight_decay=0.0, fused=True
        )
        size = self.windows("training")
        self.model.train()
        while True:
            order = list(LengthGroupedSampler(size, lengths=self.lengths.tolist()))
            for rows in chunks(order, size):
                loss = self.loss(rows)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                yield len(rows), loss.detach()

    def evaluation(self):
        """Yield the number of windows and the loss of each batch, the longest windows first.

        The logits of a batch are copied to the host while the next one is computed.
        """
        order = np.argsort(-self.lengths, kind="stable")
        self.model.eval()
        before = None
        while True:
            for rows in chunks(order, self.windows("evaluation")):
                with torch.inference_mode():
                    logits, loss = self.forward(rows)
                if before is not None:
                    before.cpu()
                before = logits
                yield len(rows), loss

    def loss(self, rows):
        return self.forward(rows)[1]

    def forward(self, rows):
        """The logits [n, l, 2] and the loss of some windows."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.flat(rows) if self.is_flat else self.padded(rows)

    def padded(self, rows):
        width = -(-int(self.lengths[rows].max()) // WIDTHS) * WIDTHS
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: self.put(self.arrays[name][rows, :width]) for name in names}
        labels = {n: self.put(self.arrays[n][rows]) for n in ("start_positions", "end_positions")}
        output = self.model(**inputs, **labels)
        return torch.stack([output.start_logits, output.end_logits], -1), output.loss

    def flat(self, rows):
        """All windows one after the other in one row, without padding."""
        lengths = self.lengths[rows]
        is_token = self.arrays["attention_mask"][rows] > 0
        names = ("input_ids", "token_type_ids")
        inputs = {name: self.put(self.arrays[name][rows][is_token][None]) for name in names}
        positions = np.broadcast_to(np.arange(is_token.shape[1]), is_token.shape)[is_token]
        ends = self.put(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), np.int32)
        longest = int(lengths.max())
        kwargs = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        kwargs |= {"max_length_q": longest, "max_length_k": longest}
        output = self.model(**inputs, position_ids=self.put(positions[None]), **kwargs)
        flat = torch.stack([output.start_logits[0], output.end_logits[0]], -1).float()
        logits = flat.new_full((len(rows), longest, 2), -torch.inf)
        logits[self.put(is_token[:, :longest], bool)] = flat
        labels = (torch.full((len(rows),), p, device=self.device) for p in ANSWER)
        losses = [cross_entropy(logits[..., n], label) for n, label in enumerate(labels)]
        return logits, sum(losses) / 2

    def put(self, array, dtype=np.int64):
        """Start to copy an array to the device."""
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    # ---- the device ------------------------------------------------------------------------------

    def name(self):
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def reset_peak(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self):
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


def chunks(order, size):
    return [order[i : i + size] for i in range(0, len(order), size)]


def reply(**result):
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
