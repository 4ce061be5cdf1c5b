"""COCO's JSON annotations (Lin et al., arXiv 1405.0312), in the folders in which people keep them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbam.data.detection.boxes import from_xywh, usable_box
from cbam.data.detection.masks import checked_polygons, run_lengths
from cbam.data.detection.problems import Problems
from cbam.data.detection.raw import RawDetection, finite_numbers, listed, name_of, size_in_header, whole
from cbam.data.detection.records import Annotation, DetectionRecord, Segmentation, make_record
from cbam.documents import inside, read_json
from cbam.errors import CBAMError

OPTIONS = ("train", "val", "images")
_YEARS = ("2017", "2014")
_SIDES = {"train": ("train",), "val": ("val", "valid", "validation", "test")}
_ROBOFLOW = "_annotations.coco.json"


@dataclass(frozen=True)
class _Files:
    """The annotation files of a set; `val` may be missing, and then a share of `train` validates."""

    train: Path
    val: Path | None


def read_coco(root: Path, options: dict[str, str]) -> RawDetection:
    """Read a folder with COCO annotations, or one annotation file.

    Found without options are annotations/instances_train2017.json (2014 too) with its train2017/ and val2017/,
    train/_annotations.coco.json with valid/ beside it, and a folder with one JSON file.

    Args:
        root: the folder, or a JSON file.
        options: "train" and "val" name annotation files and "images" a folder of images, relative to `root`.

    Raises:
        CBAMError: no annotation file is found, or one that is no COCO file.
    """
    problems = Problems()
    files = _find(root, options, problems)
    folder = root.parent if root.is_file() else root
    content = _load(files.train)
    categories = _categories(content, files.train, problems)
    train = _Reader(folder, files.train, content, categories, options.get("images"), problems).records()
    del content  # COCO's takes gigabytes
    validation = None
    if files.val is not None:
        content = _load(files.val)
        _same_categories(categories, _categories(content, files.val, problems), files)
        validation = _Reader(
            folder, files.val, content, categories, options.get("images"), problems
        ).records()
    return RawDetection(
        name=folder.resolve().name,
        source=f"COCO annotations {files.train}" + (f" and {files.val}" if files.val else ""),
        train=train,
        validation=validation,
        classes=tuple(categories.values()),
        category_ids=tuple(categories),
        problems=problems,
    )


def _find(root: Path, options: dict[str, str], problems: Problems) -> _Files:
    if root.is_file():
        return _Files(root, None)
    if "train" in options or "val" in options:
        return _named(root, options)
    for year in _YEARS:
        pair = [root / "annotations" / f"instances_{side}{year}.json" for side in ("train", "val")]
        if pair[0].is_file():
            return _Files(pair[0], pair[1] if pair[1].is_file() else None)
    for train in _SIDES["train"]:
        if (root / train / _ROBOFLOW).is_file():
            beside = [root / side / _ROBOFLOW for side in _SIDES["val"]]
            return _Files(root / train / _ROBOFLOW, next((file for file in beside if file.is_file()), None))
    found = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
    if len(found) == 1:
        return _Files(found[0], None)
    sides = {side: [file for file in found if _is_side(file, names)] for side, names in _SIDES.items()}
    if len(sides["train"]) == 1 and len(sides["val"]) <= 1:
        return _Files(sides["train"][0], sides["val"][0] if sides["val"] else None)
    raise CBAMError(
        f"{root} holds no COCO annotations that can be told apart: {listed([f.name for f in found][:8])} found. "
        "Expected annotations/instances_train2017.json, train/_annotations.coco.json or one .json file; "
        f"otherwise name them: coco:{root}?train=FILE&val=FILE"
    )


def _is_side(file: Path, names: Sequence[str]) -> bool:
    stem = file.stem.lower().replace("-", "_").replace(".", "_")
    return any(part.rstrip("0123456789") in names for part in stem.split("_"))


def _named(root: Path, options: dict[str, str]) -> _Files:
    if "train" not in options:
        raise CBAMError(f"val={options['val']} needs the training annotations too: ?train=FILE&val=FILE")
    files: dict[str, Path] = {}
    for side, name in options.items():
        path = inside(root, name)
        if path is None or not (path.is_dir() if side == "images" else path.is_file()):
            raise CBAMError(f"{side}={name}: there is nothing of that name in {root}.")
        files[side] = path
    return _Files(files["train"], files.get("val"))


def _load(file: Path) -> dict[str, Any]:
    content = read_json(file)
    expected = "a COCO file is an object with the lists 'images', 'annotations' and 'categories'"
    if not isinstance(content, dict):
        raise CBAMError(f"{file} holds {type(content).__name__}; {expected}.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            what = f"is {type(content[key]).__name__}" if key in content else "is missing"
            raise CBAMError(f"{file}: {key!r} {what}; {expected}.")
    return content


def _categories(content: dict[str, Any], file: Path, problems: Problems) -> dict[int, str]:
    found: dict[int, str] = {}
    for number, category in enumerate(content["categories"]):
        known = category if isinstance(category, dict) else {}
        key, name = whole(known.get("id")), known.get("name")
        if key is None or not isinstance(name, str):
            raise CBAMError(
                f"{file}: category {number} needs a whole number 'id' and a text 'name', given {name_of(category)}."
            )
        if key in found:
            raise CBAMError(f"{file}: two categories have the id {key}: {found[key]!r} and {name!r}.")
        if name in found.values():
            problems.warning("categories of the same name", "kept apart", f"{name!r} in {file.name}")
        found[key] = name
    if not found:
        raise CBAMError(f"{file} has no categories, so there is nothing to detect.")
    return dict(sorted(found.items()))


def _same_categories(train: dict[int, str], val: dict[int, str], files: _Files) -> None:
    if different := sorted(key for key in val if train.get(key) != val[key]):
        key = different[0]
        other = repr(train[key]) if key in train else "missing"
        raise CBAMError(
            f"the categories differ: {key} is {val[key]!r} in {files.val} and {other} in {files.train}."
        )


class _Reader:
    """Reads the images and annotations of one file."""

    def __init__(
        self,
        root: Path,
        file: Path,
        content: dict[str, Any],
        categories: dict[int, str],
        images: str | None,
        problems: Problems,
    ):
        self.file = file
        self.content = content
        self.label_of = {key: label for label, key in enumerate(categories, 1)}
        self.problems = problems
        self.folder = self._image_folder(root, images)

    def records(self) -> list[DetectionRecord]:
        """Return the images in the order of their ids."""
        images = self._images()
        annotations = self._annotations(images)
        return [
            make_record(key, path, size, annotations.get(key, ()))
            for key, (path, size) in sorted(images.items())
        ]

    def _image_folder(self, root: Path, images: str | None) -> Path:
        if images is not None:
            folder = inside(root, images)
            if folder is None or not folder.is_dir():
                raise CBAMError(f"images={images}: there is no such folder in {root}.")
            return folder
        side = self.file.stem.split("_")[-1]  # instances_train2017 -> train2017
        near = [side, f"images/{side}", side.rstrip("0123456789"), f"images/{side.rstrip('0123456789')}"]
        folders = [self.file.parent, *(root / name for name in near), root / "images", root]
        if self.file.parent.name == "annotations":
            folders.append(folders.pop(0))
        names = [image.get("file_name") for image in self.content["images"] if isinstance(image, dict)]
        first = [name for name in names[:20] if isinstance(name, str)]
        held = {
            folder: sum(1 for name in first if (path := inside(folder, name)) is not None and path.is_file())
            for folder in folders
        }
        return max(held, key=lambda folder: held[folder])  # the first of equals

    def _images(self) -> dict[int, tuple[Path, tuple[int, int]]]:
        found: dict[int, tuple[Path, tuple[int, int]]] = {}
        names: set[str] = set()
        for number, image in enumerate(self.content["images"]):
            key = whole(image.get("id")) if isinstance(image, dict) else None
            name = image.get("file_name") if isinstance(image, dict) else None
            if key is None or not isinstance(name, str):
                self.problems.error(
                    "images without a whole number 'id' and a text 'file_name'",
                    f"number {number} of {self.file.name}: {name_of(image)}",
                )
                continue
            where = f"image {key}, {name}"
            path = inside(self.folder, name)
            if path is None:
                self.problems.error("file names that lead out of the folder", where)
                continue
            if key in found:
                self.problems.error("images with an id that another has", where)
                continue
            if not path.is_file():
                self.problems.error("missing files", f"{where} in {self.folder}")
                continue
            if name in names:
                self.problems.warning("file names that another image has", "both are used", where)
            names.add(name)
            size = self._size(image, path, where)
            if size is not None:
                found[key] = (path, size)
        return found

    def _size(self, image: dict[str, Any], path: Path, where: str) -> tuple[int, int] | None:
        if image.get("width") is None and image.get("height") is None:
            self.problems.warning("images without 'width' and 'height'", "taken from the files", where)
            return size_in_header(path, self.problems, where, upright=False)
        width, height = whole(image.get("width")), whole(image.get("height"))
        if width is None or height is None or min(width, height) < 1 or max(width, height) > 10**6:
            given = f"{name_of(image.get('width'))} x {name_of(image.get('height'))}"
            self.problems.error("images whose 'width' and 'height' are no sizes", f"{where}: {given}")
            return None
        return width, height

    def _annotations(self, images: dict[int, tuple[Path, tuple[int, int]]]) -> dict[int, list[Annotation]]:
        listed_ids = {whole(image.get("id")) for image in self.content["images"] if isinstance(image, dict)}
        found: dict[int, list[Annotation]] = defaultdict(list)
        seen: dict[int, tuple[Any, ...]] = {}
        for number, entry in enumerate(self.content["annotations"]):
            if not isinstance(entry, dict):
                self.problems.error("annotations that are no objects", f"number {number}: {name_of(entry)}")
                continue
            key, image_id = whole(entry.get("id")), whole(entry.get("image_id"))
            where = f"annotation {number if key is None else key} of image {name_of(entry.get('image_id'))}"
            if image_id is None or image_id not in images:
                if image_id is None or image_id not in listed_ids:  # otherwise the image has its own fault
                    self.problems.error("annotations of an image that is not there", where)
                continue
            annotation = self._annotation(entry, images[image_id][1], where)
            if annotation is None:
                continue
            if key is not None:
                same = (image_id, annotation.label, annotation.box)
                if seen.get(key) == same:
                    self.problems.warning("annotations given twice", "used once", where)
                    continue
                if key in seen:
                    self.problems.warning("annotations with an id that another has", "both are used", where)
                seen[key] = same
            found[image_id].append(annotation)
        return found

    def _annotation(self, entry: dict[str, Any], size: tuple[int, int], where: str) -> Annotation | None:
        category = whole(entry.get("category_id"))
        if category is None or category not in self.label_of:
            given = name_of(entry.get("category_id"))
            self.problems.error("annotations of an unknown category", f"{where}: {given}")
            return None
        stated = finite_numbers(entry.get("bbox"), 4)
        if stated is None:
            self.problems.error(
                "annotations whose 'bbox' is no list of four numbers",
                f"{where}: {name_of(entry.get('bbox'))}",
            )
            return None
        box = usable_box(from_xywh(stated), size, self.problems, where)
        if box is None:
            return None
        segmentation: Segmentation | None = None
        if entry.get("segmentation"):  # Roboflow writes an empty list for a box without an outline
            segmentation = self._outline(entry["segmentation"], size, where)
            if not segmentation:
                return None
        area = finite_numbers([entry.get("area")], 1)
        return Annotation(
            box,
            self.label_of[category],
            area=float(area[0]) if area and 0 <= area[0] < math.inf else None,
            iscrowd=entry.get("iscrowd") in (1, True),
            segmentation=segmentation,
        )

    def _outline(self, given: Any, size: tuple[int, int], where: str) -> Segmentation | None:
        shape = (size[1], size[0])
        try:
            if not isinstance(given, list):
                run_lengths(given, shape)
                return given
            whole_ones = [part for part in given if not (isinstance(part, list) and len(part) < 6)]
            if len(whole_ones) < len(given):  # COCO itself has some
                self.problems.warning("polygons of fewer than three points", "left out", where)
            return checked_polygons(whole_ones, shape)
        except CBAMError as error:
            self.problems.error("annotations whose 'segmentation' cannot be used", f"{where}: {error}")
            return None
