"""The work of `qa-flax export`: transformers' ONNX exporter, and a check with onnxruntime.

PyTorch traces its own model, with the weights that this package saved. The reference of the check
is this package's model, so that it covers both steps.
"""

import inspect
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from qa_flax import storage
from qa_flax.commands.errors import TOKENIZER_ARGUMENT, model_errors
from qa_flax.messages import escaped, printable, short
from qa_flax.models.model import AutoModelForQuestionAnswering
from qa_flax.train.tokenizer_fit import load_fitting_tokenizer, position_limit

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("start_logits", "end_logits")
FIRST_OPSET = 18
TOLERANCE = 1e-3
"""How much logits may differ, as a share of the largest one; answers must not differ at all."""

_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
_SINGLE_FILE_BYTES = 1_500_000_000  # protobuf's limit is 2 GiB
_SHAPES = ((1, 9), (2, 24), (3, 61), (4, 128), (2, 384), (1, 1024))  # rows, tokens
_PASSAGE = (
    "The lighthouse on the northern cape was built of granite in 1873. Its lamp burned whale oil "
    "until an engineer from the harbour town replaced it by a gas light of her own design. "
)


def check_packages(opset: int | None) -> None:
    """Refuse before any work what cannot be exported.

    Raises:
        ModuleNotFoundError: a package is missing.
        ValueError: there is no such version of the operators.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"exporting to ONNX needs {', '.join(missing)}: pip install 'qa-flax[onnx]'"
        )
    if opset is not None:
        import onnx  # pyright: ignore[reportMissingImports]

        last = onnx.defs.onnx_opset_version()
        if not FIRST_OPSET <= opset <= last:
            raise ValueError(f"--opset is {opset}; it must be from {FIRST_OPSET} to {last}")


def output_file(source: str, given: str | None) -> Path:
    """The file to write.

    Raises:
        ValueError: it is not a local .onnx file, or `source` is no folder and there is no file.
    """
    if given is None:
        if storage.is_remote(source) or not Path(source).is_dir():
            raise ValueError(
                f"{escaped(source)} is not a local folder, so say where to write: --output FILE"
            )
        return Path(source) / "onnx" / "model.onnx"
    if storage.is_remote(given) or Path(given).suffix != ".onnx" or Path(given).is_dir():
        raise ValueError(f"--output {escaped(given)}: give a local file whose name ends in .onnx")
    return Path(given)


def load(source: str) -> tuple[AutoModelForQuestionAnswering, PreTrainedTokenizerBase]:
    """The model, with adapters merged, and its tokenizer.

    Raises:
        OSError: files are missing.
        ValueError: a file is invalid, or model and tokenizer do not belong together.
    """
    with model_errors():
        model = AutoModelForQuestionAnswering.from_pretrained(source)
        tokenizer = load_fitting_tokenizer(model, source, argument=TOKENIZER_ARGUMENT)
    return (model if model.lora is None else model.merge_and_unload()), tokenizer


def export_onnx(
    model: AutoModelForQuestionAnswering,
    tokenizer: PreTrainedTokenizerBase,
    file: Path,
    opset: int | None = None,
) -> list[str]:
    """Write an ONNX file, config.json and the tokenizer; nothing if the file is not right.

    Args:
        model: a model without adapters.
        tokenizer: the model's.
        file: the file to write.
        opset: the version of ONNX's operators; None: the exporter's default.

    Returns:
        Lines about the file and the check.

    Raises:
        OSError: a file cannot be written.
        ValueError: the family cannot be exported, or onnxruntime's results differ.
    """
    model_type = str(model.config.model_type)
    refuse_changing_shapes(model)
    with tempfile.TemporaryDirectory(prefix="qa_flax-") as folder:
        saved, exported = Path(folder) / "saved", Path(folder) / "exported"
        model.save_pretrained(saved)
        tokenizer.save_pretrained(exported)  # before it is used, which leaves settings in it
        batches = sample_batches(model, tokenizer)
        names = _trace(saved, exported / file.name, batches[1], opset, model_type)
        batches = [{name: batch[name] for name in names} for batch in batches]
        difference = check_file(exported / file.name, model, batches, model_type)
        shutil.copyfile(saved / "config.json", exported / "config.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        written = sorted(path.name for path in exported.iterdir())
        with storage.write_errors(file.parent):
            for name in written:
                shutil.move(exported / name, file.parent / name)
    size = sum((file.parent / n).stat().st_size for n in written if n.startswith(file.name))
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    others = ", ".join(name for name in written if name != file.name)
    return [
        f"onnxruntime's logits differ from the model's by at most {difference:.1e}, and its "
        f"answers not at all, in {len(batches)} batches of {min(lengths)} to {max(lengths)} tokens "
        "with padding",
        f"Inputs: {', '.join(names)}, int64 [batch, sequence]; outputs: {', '.join(OUTPUTS)}, "
        f"float32 [batch, sequence]; opset {_opset(file)}",
        printable(f"{file} written ({size / 1e6:,.1f} MB); beside it: {others}"),
    ]


def refuse_changing_shapes(model: AutoModelForQuestionAnswering) -> None:
    """Refuse a model whose computation depends on the input: one graph cannot hold all of them.

    Raises:
        ValueError: with the reason.
    """
    config = model.config
    reason = None
    if config.model_type == "longformer":
        reason = "the shapes in its attention depend on where the question ends"
    elif config.model_type == "big_bird" and config.attention_type != "original_full":  # pyright: ignore[reportAttributeAccessIssue]
        reason = (
            "it chooses its attention by the length of the batch; with attention_type "
            "original_full in config.json it can be exported, which needs more memory for long "
            "texts and gives other logits there"
        )
    if reason is not None:
        raise ValueError(
            f"{config.model_type} models cannot be exported to ONNX: {reason}; nothing was written"
        )


# ---- inputs --------------------------------------------------------------------------------------


def sample_batches(
    model: AutoModelForQuestionAnswering, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, np.ndarray]]:
    """Batches of questions and contexts of several lengths, with padding, int64 [B, L] each.

    The tokens are drawn from the vocabulary; where special tokens and padding are is real.
    """
    limit = position_limit(model) or _SHAPES[-1][1]
    longest = min(limit, _SHAPES[-1][1])
    shapes = [(rows, length) for rows, length in _SHAPES if length < longest] + [(1, longest)]
    random = np.random.default_rng(0)
    special = set(tokenizer.all_special_ids)
    size = min(len(tokenizer), int(model.config.vocab_size))
    ordinary = np.array([i for i in range(size) if i not in special] or [0])
    batches = []
    for rows, length in shapes:
        texts = [_PASSAGE * (1 + length // (8 + 7 * row)) for row in range(rows)]
        encoded = tokenizer(
            ["What was it?"] * rows if length > 12 else ["What?"] * rows,
            texts,
            truncation="only_second" if length > 12 else True,
            max_length=length,
            padding="max_length",
            return_tensors="np",
        )
        batch = {name: np.asarray(encoded[name], np.int64) for name in encoded}
        is_real = ~np.isin(batch["input_ids"], list(special))
        drawn = random.choice(ordinary, batch["input_ids"].shape)
        batch["input_ids"] = np.where(is_real, drawn, batch["input_ids"])
        # Some rows are shorter than their batch.
        mask = batch["attention_mask"]
        if rows > 1 and length > 16:
            cut = np.arange(length)[None, :] >= (length - 5 * np.arange(rows))[:, None]
            if tokenizer.padding_side == "left":
                cut = cut[:, ::-1]
            mask = np.where(cut, 0, mask)
            padding = tokenizer.pad_token_id or 0
            batch["input_ids"] = np.where(cut, padding, batch["input_ids"])
        batches.append(batch | {"attention_mask": mask})
    return batches


# ---- export and check ----------------------------------------------------------------------------


def _trace(
    saved: Path, file: Path, batch: dict[str, np.ndarray], opset: int | None, model_type: str
) -> list[str]:
    """Export the saved model with transformers' exporter; return the names of its inputs."""
    import torch
    from transformers import AutoModelForQuestionAnswering as TorchAutoModel

    with _quiet():
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter

        torch_model = TorchAutoModel.from_pretrained(saved).eval()
        accepted = inspect.signature(torch_model.forward).parameters
        names = [name for name in INPUTS if name in batch and name in accepted]
        inputs: dict[str, Any] = {name: torch.from_numpy(batch[name].copy()) for name in names}
        config = OnnxConfig(dynamic=True, opset_version=opset)
        try:
            program = OnnxExporter().export(torch_model, inputs, config=config).program
        except Exception as error:  # whatever an operation that cannot be traced raises
            raise ValueError(
                f"{model_type} models cannot be exported to ONNX: PyTorch's model cannot be traced "
                f"with batches of any size ({_first_line(error)}); nothing was written"
            ) from error
        _keep_logits(program, names)
        _save(program, file, sum(p.nbytes for p in torch_model.parameters()))
    return names


