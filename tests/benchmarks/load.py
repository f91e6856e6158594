"""Compare the memory for loading a checkpoint in qa_flax and in PyTorch, each in a new process.

    python tests/benchmarks/load.py [--layers 24 --hidden 1024] [--dtype bfloat16]

Prints the size of the float32 weights and, for each loader, the seconds and the peak resident
memory of the process in MB, without the memory of its imports. Memory-mapped pages of the file
count as resident.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LOADERS = {
    "qa_flax": "from qa_flax import AutoModelForQuestionAnswering as Auto",
    "torch": "import torch\nfrom transformers import BertForQuestionAnswering as Auto",
}
PROGRAM = """
import json, sys, time
{imports}
import jax
jax.numpy.zeros(1).block_until_ready()

def read(name):
    lines = dict(line.split(":") for line in open("/proc/self/status") if line[0] in "RV")
    return int(lines[name].split()[0]) / 1000

before, started = read("VmRSS"), time.perf_counter()
model = Auto.from_pretrained(sys.argv[1], **{extra})
seconds = time.perf_counter() - started
print(json.dumps({{"peak": read("VmHWM") - before, "seconds": seconds}}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        size = make_checkpoint(Path(folder), arguments)
        print(f"float32 weights: {size:,.0f} MB, stored as {arguments.dtype}")
        for name, imports in LOADERS.items():
            extra = "{'dtype': torch.float32}" if name == "torch" else "{}"
            program = PROGRAM.format(imports=imports, extra=extra)
            run = subprocess.run(
                [sys.executable, "-c", program, folder], capture_output=True, text=True, check=True
            )
            result = json.loads(run.stdout.splitlines()[-1])
            peak, seconds = result["peak"], result["seconds"]
            print(f"{name:8} peak {peak:,.0f} MB, {peak / size:.2f}x the weights; {seconds:.1f} s")


def make_checkpoint(folder: Path, arguments: argparse.Namespace) -> float:
    """Save a random BERT checkpoint; return the size of its weights in float32, in MB."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import load_file, save_file
    from transformers import BertConfig

    from qa_flax import AutoModelForQuestionAnswering

    config = BertConfig(
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        intermediate_size=4 * arguments.hidden,
    )
    model = AutoModelForQuestionAnswering.from_config(config)
    model.save_pretrained(folder)
    if arguments.dtype != "float32":
        dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[arguments.dtype]
        weights = {n: w.astype(dtype) for n, w in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return model.num_parameters() * 4 / 1e6


if __name__ == "__main__":
    main()
