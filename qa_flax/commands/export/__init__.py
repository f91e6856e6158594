"""`qa-flax export`: write a model in a format of other runtimes (ONNX)."""

import argparse

from qa_flax.commands.errors import usage_errors

SUMMARY = "write a model as ONNX, for onnxruntime (needs PyTorch once, for the export)"


def parser() -> argparse.ArgumentParser:
    """Return the parser: a model, the format, and where to write."""
    parser = argparse.ArgumentParser(
        prog="qa-flax export",
        description="Write a model as an ONNX file, with its config and tokenizer beside it, for "
        "onnxruntime and optimum. The file takes batches of any size and length. It is written "
        "only if onnxruntime computes the same logits and answers as the model.",
    )
    parser.add_argument("directory", metavar="DIR", help="the model's folder, or its Hub id")
    parser.add_argument("--format", choices=["onnx"], required=True, help="the format")
    parser.add_argument(
        "--output", metavar="FILE", help="the file to write; default: DIR/onnx/model.onnx"
    )
    parser.add_argument(
        "--opset",
        type=int,
        metavar="N",
        help="version of ONNX's operators, 18 or more; default: that of the installed PyTorch",
    )
    return parser


def main(parsed: argparse.Namespace) -> None:
    """Export the model, check the file with onnxruntime, and print what was written.

    Raises:
        UsageError: the model cannot be loaded or exported, or a package is missing.
        OSError: a file cannot be written.
    """
    from qa_flax.commands.export.job import check_packages, export_onnx, load, output_file

    with usage_errors(ValueError, OSError, ModuleNotFoundError):
        file = output_file(parsed.directory, parsed.output)
        check_packages(parsed.opset)
        model, tokenizer = load(parsed.directory)
    with usage_errors(ValueError):
        print("\n".join(export_onnx(model, tokenizer, file, parsed.opset)))
