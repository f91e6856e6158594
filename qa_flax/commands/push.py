"""`qa-flax push`: upload a trained model to the Hugging Face Hub."""

import argparse
import sys
from pathlib import Path

from qa_flax.commands.errors import usage_errors
from qa_flax.messages import printable

SUMMARY = "upload a trained model to the Hugging Face Hub"


def parser() -> argparse.ArgumentParser:
    """Return the parser: a folder, a repository, and how to push."""
    parser = argparse.ArgumentParser(
        prog="qa-flax push",
        description="Upload a model that `qa-flax run` or save_pretrained wrote: weights (or "
        "adapters), config, tokenizer, model card, metrics and calibration, as one commit. "
        "Checkpoints, optimizer states and answers stay here. Log in before with `hf auth login`, "
        "or set HF_TOKEN.",
    )
    parser.add_argument("directory", metavar="DIR", help="the model's folder")
    parser.add_argument(
        "repo", metavar="REPO", help="owner/name of the repository, which is created if necessary"
    )
    parser.add_argument(
        "--private", action="store_true", help="create the repository as a private one"
    )
    parser.add_argument("--revision", help="branch, which is created if necessary; default: main")
    parser.add_argument(
        "--token",
        help="access token. Prefer `hf auth login` or HF_TOKEN: other users of the machine can "
        "read command lines.",
    )
    parser.add_argument(
        "--commit_message",
        default="Upload model",
        help="title of the commit",
    )
    parser.add_argument(
        "--create_pr", action="store_true", help="open a pull request instead of changing main"
    )
    return parser


def main(parsed: argparse.Namespace) -> None:
    """Upload the model, and print where it is.

    Raises:
        UsageError: there is no model in the folder, the name is invalid, or there is no token.
        PushError: the Hub could not be reached, or refused.
    """
    from qa_flax import storage
    from qa_flax.models.push import (
        check_access,
        check_repo_id,
        model_files,
        open_repo,
        pushed_line,
        repeated_by,
        upload,
    )

    with usage_errors(ValueError, OSError):
        check_repo_id(parsed.repo, "REPO")
        if parsed.create_pr and parsed.revision not in (None, "main"):
            raise ValueError("--create_pr opens a pull request for main; leave --revision out")
        folder = storage.local_copy(parsed.directory)
        model_files(Path(folder))
        check_access(parsed.token)
    repeat = repeated_by(
        parsed.directory,
        parsed.repo,
        revision=parsed.revision,
        private=parsed.private,
        create_pr=parsed.create_pr,
    )
    try:
        with usage_errors(ValueError):
            repo = open_repo(
                parsed.repo,
                token=parsed.token,
                private=parsed.private or None,
                revision=parsed.revision,
                repeat=repeat,
            )
        commit = upload(
            folder,
            repo,
            token=parsed.token,
            revision=parsed.revision,
            commit_message=parsed.commit_message,
            create_pr=parsed.create_pr,
            repeat=repeat,
        )
    except KeyboardInterrupt:
        print(printable(f"The push was interrupted. {repeat}"), file=sys.stderr)
        raise
    print(printable(pushed_line(Path(folder), commit)))
