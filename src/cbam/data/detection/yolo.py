"""YOLO's text files: a line for each object, a label file for each image, and a data.yaml with the classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cbam.data.detection.boxes import Box, from_centre, usable_box
from cbam.data.detection.problems import Problems
from cbam.data.detection.raw import RawDetection, listed, name_of
from cbam.data.detection.records import Annotation, DetectionRecord, Segmentation, make_record
from cbam.data.pictures import SUFFIXES, BadImage, image_size
from cbam.data.scan import is_hidden, some
from cbam.documents import inside, read_text, read_yaml
from cbam.errors import CBAMError

OPTIONS = ()
_SIDES = {"train": ("train",), "val": ("val", "valid", "validation", "test")}
_BEYOND = 2.0  # shares of an image above this are pixels, not shares
_MOST_LABELS = 16 * 2**20  # bytes
_MOST_CLASSES = 100_000


@dataclass(frozen=True)
class _Set:
    """What data.yaml says: the classes and the images of each side."""

    classes: tuple[str, ...]
    images: dict[str, list[Path]]
    source: str


def read_yolo(root: Path, options: dict[str, str]) -> RawDetection:
    """Read a folder with data.yaml, images/ and labels/, or such a YAML file.

    The label file of images/train/a.jpg is labels/train/a.txt; an image without one has no objects. A line is the
    class from 0, and the box's centre and size as shares of the image, or the points of a polygon.

    Boxes are measured on the image as its EXIF data turn it, since YOLO's tools show and train on that.

    Args:
        root: the folder or a YAML file in it.
        options: none.

    Raises:
        CBAMError: no data.yaml or no images, or a data.yaml that cannot be used.
    """
    problems = Problems()
    folder = root.parent if root.is_file() else root
    found = _read_set(root, folder, problems)
    reader = _Reader(folder, len(found.classes), problems)
    records: dict[str, list[DetectionRecord]] = {}
    first = 1
    for side, paths in found.images.items():
        records[side] = reader.records(paths, first)
        first += len(paths)
    return RawDetection(
        name=folder.resolve().name,
        source=f"YOLO labels, {found.source}",
        train=records["train"],
        validation=records.get("val"),
        classes=found.classes,
        category_ids=tuple(range(len(found.classes))),
        problems=problems,
    )


def _read_set(root: Path, folder: Path, problems: Problems) -> _Set:
    file = root if root.is_file() else _yaml_file(folder)
    if file is None:
        return _without_yaml(folder, problems)
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise CBAMError(f"{file} needs the keys names, train and val, given {name_of(content)}.")
    classes = _names(content, file)
    base = _base(content.get("path"), folder, problems)
    images: dict[str, list[Path]] = {}
    for side, keys in _SIDES.items():
        key = next((key for key in keys if content.get(key)), None)
        if key is not None:
            entries = content[key] if isinstance(content[key], list) else [content[key]]
            images[side] = [path for entry in entries for path in _images(entry, key, base, file, problems)]
    if not images.get("train"):
        raise CBAMError(f"{file} names no training images: train is {name_of(content.get('train'))}.")
    return _Set(classes, images, str(file))


def _yaml_file(folder: Path) -> Path | None:
    if (folder / "data.yaml").is_file():
        return folder / "data.yaml"
    found = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if len(found) > 1:
        raise CBAMError(
            f"{folder} holds {listed([file.name for file in found][:8])}: name the one to use, "
            f"yolo:{found[0]}, or call it data.yaml."
        )
    return found[0] if found else None


def _without_yaml(folder: Path, problems: Problems) -> _Set:
    names = next((path for name in ("classes.txt", "obj.names") if (path := folder / name).is_file()), None)
    if names is None or not (folder / "images").is_dir():
        raise CBAMError(
            f"{folder} holds no data.yaml, which names the classes and the images, and no classes.txt with images/. "
            "Write one with the lines: train: images/train, val: images/val, names: [first, second]"
        )
    classes = tuple(line.strip() for line in read_text(names).splitlines() if line.strip())
    images = {}
    for side, keys in _SIDES.items():
        below = next((path for key in keys if (path := folder / "images" / key).is_dir()), None)
        if below is not None:
            images[side] = _below(below)
    if "train" not in images:
        images = {"train": _below(folder / "images")}
    problems.notice(f"There is no data.yaml: the classes are those of {names.name}.")
    return _Set(classes, images, f"{names}")


def _names(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise CBAMError(
                f"{file}: the keys of names must be 0 to {len(names) - 1}, given {some(map(str, names))}."
            )
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names or len(names) > _MOST_CLASSES:
        raise CBAMError(
            f"{file}: names must be a list of the classes, given {name_of(content.get('names'))}."
        )
    if not all(isinstance(name, (str, int, float)) for name in names):
        raise CBAMError(f"{file}: names must be texts, given {name_of(names)}.")
    if count is not None and count != len(names):
        raise CBAMError(f"{file}: nc is {name_of(count)}, but {len(names)} names are given.")
    return tuple(str(name) for name in names)


def _base(given: Any, folder: Path, problems: Problems) -> Path:
    """Return the folder that train and val are relative to: `path` if it lies below the set, otherwise the set's own.

    Shared sets carry the path of the machine on which they were made.
    """
    if not isinstance(given, str) or not given:
        return folder
    below = inside(folder, given)
    if below is not None and below.is_dir():
        return below
    if Path(given).expanduser().resolve() != folder.resolve():
        problems.notice(f"path: {given} in data.yaml is not below {folder}, which is used instead.")
    return folder


def _images(entry: Any, key: str, base: Path, file: Path, problems: Problems) -> list[Path]:
    if not isinstance(entry, str) or not entry:
        raise CBAMError(f"{file}: {key} must name a folder or a list of images, given {name_of(entry)}.")
    path = inside(base, entry)
    if path is None and entry.startswith("../"):  # Roboflow's files say ../train/images and lie beside train/
        path = inside(base, entry.lstrip("./"))
    if path is None:
        raise CBAMError(
            f"{file}: {key}: {entry} leads out of {base}, which is refused. Give a folder below it."
        )
    if path.is_dir():
        return _below(path)
    if path.suffix != ".txt" or not path.is_file():
        raise CBAMError(f"{file}: {key}: there is no folder and no list {path}.")
    found = []
    for number, line in enumerate(read_text(path, _MOST_LABELS).splitlines(), 1):
        if name := line.strip():
            image = inside(base, name) or inside(path.parent, name)
            if image is None:
                problems.error(
                    "file names that lead out of the folder", f"line {number} of {path.name}: {name}"
                )
            else:
                found.append(image)
    return found


def _below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(SUFFIXES) and not is_hidden(path.name) and not path.is_dir()
    )


class _Reader:
    """Reads the label files."""

    def __init__(self, folder: Path, classes: int, problems: Problems):
        self.folder = folder
        self.classes = classes
        self.problems = problems
        self.unlabelled = 0

    def records(self, paths: Sequence[Path], first: int) -> list[DetectionRecord]:
        """Return the images with their objects, numbered from `first`."""
        records = []
        self.unlabelled = 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sizes = pool.map(_size, paths)
            for image_id, (path, size) in enumerate(zip(paths, sizes, strict=True), first):
                if isinstance(size, BadImage):
                    self.problems.error(f"images: {size.kind}", f"{path} ({size.detail})")
                else:
                    records.append(make_record(image_id, path, size, self._objects(path, size), upright=True))
        if paths and self.unlabelled == len(paths):
            self.problems.error(
                "sides without any label file",
                f"{_labels_of(paths[0], self.folder)} is the first expected",
                "no objects",
            )
        return records

    def _objects(self, path: Path, size: tuple[int, int]) -> list[Annotation]:
        file = _labels_of(path, self.folder)
        if not file.is_file():
            self.unlabelled += 1
            return []
        try:
            lines = read_text(file, _MOST_LABELS).splitlines()
        except CBAMError as error:
            self.problems.error("label files that cannot be read", str(error))
            return []
        found: dict[tuple[str, ...], Annotation | None] = {}
        for number, line in enumerate(lines, 1):
            words = tuple(line.split())
            where = f"line {number} of {file.relative_to(self.folder).as_posix()}"
            if words in found:
                self.problems.warning("lines given twice", "used once", where)
            elif words:
                found[words] = self._object(words, size, where)
        return [annotation for annotation in found.values() if annotation is not None]

    def _object(self, words: tuple[str, ...], size: tuple[int, int], where: str) -> Annotation | None:
        try:
            label, *values = (float(word) for word in words)
        except ValueError:
            self.problems.error("label lines that are no numbers", f"{where}: {name_of(' '.join(words))}")
            return None
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            self.problems.error(
                "label lines of neither a box (5 numbers) nor a polygon (7, 9, ...)",
                f"{where}: {len(words)} numbers",
            )
            return None
        if not (0 <= label < self.classes and label == int(label)):
            self.problems.error(
                "label lines of an unknown class", f"{where}: {words[0]}, known are 0 to {self.classes - 1}"
            )
            return None
        if any(abs(value) > _BEYOND for value in values):
            self.problems.error(
                "label lines that are not shares of the image (0 to 1)",
                f"{where}: {name_of(' '.join(words))}",
            )
            return None
        stated, outline = _shape(values, size)
        box = usable_box(stated, size, self.problems, where)
        return None if box is None else Annotation(box, int(label) + 1, segmentation=outline)


def _shape(values: list[float], size: tuple[int, int]) -> tuple[Box, Segmentation | None]:
    if len(values) == 4:
        return from_centre(values, *size), None
    points = np.array(values).reshape(-1, 2) * size
    clipped = points.clip(0, size)
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return (x1, y1, x2, y2), (clipped.ravel(),)


def _labels_of(path: Path, folder: Path) -> Path:
    """Return the label file of an image: the last folder called images becomes labels; without one it lies beside."""
    parts = list(path.relative_to(folder).parts)
    for at in reversed(range(len(parts) - 1)):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return folder.joinpath(*parts).with_suffix(".txt")


def _size(path: Path) -> tuple[int, int] | BadImage:
    try:
        return image_size(path)
    except BadImage as error:
        return error
