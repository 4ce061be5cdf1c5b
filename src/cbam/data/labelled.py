"""Images in a folder with labels from a table, one class each or several: every problem is named before any work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cbam.data.doctor import bad_images
from cbam.data.folder import FolderImages
from cbam.data.image_data import ImageData
from cbam.data.pictures import SUFFIXES, check_image
from cbam.data.prepared import Preparation, Selection, prepared_data
from cbam.data.scan import some
from cbam.data.split import stratified_split
from cbam.data.tables import Columns, Table, find_columns, is_validation, labels_of
from cbam.data.verified_cache import CheckedFiles
from cbam.errors import CBAMError


class MultiLabelImages(FolderImages):
    """Images in files with any number of labels each; an item's label is (classes,) float32 of 0 and 1.

    `labels` holds the classes of every image, as indices.
    """

    @property
    def strata(self) -> list[int]:
        """The rarest class of every image, by which images are split; without a class, the number of classes."""
        labels: Any = self.labels
        counts = Counter(label for of in labels for label in of)
        return [min(of, key=lambda label: (counts[label], label), default=len(self.classes)) for of in labels]

    def _target(self, index: int) -> Any:
        target = torch.zeros(len(self.classes))
        target[list(self.labels[index])] = 1  # type: ignore[call-overload]
        return target


@dataclass(frozen=True)
class Row:
    """One image of the table."""

    line: int
    name: str
    labels: tuple[str, ...]
    side: str | None


def load_labelled(root: Path, text: str, preparation: Preparation, selection: Selection) -> ImageData:
    """Make data sets of the images that a table names.

    Args:
        root: the folder that the names in the table are relative to.
        text: the table, see `cbam.data.tables.find_columns`.
        preparation: how a file becomes an item.
        selection: which images train and which validate, where the table does not say.

    Raises:
        CBAMError: see `find_columns`; missing files, files listed twice, rows without a file or a class, unknown
            splits, classes without training images, or bad images while `bad_images` is "fail". Each kind is counted
            and its first cases are named.
    """
    table, columns = find_columns(text)
    rows = _rows(table, columns, root)
    notices = [f"{table.path.name}: {columns.words}"]
    _refuse(table, _problems(table, columns, rows, root))
    rows, bad = _without_bad(root, rows, preparation.max_pixels, selection.bad_images)
    notices += [f"{len(bad):,} bad images were left out: {some(bad)}."] if bad else []
    if columns.split and (unused := _use_test(rows)):
        notices.append(unused)
        rows = [row for row in rows if row.side != "test"]
    classes = _classes(columns, rows)
    sides = _sides(root, rows, classes, columns, preparation, selection)
    notices += _class_notices(table, columns, sides, whole=selection.whole)
    how = f"{root} with the labels of {table.path.name}"
    if not (selection.whole or any(row.side == "val" for row in rows)):
        how += f", split by class with split seed {selection.split_seed}"
    return prepared_data(
        root.resolve().name, how, *sides, preparation, selection, notices=notices, task=columns.task
    )


def _rows(table: Table, columns: Columns, root: Path) -> list[Row]:
    names = [_with_suffix(root, str(name)) for name in table.values(columns.file)]
    sides: list[str | None] = [None] * len(names)
    if columns.split:
        sides = [is_validation(columns.split, value) for value in table.values(columns.split)]
    found = zip(table.lines, names, labels_of(table, columns), sides, strict=True)
    return [Row(*row) for row in found]


def _with_suffix(root: Path, name: str) -> str:
    """Return the name of an existing file where the table leaves out its suffix."""
    if not name or name.lower().endswith(SUFFIXES) or (root / name).is_file():
        return name
    return next((f"{name}{suffix}" for suffix in SUFFIXES if (root / f"{name}{suffix}").is_file()), name)


def _problems(table: Table, columns: Columns, rows: Sequence[Row], root: Path) -> list[tuple[str, list[str]]]:
    """Return what is wrong with the rows: each kind with its cases."""
    counts = Counter(row.name for row in rows if row.name)
    different: dict[str, set[tuple[str, ...]]] = {}
    for row in rows:
        if counts[row.name] > 1:
            different.setdefault(row.name, set()).add(row.labels)
    found = [
        ("rows without a file", [f"line {row.line}" for row in rows if not row.name]),
        (
            "files listed more than once, with the same labels",
            [n for n, of in different.items() if len(of) == 1],
        ),
        (
            "files listed more than once, with different labels",
            [n for n, of in different.items() if len(of) > 1],
        ),
        (
            f"missing files below {root}",
            [row.name for row in rows if row.name and not (root / row.name).is_file()],
        ),
    ]
    if columns.task == "multiclass":
        found.append(("rows without a class", [f"line {row.line}" for row in rows if not row.labels]))
        found.append(
            ("rows with several classes", [f"line {row.line}" for row in rows if len(row.labels) > 1])
        )
    if columns.split:
        values = table.values(columns.split)
        unknown = [repr(value) for row, value in zip(rows, values, strict=True) if row.side is None]
        kind = f"rows whose {columns.split!r} is neither train, val nor test"
        found.append((f"{kind} (to split by class instead: --labels '{table.path}?split=none')", unknown))
    return [(kind, cases) for kind, cases in found if cases]


def _refuse(table: Table, problems: Sequence[tuple[str, list[str]]]) -> None:
    if problems:
        lines = [f"  {len(cases):,} {kind}: {some(cases)}" for kind, cases in problems]
        raise CBAMError(f"--labels {table.path} cannot be used as it is:\n" + "\n".join(lines))


def _without_bad(root: Path, rows: list[Row], max_pixels: int, how: str) -> tuple[list[Row], list[str]]:
    paths = [str(root / row.name) for row in rows]
    bad = bad_images(paths, lambda path: check_image(path, max_pixels), CheckedFiles(root, max_pixels))
    named = [f"{row.name} ({bad[root / row.name].kind})" for row in rows if root / row.name in bad]
    if named and how == "fail":
        raise CBAMError(
            f"{len(named):,} of {len(rows):,} images cannot be used: {some(named)}\n"
            "Repair or remove them, or leave them out by typing: --bad-images skip"
        )
    return [row for row in rows if root / row.name not in bad], named


def _use_test(rows: list[Row]) -> str:
    """Let test images validate where no others do; return what the user should know about them."""
    test = sum(row.side == "test" for row in rows)
    if not test:
        return ""
    if any(row.side == "val" for row in rows):
        return f"{test:,} test images are not used: validation images are there too."
    rows[:] = [Row(row.line, row.name, row.labels, "val" if row.side == "test" else row.side) for row in rows]
    return f"There are no validation images: the {test:,} test images validate."


def _classes(columns: Columns, rows: Sequence[Row]) -> tuple[str, ...]:
    if len(columns.labels) > 1:
        return columns.labels
    names = {label for row in rows for label in row.labels}
    numbers = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))


def _sides(
    root: Path,
    rows: Sequence[Row],
    classes: tuple[str, ...],
    columns: Columns,
    preparation: Preparation,
    selection: Selection,
) -> tuple[FolderImages, FolderImages]:
    number = {name: label for label, name in enumerate(classes)}
    several = columns.task == "multilabel"
    kind = MultiLabelImages if several else FolderImages

    def images(chosen: Sequence[Row], *, augment: bool) -> FolderImages:
        labels: Any = [tuple(sorted(number[label] for label in row.labels)) for row in chosen]
        labels = labels if several else [of[0] for of in labels]
        return kind(root, [row.name for row in chosen], labels, classes, preparation, augment=augment)

    if any(row.side == "val" for row in rows):
        train = images([row for row in rows if row.side == "train"], augment=True)
        return train, images([row for row in rows if row.side == "val"], augment=False)
    train, val = images(rows, augment=True), images(rows, augment=False)
    if selection.whole:
        return train.subset(()), val
    into = stratified_split(train.names, train.strata, selection.val_fraction, selection.split_seed)
    return train.subset(into[0]), val.subset(into[1])


def _class_notices(
    table: Table, columns: Columns, sides: tuple[FolderImages, FolderImages], *, whole: bool
) -> list[str]:
    train, val = sides
    least = 1 if whole or columns.task == "multilabel" else 2
    if len(train.classes) < least:
        raise CBAMError(
            f"--labels {table.path} holds {len(train.classes)} classes: {some(train.classes)}. At least {least} are "
            "needed"
        )
    if not (whole or len(train)) or not len(val):
        raise CBAMError(f"--labels {table.path}: {len(train):,} images train and {len(val):,} validate")
    seen = [_present(side) for side in sides]
    if not whole and (lacking := [name for label, name in enumerate(train.classes) if label not in seen[0]]):
        raise CBAMError(
            f"--labels {table.path}: {len(lacking):,} classes have no training image: {some(lacking)}"
        )
    notices = []
    if unjudged := [name for label, name in enumerate(train.classes) if label not in seen[1]]:
        notices.append(f"{len(unjudged):,} classes have no validation image: {some(unjudged)}.")
    if columns.task == "multilabel" and (empty := sum(not of for side in sides for of in side.labels)):
        notices.append(f"{empty:,} images have none of the labels.")
    return notices


def _present(images: FolderImages) -> set[int]:
    labels: Any = images.labels
    return {label for of in labels for label in (of if isinstance(of, tuple) else (of,))}