def _keep_logits(program: Any, names: list[str]) -> None:
    """Leave only the logits of the outputs, and name the axes."""
    import onnx_ir  # pyright: ignore[reportMissingImports]
    from onnx_ir.passes.common import RemoveUnusedNodesPass  # pyright: ignore[reportMissingImports]

    graph = program.graph
    graph.outputs[:] = [value for value in graph.outputs if value.name in OUTPUTS]
    for value in (*graph.inputs, *graph.outputs):
        value.shape = onnx_ir.Shape(["batch", "sequence"])
    RemoveUnusedNodesPass()(program)


def _save(program: Any, file: Path, size: int) -> None:
    import onnx_ir  # pyright: ignore[reportMissingImports]

    is_large = size > _SINGLE_FILE_BYTES
    onnx_ir.save(program, str(file), external_data=f"{file.name}.data" if is_large else None)


def check_file(
    file: Path,
    model: AutoModelForQuestionAnswering,
    batches: list[dict[str, np.ndarray]],
    model_type: str,
) -> float:
    """The largest difference of a logit of a real token from the model's.

    Raises:
        ValueError: onnxruntime cannot run the file, or its logits or answers differ.
    """
    import onnxruntime  # pyright: ignore[reportMissingImports]

    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        results = [dict(zip(OUTPUTS, session.run(list(OUTPUTS), b), strict=True)) for b in batches]
    except Exception as error:  # of onnxruntime's own types
        raise ValueError(
            f"{model_type} models cannot be exported to ONNX: onnxruntime cannot run the file with "
            f"batches of any size ({_first_line(error)}); nothing was written"
        ) from error
    for batch, result in zip(batches, results, strict=True):
        output: Any = model(**batch)
        is_real = batch["attention_mask"] > 0
        for name in OUTPUTS:
            expected = np.where(is_real, np.asarray(getattr(output, name)), -np.inf)
            logits = np.where(is_real, result[name], -np.inf)
            real = expected[is_real]
            difference = float(np.abs(logits[is_real] - real).max())
            best = logits.argmax(1), expected.argmax(1)
            if not (
                difference <= TOLERANCE * max(1.0, float(np.abs(real).max()))
                and (best[0] == best[1]).all()
            ):
                raise ValueError(
                    f"{model_type} models cannot be exported to ONNX: {name} of onnxruntime "
                    f"differ by up to {difference:.1e} in a batch of {logits.shape[0]} x "
                    f"{logits.shape[1]} tokens; nothing was written"
                )
            largest = max(largest, difference)
    return largest


def _opset(file: Path) -> int:
    import onnx  # pyright: ignore[reportMissingImports]

    return onnx.load(os.fspath(file), load_external_data=False).opset_import[0].version


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return escaped(short(lines[0] if lines else type(error).__name__, 150))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own output off the terminal: the check tells whether they succeeded."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(disabled)
