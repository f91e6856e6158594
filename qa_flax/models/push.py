"""Stage 4 of 7: uploads the folder of a model to the Hugging Face Hub (host).

All requests are huggingface_hub's. The files of a model are chosen by name: what else a training
leaves in its folder (checkpoints, optimizer states, answers with texts of the data) stays here.
"""

import fnmatch
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard, constants, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.repocard_data import ModelCardData
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from qa_flax import storage
from qa_flax.messages import escaped, first_few
from qa_flax.models import PushError
from qa_flax.models.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    CALIBRATION_FILE,
    CARD_FILE,
    CONFIG_FILE,
    FOLDS_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    is_folds,
    listing,
    models_inside,
)
from qa_flax.models.manifest import MODEL_MANIFEST

WEIGHT_FILES = (
    *(CONFIG_FILE, "generation_config.json", "model*.safetensors", INDEX_FILE),
    *(ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE),
)
TOKENIZER_FILES = (
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.spm", "spiece.model", "sentencepiece*.model"),
)
MODEL_FILES = (
    *WEIGHT_FILES,
    *TOKENIZER_FILES,
    *(CARD_FILE, "LICENSE*", "NOTICE*", MODEL_MANIFEST, CALIBRATION_FILE),
    *("*_results.json", "learning_curves.svg", "onnx/*"),
)
"""Patterns of the files that are uploaded."""


