"""Publish networks on the Hugging Face hub, and fetch them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from cbam.checkpoints.committing import unwrapped
from cbam.errors import CBAMError, MissingExtra
from cbam.pretrained.card import CARD, is_untouched, write_card
from cbam.pretrained.config import FILE, read_config
from cbam.pretrained.saving import save_pretrained


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    backbone: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    input_size: tuple[int, ...] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    attention_only: bool = False,
    metrics: Mapping[str, float | str] | None = None,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    commit_message: str = "Push a network with torch-cbam",
    create_pr: bool = False,
) -> str:
    """Publish a network with its attached attention on the Hugging Face hub, in one commit, with a card.

    `cbam.from_pretrained(repo_id)` downloads it. A README.md that a person has written or changed is kept.

    Args:
        model: with or without attached attention.
        repo_id: "user/name"; created if it does not exist.
        backbone, class_names, input_size, mean, std, attention_only: as for `save_pretrained`.
        metrics: numbers or strings by name for the card, such as {"top-1 accuracy": 0.91}.
        private: whether a new repository is private; None: the default of the user or organisation.
        token: with write access; None: the one of `hf auth login`.
        branch: an existing one; None: main.
        commit_message: of the commit.
        create_pr: open a pull request instead of committing to main.

    Returns:
        The URL of the commit.

    Raises:
        CBAMError: as `save_pretrained`, before anything is created on the hub; a hub that cannot be reached, or a
            token without write access.
        MissingExtra: huggingface_hub is not installed.

    >>> push_to_hub(nn.Conv2d(3, 8, 3), "name-without-user")
    Traceback (most recent call last):
    cbam.errors.CBAMError: no repository on the hub can be called 'name-without-user'. Give 'user/name'.
    """
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")) or repo_id.endswith("/"):
        raise CBAMError(f"no repository on the hub can be called {repo_id!r}. Give 'user/name'.")
    if create_pr and branch is not None:
        raise CBAMError("a pull request goes to the main branch: give create_pr or branch, not both.")
    hub = _library(f"pushing to {repo_id!r}")
    with TemporaryDirectory() as there:
        folder = save_pretrained(
            model, there, backbone, class_names=class_names, input_size=input_size, mean=mean, std=std,
            attention_only=attention_only,
        )  # fmt: skip
        card = write_card(read_config(folder), repo_id, unwrapped(model), metrics, branch)
        (folder / CARD).write_text(card, encoding="utf-8", newline="\n")
        try:
            kept = [CARD] if _has_card_of_a_person(hub, repo_id, branch, token) else None
            api = hub.HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=branch,
                create_pr=create_pr, ignore_patterns=kept,
            )  # fmt: skip
        except (
            Exception
        ) as error:  # of the hub's library, its HTTP client, the network, the disk: one sentence
            status = getattr(getattr(error, "response", None), "status_code", None)
            hint = (
                ". Give a token that may write there: `hf auth login`, or token=."
                if status in (401, 403)
                else ""
            )
            raise CBAMError(f"could not push to {repo_id!r} ({_reason(error)}){hint}") from error
    return str(commit)


def fetch(name: str, options: dict[str, Any]) -> Path:
    """Download the files of a network on the hub and return their folder in the cache.

    Args:
        name: "user/name".
        options: revision, cache_dir, token, force_download, local_files_only.

    Raises:
        CBAMError: it does not exist, or the hub cannot be reached.
        MissingExtra: huggingface_hub is not installed.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CBAMError(f"no folder at {name!r}. Give a folder, or a name on the hub: 'user/name'.")
    hub = _library(f"fetching {name!r}")
    try:
        # config.json first: it says which weights there are, and a push in between must not mix two commits.
        folder = Path(hub.hf_hub_download(name, FILE, **options)).parent
        weights = read_config(folder).weights
        return Path(hub.hf_hub_download(name, weights, **{**options, "revision": folder.name})).parent
    except CBAMError:
        raise
    except Exception as error:  # as in `push_to_hub`
        raise CBAMError(f"could not fetch {name!r} from the hub ({_reason(error)})") from error


def _library(feature: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtra(feature, "hub", "huggingface_hub") from None
    return huggingface_hub


def _has_card_of_a_person(hub: Any, repo_id: str, branch: str | None, token: str | None) -> bool:
    """Whether the repository is there with a README.md that is not, to the letter, an earlier push's card."""
    errors = hub.errors
    absent = (errors.RemoteEntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    with TemporaryDirectory() as there:
        try:
            path = hub.hf_hub_download(repo_id, CARD, revision=branch, token=token, cache_dir=there)
        except absent:
            return False
        return not is_untouched(Path(path).read_text(encoding="utf-8", errors="replace"))


def _reason(error: Exception) -> str:
    said = (str(error).strip().splitlines() or ["no reason given"])[0]
    return f"{type(error).__name__}: {said}"
