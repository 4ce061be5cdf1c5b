"""The doctor checks a folder of images before training and lists everything that is wrong."""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.Image import DecompressionBombWarning

from cbam.data.pictures import DEFAULT_MAX_PIXELS, MOST_PIXELS, SUFFIXES, BadImage, check_image
from cbam.data.scan import Layout, Side, find_layout, scan_side, some
from cbam.data.verified_cache import WORTH_IT, CheckedFiles
from cbam.errors import CBAMError
from cbam.runs.progress import counting

# A pool holds one future per path; a million at once would take gigabytes.
_AT_ONCE = 1000


@dataclass(frozen=True)
class FolderReport:
    """What the doctor found; `str(report)` is for the user.

    Attributes:
        root: the folder that was looked at.
        layout: which folders train and validate.
        train: the training side, or the whole where there is no validation folder.
        val: the validation side, if it has a folder.
        bad: for each file that cannot be used, by its full path, why.
    """

    root: Path
    layout: Layout
    train: Side
    val: Side | None
    bad: dict[Path, BadImage]

    @property
    def errors(self) -> tuple[str, ...]:
        """Problems that prevent training, without bad files."""
        return (*_class_errors(self), *self.side_errors)

    @property
    def side_errors(self) -> tuple[str, ...]:
        """Those of single folders, whatever the number of classes."""
        return tuple(_side_errors(self))

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices for the user, without bad files."""
        return (*self.layout.notices, *_notices(self))

    @property
    def sides(self) -> tuple[Side, ...]:
        """The side or the two sides."""
        return (self.train,) if self.val is None else (self.train, self.val)

    @property
    def image_count(self) -> int:
        """Number of files with the suffix of an image, including bad ones."""
        return sum(len(names) for side in self.sides for names in side.images.values())

    def good_images(self, side: Side) -> dict[str, list[str]]:
        """Return the usable images of `side`, for each class in file order."""
        if not self.bad:
            return side.images
        return {
            name: [image for image in images if side.folder / image not in self.bad]
            for name, images in side.images.items()
        }

    def bad_lines(self) -> list[str]:
        """Return one line for each kind of bad file, with the total and the first few names."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for path, problem in self.bad.items():
            kinds[problem.kind].append(f"{path.relative_to(self.root).as_posix()} ({problem.detail})")
        return [f"{len(names):,} {kind}: {some(names)}" for kind, names in kinds.items()]

    def __str__(self) -> str:
        lines = [f"{self.root}: {self.image_count:,} images in {len(self.train.classes)} classes"]
        for side in self.sides:
            counts = ", ".join(f"{name} {len(images):,}" for name, images in self.good_images(side).items())
            lines.append(f"  {side.folder}: {counts or 'no class folders'}")
        lines += [f"  error: {error}" for error in self.errors]
        lines += [f"  bad: {line}" for line in self.bad_lines()]
        lines += [f"  note: {notice}" for notice in self.notices]
        if not (self.errors or self.bad):
            lines.append("  every image can be read")
        return "\n".join(lines)


