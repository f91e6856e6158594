"""The part of `Trainer` that pushes its model to the Hugging Face Hub (host).

The main process makes all requests. The others wait for it, and raise its error.
"""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import TrainerCallback
from transformers.trainer_utils import HubStrategy

from qa_flax import storage
from qa_flax.distributed import processes
from qa_flax.distributed.exchange import broadcast_from_main
from qa_flax.models import PushError
from qa_flax.models.push import open_repo, repeated_by, upload
from qa_flax.train.output_files import OutputFiles
from qa_flax.train.plan import output_dir as _output_dir

logger = logging.getLogger(__name__)

SECONDS_TO_UPLOAD = 24 * 3600.0
"""How long processes wait for the main one, which uploads; if it dies, they end at once."""


class HubPush(OutputFiles):
    """The part of `Trainer` for the Hub; see there for the arguments."""

    hub_model_id: str | None = None
    """`owner/name` of the repository, once it exists."""
    _pushes: "BackgroundPushes | None" = None
    _is_saving = False
    is_in_train = False
    """Whether `train()` is running."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository to push to, unless it exists.

        With `push_to_hub=True` this happens when the trainer is built, so that a push that cannot
        work fails before the training.

        Args:
            token: an access token; None: `args.hub_token`, else that of `hf auth login`.
            private: whether a new repository is private; None: `args.hub_private_repo`.

        Raises:
            PushError: the Hub could not be reached, or refused (an `OSError`).
            ValueError: the name is invalid, there is no token, or a public repository exists that
                should be private.
        """
        args = self.args
        name = on_main("the repository", lambda: create_repo(args, token, private))
        # In every process, which must all go the same way from here on.
        self.hub_model_id = broadcast_from_main("the repository's name", name)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> "CommitInfo | Future[CommitInfo] | None":
        """Save the model and its card in `args.output_dir`, and upload the folder's model.

        Checkpoints, optimizer states, and answers with texts of the data are not uploaded; see
        docs/sharing.md. Every process must call it.

        Args:
            commit_message: the commit's title.
            blocking: whether to wait for the upload; False: return a `Future` at once.
            token: an access token; None: `args.hub_token`, else that of `hf auth login`.
            revision: a branch; None: `args.hub_revision`, else main.
            private: whether a new repository is private; None: `args.hub_private_repo`.
            **kwargs: arguments of `create_model_card`.

        Returns:
            huggingface_hub's `CommitInfo`, or a `Future` of it; None in other processes.

        Raises:
            PushError: the Hub could not be reached, or refused (an `OSError`). The files are saved.
            ValueError: the name is invalid, or there is no token.
        """
        args = self.args
        token = args.hub_token if token is None else token
        revision = args.hub_revision if revision is None else revision
        self._save_only()
        if kwargs.get("model_name") is None and args.hub_model_id is not None:
            kwargs["model_name"] = args.hub_model_id.split("/")[-1]
        self._events.notify("on_push_begin")
        self.create_model_card(**kwargs)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        elif revision is not None and revision != args.hub_revision:
            on_main("the branch", lambda: create_repo(args, token, private, revision))
        self._finish_current_push()

        def push() -> CommitInfo:
            return _push_folder(args, str(self.hub_model_id), token, revision, commit_message)

        if not blocking:
            return _in_background(push) if processes.is_main() else None
        return on_main("the push to the Hub", push)

    def save_model(
        self, output_dir: str | os.PathLike | None = None, _internal_call: bool = False
    ) -> None:
        """Save the model (or its LoRA adapters) and the tokenizer in the format of transformers.

        It may be called during training, in a callback: it saves the weights of the latest update.
        Only the main process writes; with `shard_params` every process must call it. With
        `push_to_hub=True` the model is pushed afterwards, unless it is still being trained.

        Args:
            output_dir: the folder or bucket URL to write to; None: `args.output_dir`.
            _internal_call: as in transformers: do not push.

        Raises:
            OSError: a file cannot be written, or (`PushError`) not uploaded.
        """
        super().save_model(output_dir)
        if self.args.push_to_hub and not (_internal_call or self._is_saving or self.is_in_train):
            self.push_to_hub(commit_message="Model save")

    def _save_only(self) -> None:
        """Save the model, by the script's own `save_model` if it has one, without a push."""
        self._is_saving = True
        try:
            self.save_model()
        finally:
            self._is_saving = False

    def _prepare_push(self) -> None:
        """Before a training: create the repository, and let checkpoints be pushed."""
        args = self.args
        callbacks = self._events.handler.callbacks
        callbacks[:] = [c for c in callbacks if not isinstance(c, PushOnSave)]
        if not args.push_to_hub:
            return
        if self.hub_model_id is None:
            self.init_hf_repo()
        if HubStrategy(args.hub_strategy) == HubStrategy.END or not processes.is_main():
            return
        if storage.is_remote(_output_dir(args)):
            logger.warning(
                "hub_strategy=%s: output_dir is in a bucket, so nothing is pushed before the end "
                "of the training.",
                HubStrategy(args.hub_strategy).value,
            )
            return
        self._pushes = BackgroundPushes()
        callbacks.append(PushOnSave(str(self.hub_model_id), self._pushes))

    def _finish_current_push(self) -> None:
        """Wait for the checkpoints that are being pushed."""
        if self._pushes is not None:
            self._pushes.wait()