def check_repo_id(repo_id: object, argument: str = "repo_id") -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        ValueError: with the reason.
    """
    try:
        if not isinstance(repo_id, str) or not repo_id:
            raise HFValidationError("it must be a text")
        validate_repo_id(repo_id)
        if repo_id.count("/") > 1 or repo_id != repo_id.strip():
            raise HFValidationError("it must be name or owner/name")
    except HFValidationError as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"{argument}={escaped(repo_id)!r} cannot be the name of a repository on the Hugging "
            f"Face Hub: {reason}; give name or owner/name, of letters, digits, -, _ and ."
        ) from error


def check_access(token: str | bool | None = None) -> None:
    """Refuse a push that cannot work: without a token, or offline. Nothing is requested.

    Raises:
        ValueError: says what to do.
    """
    if constants.HF_HUB_OFFLINE:
        raise ValueError("nothing can be pushed while HF_HUB_OFFLINE is set; remove the variable")
    if token is False or (not isinstance(token, str) and get_token() is None):
        raise ValueError(
            "pushing to the Hugging Face Hub needs an access token that may write: log in with "
            "`hf auth login`, or set the environment variable HF_TOKEN"
        )


def open_repo(
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    repeat: str = "Nothing was uploaded.",
) -> str:
    """Create a repository for a model, and a branch, unless they exist.

    Args:
        repo_id: `name` or `owner/name`.
        token: an access token; None: that of `hf auth login` or HF_TOKEN.
        private: whether a new repository is private; None: as the owner's settings say.
        revision: a branch to create; None: none.
        repeat: what an error says about repeating it.

    Returns:
        `owner/name`.

    Raises:
        PushError: the Hub could not be reached, or refused.
        ValueError: the name is invalid, there is no token, or a public repository of this name
            exists and `private` is True.
    """
    check_repo_id(repo_id)
    check_access(token)
    api = _api()
    with push_errors(repo_id, token, repeat):
        full = api.create_repo(repo_id, token=token, private=private, exist_ok=True).repo_id
        is_public = bool(private) and api.repo_info(full, token=token).private is False
        if revision is not None and not revision.startswith("refs/") and not is_public:
            api.create_branch(full, branch=revision, token=token, exist_ok=True)
    if is_public:
        raise ValueError(
            f"{api.endpoint}/{full} exists and is public, so nothing is pushed there as private; "
            "make it private in its settings, or choose another name"
        )
    return full


def upload(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    patterns: Sequence[str] | None = MODEL_FILES,
    path_in_repo: str = "",
    repeat: str | None = None,
    is_shown: bool = True,
) -> CommitInfo:
    """Upload the files of a folder as one commit, which has all of them or does not happen.

    Args:
        folder: a local folder.
        repo_id: an existing repository.
        token: an access token; None: that of `hf auth login` or HF_TOKEN.
        revision: a branch; None: main.
        commit_message: the commit's title.
        commit_description: its text.
        create_pr: open a pull request instead of changing the branch.
        patterns: patterns of the files to upload; None: all of them, and what lies in
            `path_in_repo` besides is deleted there.
        path_in_repo: a folder in the repository.
        repeat: what an error says about repeating it; None: `repeated_by`.
        is_shown: show the progress, if this is a terminal.

    Returns:
        huggingface_hub's `CommitInfo`.

    Raises:
        PushError: the Hub could not be reached, or refused.
    """
    if repeat is None:
        repeat = repeated_by(folder, repo_id, revision=revision)
    with push_errors(repo_id, token, repeat), _own_words(is_shown):
        return _api().upload_folder(
            repo_id=repo_id,
            folder_path=os.fspath(folder),
            path_in_repo=path_in_repo,
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
            allow_patterns=None if patterns is None else _names(Path(folder), patterns),
            delete_patterns=None if patterns is not None else ["*"],
        )


def model_files(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the files of a model that are uploaded from a folder, and of all others in it.

    Raises:
        OSError: it is no folder with a model.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; give the folder of a model")
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    sent = _names(folder, MODEL_FILES)
    if is_folds(folder):
        raise FileNotFoundError(
            f"{folder} has {FOLDS_FILE} and the models of several folds; push one of them, such "
            f"as {folder / 'fold-1'}, or what average_models(...).save_pretrained(...) wrote"
        )
    has_weights = {WEIGHTS_FILE, INDEX_FILE} & set(sent) and CONFIG_FILE in sent
    if not has_weights and not {ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE} <= set(sent):
        raise FileNotFoundError(
            f"{folder} has no model: {CONFIG_FILE} with {WEIGHTS_FILE}, or {ADAPTER_CONFIG_FILE} "
            f"with {ADAPTER_WEIGHTS_FILE} ({listing(folder)}){models_inside(folder)}"
        )
    return sent, [n for n in names if n not in sent and n != "onnx/" and n[0] != "."]


def pushed_line(folder: Path, commit: Any) -> str:
    """Where the model is, and which files of the folder are not part of it."""
    sent, left = model_files(folder) if folder.is_dir() else ([], [])
    place = getattr(commit, "pr_url", None) or str(commit)
    text = f"Pushed to {place}: {', '.join(sent)}"
    return (
        f"{text}\nNot part of the model, and only in {folder}: {', '.join(left)}" if left else text
    )


def _names(folder: Path, patterns: Sequence[str]) -> list[str]:
    """The files in a folder, and in its folder onnx, that match patterns."""
    places = {"": folder, "onnx/": folder / "onnx"}
    names = [
        prefix + path.name
        for prefix, place in places.items()
        for path in (sorted(place.iterdir()) if place.is_dir() else ())
        if path.is_file()
    ]
    # fnmatch's `*` also matches a slash.
    depths = {pattern: pattern.count("/") for pattern in patterns}
    return [
        name
        for name in names
        if any(name.count("/") == n and fnmatch.fnmatch(name, p) for p, n in depths.items())
    ]


# ---- a model -------------------------------------------------------------------------------------


def push_model(
    model: Any,
    repo_id: str,
    folder: Path | None = None,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    tags: str | Sequence[str] | None = None,
    **saving: Any,
) -> CommitInfo:
    """Save a model and upload it; see `AutoModelForQuestionAnswering.push_to_hub`.

    Args:
        model: has `save_pretrained`.
        repo_id: `name` or `owner/name`.
        folder: where to save it; None: a temporary folder.
        private, token, revision, commit_message, commit_description, create_pr, tags: see there.
        **saving: further arguments of `save_pretrained`.

    Raises:
        PushError: the Hub could not be reached, or refused.
        ValueError: the name is invalid, or there is no token.
    """
    if create_pr and revision not in (None, "main"):
        raise ValueError(
            f"create_pr=True opens a pull request for main, so revision={revision!r} would be "
            "ignored; leave one of them out"
        )
    if folder is not None:  # saved whatever the Hub says
        model.save_pretrained(folder, **saving)
    repo_id = open_repo(repo_id, token=token, private=private, revision=revision)
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) if folder is None else folder
        if folder is None:
            model.save_pretrained(target, **saving)
        own = target / CARD_FILE
        with push_errors(repo_id, token, "Repeat the call."):
            card = _card(own, repo_id, token, model.lora is not None)
        _add_tags(card, tags)
        card.save(own)
        return upload(
            target,
            repo_id,
            token=token,
            revision=revision,
            commit_message=commit_message,
            commit_description=commit_description,
            create_pr=create_pr,
            patterns=(*WEIGHT_FILES, CARD_FILE),
            repeat="Repeat the call." if folder is None else None,
        )


def push_saved(model: Any, folder: str | os.PathLike[str], keywords: dict[str, Any]) -> None:
    """Save a model into a folder and upload it; see `save_pretrained(push_to_hub=True)`.

    Raises:
        PushError: the Hub could not be reached, or refused.
        ValueError: the name is invalid, there is no token, or the folder is in a bucket.
    """
    if storage.is_remote(folder):
        raise ValueError(
            f"save_pretrained: push_to_hub=True needs a local folder, but {os.fspath(folder)} is "
            "in a bucket; call model.push_to_hub(...) besides"
        )
    repo_id = keywords.pop("repo_id", None) or Path(folder).resolve().name
    push_model(model, repo_id, Path(folder), **keywords)


class HubMethods:
    """The part of transformers' `PushToHubMixin` that a model has; a mix-in."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: str | Sequence[str] | None = None,
    ) -> CommitInfo:
        """Upload config and weights (or adapters) to the Hugging Face Hub, with a model card.

        The card is the repository's own if it has one. The tokenizer has a method of this name.

        Args:
            repo_id: `name` or `owner/name`; it is created if necessary.
            commit_message: the commit's title; None: "Upload model".
            commit_description: its text.
            private: whether a new repository is private; None: as the owner's settings say.
            token: an access token; None or True: that of `hf auth login` or HF_TOKEN.
            revision: a branch, which is created if necessary; None: main.
            create_pr: open a pull request instead of changing the branch.
            max_shard_size: the largest size of a weights file, in bytes or as "5GB".
            tags: tags to add to the model card.

        Returns:
            huggingface_hub's `CommitInfo`; as a text, the address of the commit.

        Raises:
            PushError: the Hub could not be reached, or refused (an `OSError`).
            ValueError: the name is invalid, there is no token, or a public repository exists and
                `private` is True.

        Example:
            >>> from qa_flax import AutoModelForQuestionAnswering
            >>> model = AutoModelForQuestionAnswering.from_pretrained("bert-base-uncased")
            >>> model.push_to_hub("your-name/bert-squad", private=True)  # doctest: +SKIP
        """
        return push_model(
            self,
            repo_id,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            tags=tags,
            max_shard_size="50GB" if max_shard_size is None else max_shard_size,
        )


