"""The contents of a folder of images: its sides (training, validation), classes and files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cbam.data.pictures import SUFFIXES

_VALIDATION_NAMES = ("val", "validation", "valid", "test")


@dataclass(frozen=True)
class Layout:
    """The folder of the training images, and that of the validation images if there is one."""

    train: Path
    val: Path | None
    notices: tuple[str, ...] = ()


@dataclass
class Side:
    """The class folders below one folder; file names are relative to it, with slashes.

    Attributes:
        folder: the folder that holds the class folders.
        classes: names of the class folders, sorted.
        images: files with the suffix of an image, for each class in file order.
        hidden: hidden files and folders, which are not entered.
        others: other files in class folders.
        loose: images beside the class folders.
        closed: folders that could not be listed.
    """

    folder: Path
    classes: tuple[str, ...] = ()
    images: dict[str, list[str]] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to some program, like .ipynb_checkpoints or ._photo.jpg."""
    return name.startswith(".") or name == "__MACOSX"


def some(names: Iterable[str], count: int = 5) -> str:
    """Return the first few names for a message; unprintable ones are escaped.

    >>> some(["a.jpg", "b.jpg", "c.jpg"], count=2)
    'a.jpg, b.jpg and 1 more'
    """
    listed = [name if name.isprintable() else ascii(name) for name in names]
    rest = len(listed) - count
    return ", ".join(listed[:count]) + (f" and {rest:,} more" if rest > 0 else "")


def find_layout(root: Path) -> Layout:
    """Find out whether `root` holds train/ and val/, or the class folders themselves.

    The validation side is the first of val/, validation/, valid/, test/. A train/ that holds no folders is a class.
    """
    folders = {path.name.lower(): path for path in _visible_folders(root)}
    train = folders.pop("train", None)
    if train is None or not _visible_folders(train):
        return Layout(root, None)
    chosen = next((name for name in _VALIDATION_NAMES if name in folders), None)
    if chosen is None:
        return Layout(train, None, (f"There is no val/ beside train/: {train} is split.",))
    val = folders.pop(chosen)
    notices = []
    if chosen != "val":
        notices.append(f"There is no val/: the images in {val.name}/ are the validation images.")
    if folders:
        notices.append(
            f"Not used, beside train/ and {val.name}/: {some(path.name for path in folders.values())}."
        )
    return Layout(train, val, tuple(notices))


def scan_side(folder: Path) -> Side:
    """List the class folders below `folder` and their files, at any depth; links to folders elsewhere are followed."""
    side = Side(folder)
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if is_hidden(entry.name):
            side.hidden.append(entry.name)
        elif entry.is_dir():
            side.images[entry.name] = sorted(_images_below(entry, side))
        elif _named_image(entry.name):
            side.loose.append(entry.name)
    side.classes = tuple(side.images)
    return side


def _images_below(class_folder: Path, side: Side) -> list[str]:
    def cannot_list(error: OSError) -> None:
        side.closed.append(str(error.filename))

    images: list[str] = []
    entered: set[str] = set()
    for parent, folders, files in os.walk(class_folder, onerror=cannot_list, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:  # a link to a folder above would never end
            folders.clear()
            continue
        entered.add(real)
        relative = Path(parent).relative_to(side.folder)
        prefix = f"{relative.as_posix()}/"
        side.hidden += sorted((relative / name).as_posix() for name in (*folders, *files) if is_hidden(name))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(name for name in files if not is_hidden(name)):
            # A broken link counts as an image; only the other names need a look at the disk.
            is_image = _named_image(name) or not (Path(parent) / name).exists()
            (images if is_image else side.others).append(f"{prefix}{name}")
    return images


def _named_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