def check_folder(root: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> FolderReport:
    """Check every image below `root` and report what cannot be used; nothing is changed.

    Of large folders the good files are remembered in the user's cache and not decoded again until they change.

    Args:
        root: a folder with train/ and val/, or with one folder for each class.
        max_pixels: images with more pixels are bad; the header tells, so they are never decoded.

    Raises:
        CBAMError: `root` is no folder, or `max_pixels` is out of range.
    """
    root = Path(root)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise CBAMError(f"{root} {what}. Give a folder of images.")
    if not 1 <= max_pixels <= MOST_PIXELS:
        raise CBAMError(f"max_pixels must lie between 1 and {MOST_PIXELS:,}, given {max_pixels:,}.")
    try:
        layout = find_layout(root)
        train = scan_side(layout.train)
        val = None if layout.val is None else scan_side(layout.val)
    except OSError as error:
        raise CBAMError(f"{root} cannot be listed: {error}") from error
    bad = _bad_images(root, [side for side in (train, val) if side is not None], max_pixels)
    return FolderReport(root, layout, train, val, bad)


def _bad_images(root: Path, sides: list[Side], max_pixels: int) -> dict[Path, BadImage]:
    # Names first: a million paths as objects would take a gigabyte, and seconds.
    paths = [
        os.path.join(side.folder, image)  # noqa: PTH118
        for side in sides
        for images in side.images.values()
        for image in images
    ]
    return bad_images(paths, lambda path: check_image(path, max_pixels), CheckedFiles(root, max_pixels))


def bad_images(
    paths: list[str], check: Callable[[Path], None], checked: CheckedFiles
) -> dict[Path, BadImage]:
    """Return what is wrong with each image that cannot be used; good ones of a large set are remembered.

    Args:
        paths: of the images.
        check: raises `BadImage` for a bad one.
        checked: the memory.
    """
    if len(paths) < WORTH_IT:
        return _problems(paths, check)
    keys = checked.keys(paths)
    known = checked.known(keys)
    todo = np.flatnonzero(~known)
    if not len(todo):
        return {}
    bad = _problems([paths[index] for index in todo], check)
    spoilt = {str(path) for path in bad}
    good = [key for path, key in zip(paths, keys, strict=True) if key and path not in spoilt]
    checked.remember(np.array(good, dtype=np.uint64))
    return bad


def _problems(paths: list[str], check: Callable[[Path], None]) -> dict[Path, BadImage]:
    def problem(path: str) -> BadImage | None:
        try:
            check(Path(path))
        except BadImage as error:
            return error
        return None

    found: dict[Path, BadImage] = {}
    # Pillow decodes without the interpreter's lock, so threads are enough.
    with (
        warnings.catch_warnings(),
        counting("checking images") as count,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        # `max_pixels` replaces Pillow's warning.
        warnings.simplefilter("ignore", DecompressionBombWarning)
        for start in range(0, len(paths), _AT_ONCE):
            part = paths[start : start + _AT_ONCE]
            for path, error in zip(part, pool.map(problem, part), strict=True):
                if error is not None:
                    found[Path(path)] = error
            count(start + len(part), len(paths))
    return found


def _class_errors(report: FolderReport) -> list[str]:
    classes, folder = report.train.classes, report.train.folder
    errors = []
    if not classes:
        errors.append(
            f"{folder} holds no class folders. Put the images of each class into a folder with its name."
        )
    elif len(classes) == 1:
        inner = folder / classes[0]
        nested = any(path.is_dir() for path in inner.iterdir())
        hint = f"Did you mean {inner}?" if nested else "At least two are needed."
        errors.append(f"{folder} holds only one class, {classes[0]!r}. {hint}")
    if report.val is not None:
        only = {
            folder: sorted(set(classes) - set(report.val.classes)),
            report.val.folder: sorted(set(report.val.classes) - set(classes)),
        }
        if differences := [f"only in {side.name}/: {some(names)}" for side, names in only.items() if names]:
            errors.append(f"the classes of training and validation differ; {'; '.join(differences)}.")
    return errors


def _side_errors(report: FolderReport) -> list[str]:
    errors = []
    for side in report.sides:
        if empty := [name for name, images in report.good_images(side).items() if not images]:
            errors.append(
                f"{len(empty):,} empty class(es) in {side.folder}: {some(empty)}. "
                f"Put images there ({' '.join(SUFFIXES)}) or remove the folder."
            )
        if side.closed:
            errors.append(f"{len(side.closed):,} folder(s) cannot be listed: {some(side.closed)}.")
    return errors


def _notices(report: FolderReport) -> list[str]:
    notices = []
    for side in report.sides:
        for names, what in (
            (side.hidden, "hidden, skipped"),
            (side.others, f"ignored, as their names do not end like images ({' '.join(SUFFIXES)})"),
            (side.loose, "ignored, as they lie beside the class folders"),
        ):
            if names:
                notices.append(f"In {side.folder}: {len(names):,} {what}: {some(names)}.")
    return notices