def _card(own: Path, repo_id: str, token: Any, is_adapter: bool) -> ModelCard:
    """The card in the folder; else the repository's; else a short one."""
    if own.is_file():
        return ModelCard.load(own)
    try:
        return ModelCard.load(repo_id, token=token)
    except EntryNotFoundError:
        data = ModelCardData(
            library_name="peft" if is_adapter else "transformers",
            pipeline_tag="question-answering",
        )
        name = repo_id.split("/")[-1]
        return ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# {name}\n\nAn extractive question answering model, "
            "saved with qa_flax.\n"
        )


def _add_tags(card: ModelCard, tags: str | Sequence[str] | None) -> None:
    present = card.data.get("tags") or []
    present = [present] if isinstance(present, str) else list(present)
    new = [tags] if isinstance(tags, str) else list(tags or ())
    if new:
        card.data["tags"] = list(dict.fromkeys([*present, *new]))


# ---- errors --------------------------------------------------------------------------------------


def repeated_by(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
) -> str:
    """The sentences that say what is safe, and the command that repeats only the push."""
    words = ["qa-flax", "push", os.fspath(folder), repo_id]
    words += ["--revision", revision] if revision else []
    words += ["--private"] * bool(private) + ["--create_pr"] * create_pr
    return (
        f"Nothing is lost: the model is in {os.fspath(folder)}. To repeat only the push: "
        f"{shlex.join(words)}"
    )


@contextmanager
def push_errors(
    repo_id: str, token: str | bool | None = None, repeat: str = "Nothing was uploaded."
) -> Iterator[None]:
    """Turn the errors of a request into a `PushError` that names the repository and what to do."""
    try:
        yield
    except Exception as error:  # of httpx, of Xet, of the file system: its libraries have many
        reason = _reason(error)
        secret = token if isinstance(token, str) else get_token()
        if secret:
            reason = reason.replace(secret, "***")
        raise PushError(
            f"the push to {_api().endpoint}/{repo_id} failed: {reason}. {repeat}"
        ) from error


_ADVICE = {
    401: "the access token is missing, wrong or expired; log in again with `hf auth login`, or set "
    "HF_TOKEN",
    403: "the access token may not write there; use one with write access to that owner",
    404: "there is no such repository, branch or pull request, or the token may not see it",
    409: "something else changed the repository at the same time; push again",
}


def _reason(error: BaseException) -> str:
    """What the server answered, or why it could not be reached, in one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    response = getattr(cause, "response", None)
    if response is None:
        first = cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = escaped(" ".join(str(cause).split())).rstrip(".") or escaped(first) or "no answer"
        return f"{type(first).__name__}: {first_few([text])}"
    request = f"{response.request.method} {response.request.url.path}"
    status = response.status_code
    said = getattr(cause, "server_message", None)
    parts = [f"{request} was answered with {status} {response.reason_phrase}".rstrip()]
    parts += [first_few([" ".join(str(said).split()).rstrip(".")])] if said else []
    advice = _ADVICE.get(status, "the server has a problem; try again later" * (status >= 500))
    return "; ".join([": ".join(parts), *([advice] if advice else [])])


@contextmanager
def _own_words(is_shown: bool) -> Iterator[None]:
    """Leave huggingface_hub's bars out of logs and of the lines of a training.

    Its warning of a commit without changes is left out, too: such a push has succeeded.
    """
    logger = logging.getLogger("huggingface_hub.hf_api")
    is_disabled = (is_shown and sys.stderr.isatty()) or are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    if not is_disabled:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not is_disabled:
            enable_progress_bars()


def _api() -> HfApi:
    from qa_flax import __version__

    return HfApi(library_name="qa_flax", library_version=__version__)