def on_main(label: str, action: Callable[[], Any]) -> Any:
    """What an action returns in the main process, None in others; its error in all of them.

    Raises:
        PushError: the action raised it.
        ValueError: the action raised it.
    """
    problem, result = None, None
    if processes.is_main():
        try:
            result = action()
        except (PushError, ValueError) as error:
            if processes.count() == 1:
                raise
            problem = [isinstance(error, PushError), str(error)]
    problem = broadcast_from_main(label, problem, SECONDS_TO_UPLOAD)
    if problem is not None:
        raise (PushError if problem[0] else ValueError)(problem[1])
    return result


def create_repo(
    args: Any, token: str | None = None, private: bool | None = None, revision: str | None = None
) -> str:
    """Create the repository and the branch of the training arguments; return `owner/name`.

    Raises:
        PushError: the Hub could not be reached, or refused.
        ValueError: the name is invalid, or there is no token.
    """
    return open_repo(
        repo_name(args),
        token=args.hub_token if token is None else token,
        private=args.hub_private_repo if private is None else private,
        revision=args.hub_revision if revision is None else revision,
    )


def repo_name(args: Any) -> str:
    """The name of the repository to push to: `hub_model_id`, else that of `output_dir`."""
    if args.hub_model_id is not None:
        return args.hub_model_id
    folder = _output_dir(args)
    return folder.name if storage.is_remote(folder) else Path(folder).resolve().name


def _push_folder(
    args: Any, repo_id: str, token: str | None, revision: str | None, message: str | None
) -> CommitInfo:
    folder = _output_dir(args)
    local = storage.local_copy(folder)
    return upload(
        local,
        repo_id,
        token=token,
        revision=revision,
        commit_message=message or "End of training",
        repeat=repeated_by(folder, repo_id, revision=revision),
    )


# ---- during the training -------------------------------------------------------------------------


class BackgroundPushes:
    """Uploads one after the other in a thread; a failure is a warning."""

    def __init__(self):
        self._last: threading.Thread | None = None

    def is_done(self) -> bool:
        """Whether nothing is being uploaded."""
        return self._last is None or not self._last.is_alive()

    def start(self, push: Callable[[], None]) -> None:
        """Upload after what is being uploaded."""
        previous = self._last

        def run() -> None:
            if previous is not None:
                previous.join()
            try:
                push()
            except OSError as error:  # `PushError`, and a file that cannot be read
                logger.warning("%s The training goes on.", error)

        self._last = threading.Thread(target=run, daemon=True, name="push to the Hub")
        self._last.start()

    def wait(self) -> None:
        """Wait until nothing is being uploaded."""
        if self._last is not None:
            self._last.join()


class PushOnSave(TrainerCallback):
    """Pushes each checkpoint's model, and the whole checkpoint if `hub_strategy` says so."""

    def __init__(self, repo_id: str, pushes: BackgroundPushes):
        self._repo_id, self._pushes = repo_id, pushes

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start an upload, unless one is running; with `hub_always_push` it follows that one."""
        if not (args.hub_always_push or self._pushes.is_done()):
            return
        name = f"checkpoint-{state.global_step}"
        folder = Path(args.output_dir) / name
        if not folder.is_dir():
            return
        copy = tempfile.TemporaryDirectory(dir=args.output_dir, prefix=".push-")
        _link_tree(folder, Path(copy.name) / name)
        strategy = HubStrategy(args.hub_strategy)
        message = f"Training in progress, step {state.global_step}"
        whole = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: name}

        def push() -> None:
            shared: dict[str, Any] = {
                "token": args.hub_token,
                "revision": args.hub_revision,
                "is_shown": False,
                "repeat": "The model is pushed again at the next checkpoint, and at the end.",
            }
            with copy as linked:
                source = Path(linked) / name
                upload(source, self._repo_id, commit_message=message, **shared)
                if strategy in whole:
                    upload(
                        source,
                        self._repo_id,
                        commit_message=f"{message}, checkpoint",
                        patterns=None,
                        path_in_repo=whole[strategy],
                        **shared,
                    )

        self._pushes.start(push)


def _link_tree(source: Path, target: Path) -> None:
    """Link the files of a folder, which may be deleted meanwhile; copy where links are not."""

    def link(file: str, to: str) -> str:
        try:
            os.link(file, to)
        except OSError:
            shutil.copyfile(file, to)
        return to

    shutil.copytree(source, target, copy_function=link)


def _in_background(push: Callable[[], CommitInfo]) -> "Future[CommitInfo]":
    future: Future[CommitInfo] = Future()

    def run() -> None:
        try:
            future.set_result(push())
        except Exception as error:  # raised again by `future.result()`
            future.set_exception(error)

    threading.Thread(target=run, name="push to the Hub").start()
    return future
