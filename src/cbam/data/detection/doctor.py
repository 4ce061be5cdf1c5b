"""The doctor checks a detection set before training and lists everything that is wrong."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbam.data.detection.coco import OPTIONS as COCO_OPTIONS
from cbam.data.detection.coco import read_coco
from cbam.data.detection.images import DetectionImages
from cbam.data.detection.problems import Problems
from cbam.data.detection.raw import RawDetection
from cbam.data.detection.records import DetectionRecord
from cbam.data.detection.voc import OPTIONS as VOC_OPTIONS
from cbam.data.detection.voc import read_voc
from cbam.data.detection.yolo import OPTIONS as YOLO_OPTIONS
from cbam.data.detection.yolo import read_yolo
from cbam.data.doctor import bad_images
from cbam.data.options import split_options
from cbam.data.pictures import DEFAULT_MAX_PIXELS, MOST_PIXELS, check_annotated
from cbam.data.scan import some
from cbam.data.verified_cache import CheckedFiles
from cbam.errors import CBAMError, nearest
from cbam.formatting import counted

# Of each format: its reader, and the options behind a question mark.
READERS: dict[str, tuple[Callable[[Path, dict[str, str]], RawDetection], tuple[str, ...]]] = {
    "coco": (read_coco, COCO_OPTIONS),
    "voc": (read_voc, VOC_OPTIONS),
    "yolo": (read_yolo, YOLO_OPTIONS),
}


@dataclass(frozen=True)
class DetectionReport:
    """What the doctor found; `str(report)` is for the user.

    Attributes:
        spec: the set as it was named.
        raw: the set without what cannot be used.
        problems: everything that is wrong, bad images included.
    """

    spec: str
    raw: RawDetection
    problems: Problems

    @property
    def sides(self) -> dict[str, list[DetectionRecord]]:
        """The images of training and validation, or of all where the set names no validation."""
        if self.raw.validation is None:
            return {"images": self.raw.train}
        return {"training": self.raw.train, "validation": self.raw.validation}

    def __str__(self) -> str:
        records = [record for side in self.sides.values() for record in side]
        lines = [f"{self.spec}: {_contents(records)}, {len(self.raw.classes):,} classes"]
        for name, side in self.sides.items():
            counts = label_counts(side, len(self.raw.classes))
            listed = [f"{of} {count:,}" for of, count in zip(self.raw.classes, counts, strict=True)]
            lines.append(f"  {name}: {_contents(side)}; {some(listed, 20)}")
        lines += [f"  {line}" for line in self.problems.lines()]
        if not self.problems.errors:
            lines.append("  every annotation and every image can be used")
        return "\n".join(lines)


def check_detection(
    spec: str | Path, *, check_images: bool = True, max_pixels: int = DEFAULT_MAX_PIXELS
) -> DetectionReport:
    """Check the annotations and images of a detection set; nothing is changed.

    Of large sets the good images are remembered in the user's cache and not decoded again until they change.

    Args:
        spec: what `load_detection` takes, such as "coco:photos".
        check_images: decode every image, not only read the annotations.
        max_pixels: images with more pixels are bad; the header tells, so they are never decoded.

    Raises:
        CBAMError: no such set, or annotation files that cannot be read at all.
    """
    if not 1 <= max_pixels <= MOST_PIXELS:
        raise CBAMError(f"max_pixels must lie between 1 and {MOST_PIXELS:,}, given {max_pixels:,}.")
    name, root, options = _parsed(spec)
    raw = READERS[name][0](root, options)
    if check_images:
        raw = _without_bad_images(root, raw, max_pixels)
    _check_contents(raw)
    return DetectionReport(str(spec), raw, raw.problems)


def label_counts(records: list[DetectionRecord], classes: int) -> list[int]:
    """Return the number of objects of each class."""
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *(record.labels for record in records)])
    return np.bincount(labels, minlength=classes + 1)[1:].tolist()


def have_masks(records: list[DetectionRecord]) -> bool:
    """Whether there are objects and each has an outline."""
    outlines = [outline for record in records for outline in record.segmentations]
    return bool(outlines) and all(outline is not None for outline in outlines)


def _parsed(spec: str | Path) -> tuple[str, Path, dict[str, str]]:
    name, colon, rest = str(spec).partition(":")
    forms = " or ".join(f"{known}:FOLDER" for known in READERS)
    if not colon or name not in READERS:
        close = nearest(name, READERS, count=1)
        hint = f" Did you mean {close[0]}:{rest}?" if colon and close else f" Type {forms}."
        raise CBAMError(f"a detection set is named by its format and folder, given {str(spec)!r}.{hint}")
    location, options = split_options(rest, READERS[name][1])
    root = Path(location).expanduser()
    try:
        exists = bool(location) and root.exists()
    except (OSError, ValueError) as error:
        raise CBAMError(f"{name}:... names no folder: {error}") from error
    if not exists:
        raise CBAMError(f"there is no folder {location!r}. Type {forms}.")
    return name, root, options


def _without_bad_images(root: Path, raw: RawDetection, max_pixels: int) -> RawDetection:
    sides = [side for side in (raw.train, raw.validation) if side is not None]
    known: dict[str, list[DetectionRecord]] = defaultdict(list)
    for side in sides:
        for record in side:
            known[os.fspath(record.path)].append(record)

    def check(path: Path) -> None:
        for record in known[os.fspath(path)]:
            size = record.width, record.height
            check_annotated(path, size, upright=record.upright, max_pixels=max_pixels)

    also = "".join(DetectionImages(side).digest().hex() for side in sides)
    bad = bad_images(list(known), check, CheckedFiles(root, max_pixels, also))
    for path, problem in bad.items():
        raw.problems.error(f"images: {problem.kind}", f"{path} ({problem.detail})")
    good = [[record for record in side if record.path not in bad] for side in sides]
    return RawDetection(
        name=raw.name,
        source=raw.source,
        train=good[0],
        validation=good[1] if len(good) > 1 else None,
        classes=raw.classes,
        category_ids=raw.category_ids,
        problems=raw.problems,
    )


def _check_contents(raw: RawDetection) -> None:
    problems = raw.problems
    counts = label_counts(raw.train, len(raw.classes))
    if not raw.train or not sum(counts):
        problems.error("sets without an object to train on", raw.name, "nothing to do")
        return
    if absent := [name for name, count in zip(raw.classes, counts, strict=True) if not count]:
        problems.notice(
            f"{len(absent):,} of {len(raw.classes):,} classes without a training object: {some(absent)}."
        )
    if empty := sum(1 for record in raw.train if not len(record)):
        problems.notice(
            f"{counted(empty, 'training image')} without an object; they are trained on as background."
        )
    outlines = [outline is not None for record in raw.train for outline in record.segmentations]
    if any(outlines) and not all(outlines):
        problems.notice(
            f"Only {sum(outlines):,} of {len(outlines):,} training objects have an outline: no masks are used."
        )
    if raw.validation is not None:
        trained = {record.path for record in raw.train}
        for record in raw.validation:
            if record.path in trained:
                problems.warning("images that train and validate", "used for both", record.path.name)


def _contents(records: list[DetectionRecord]) -> str:
    objects = sum(len(record) for record in records)
    return f"{counted(len(records), 'image')}, {counted(objects, 'object')}"
