"""Saved networks to the Hugging Face hub and back, through the hub library's own mixin for models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from cbam.checkpoints.committing import unwrapped
from cbam.errors import CBAMError, MissingExtra
from cbam.pretrained.card import CARD, is_untouched, write_card
from cbam.pretrained.config import FILE, WEIGHTS, read_config
from cbam.pretrained.saving import save_pretrained


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    backbone: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    input_size: tuple[int, int, int] | None = None,
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

    `cbam.from_pretrained(repo_id)` fetches it. A README.md that somebody wrote, or changed, is kept.

    Args:
        model: with or without attached attention.
        repo_id: "user/name"; made if it is not there.
        backbone, class_names, input_size, mean, std, attention_only: as for `save_pretrained`.
        metrics: numbers or words by name for the card, such as {"top-1 accuracy": 0.91}.
        private: whether a new repository is; None: as the user or organisation has it.
        token: that may write; None: the one of `hf auth login`.
        branch: an existing one; None: main.
        commit_message: of the commit.
        create_pr: open a pull request instead of committing to main.

    Returns:
        The address of the commit.

    Raises:
        CBAMError: what `save_pretrained` refuses, before anything is made on the hub; a hub that cannot be reached or
            does not let the token write.
        MissingExtra: huggingface_hub is not installed.

    >>> push_to_hub(nn.Conv2d(3, 8, 3), "name-without-user")
    Traceback (most recent call last):
    cbam.errors.CBAMError: no repository on the hub can be called 'name-without-user'. Give 'user/name'.
    """
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")) or repo_id.endswith("/"):
        raise CBAMError(f"no repository on the hub can be called {repo_id!r}. Give 'user/name'.")
    if create_pr and branch is not None:
        raise CBAMError("a pull request goes to the main branch: give create_pr or branch, not both.")
    on_hub = _on_hub(f"pushing to {repo_id!r}")
    with TemporaryDirectory() as there:
        folder = save_pretrained(
            model, there, backbone, class_names=class_names, input_size=input_size, mean=mean, std=std,
            attention_only=attention_only,
        )  # fmt: skip
        card = write_card(read_config(folder), repo_id, unwrapped(model), metrics, branch)
        (folder / CARD).write_text(card, encoding="utf-8", newline="\n")
        try:
            kept = [CARD] if _has_card_of_a_person(repo_id, branch, token) else None
            commit = on_hub(folder).push_to_hub(
                repo_id, commit_message=commit_message, private=private, token=token, branch=branch,
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
    """Return the folder in the cache with the files of a network on the hub.

    Args:
        name: "user/name".
        options: revision, cache_dir, token, force_download, local_files_only.

    Raises:
        CBAMError: it is not there, or cannot be reached.
        MissingExtra: huggingface_hub is not installed.
    """
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CBAMError(f"no folder at {name!r}. Give a folder, or a name on the hub: 'user/name'.")
    on_hub = _on_hub(f"fetching {name!r}")
    from huggingface_hub import hf_hub_download

    try:
        # The mixin would parse whatever config.json it gets. Ours has limits, so it reads the file first, and the
        # commit that it came from is the one whose weights are fetched.
        folder = Path(hf_hub_download(name, FILE, **options)).parent
        read_config(folder)
        folder = on_hub.from_pretrained(name, **{**options, "revision": folder.name}).folder
    except CBAMError:
        raise
    except Exception as error:  # as in `push_to_hub`
        raise CBAMError(f"could not fetch {name!r} from the hub ({_reason(error)})") from error
    return folder


def _on_hub(feature: str) -> Any:
    try:
        return _mixin_class()
    except ImportError:
        raise MissingExtra(feature, "hub", "huggingface_hub") from None


@lru_cache(maxsize=1)
def _mixin_class() -> Any:
    """Make the class when it is needed: its base is of a library that need not be installed."""
    from huggingface_hub import PyTorchModelHubMixin, hf_hub_download

    class OnHub(PyTorchModelHubMixin):
        """A folder that `save_pretrained` wrote, as what the mixin pushes and fetches.

        The mixin expects a network whose class builds it. With both hooks replaced it needs neither the class nor the
        network, and the files are those of a folder, names of tensors included.
        """

        def __init__(self, folder: Path):
            self.folder = folder

        def _save_pretrained(self, save_directory: Path) -> None:
            shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)

        @classmethod  # the mixin calls it by names only; what it passes on depends on its version
        def _from_pretrained(  # type: ignore[override]
            cls, *, model_id: str, config: dict[str, Any], **options: Any
        ) -> OnHub:
            return cls(Path(hf_hub_download(model_id, WEIGHTS[config["content"]], **options)).parent)

    return OnHub


def _has_card_of_a_person(repo_id: str, branch: str | None, token: str | None) -> bool:
    """Whether the repository is there with a README.md that is not, to the letter, an earlier push's card."""
    from huggingface_hub import errors, hf_hub_download

    absent = (errors.RemoteEntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    with TemporaryDirectory() as there:
        try:
            path = hf_hub_download(repo_id, CARD, revision=branch, token=token, cache_dir=there)
        except absent:
            return False
        return not is_untouched(Path(path).read_text(encoding="utf-8", errors="replace"))


def _reason(error: Exception) -> str:
    said = (str(error).strip().splitlines() or ["no reason given"])[0]
    return f"{type(error).__name__}: {said}"
