"""What the readers of COCO, VOC and YOLO return."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbam.data.detection.problems import Problems
from cbam.data.detection.records import DetectionRecord
from cbam.data.pictures import DEFAULT_MAX_PIXELS, BadImage, image_size


@dataclass(frozen=True)
class RawDetection:
    """A set as it was read.

    Attributes:
        name: what it is called.
        source: one sentence: where its images and annotations are from.
        train: the images to train on, or all of them.
        validation: the images that validate, None where the set names none.
        classes: names of the classes; label 1 is the first.
        category_ids: the set's own number of each class.
        problems: what is wrong with it.
    """

    name: str
    source: str
    train: list[DetectionRecord]
    validation: list[DetectionRecord] | None
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    problems: Problems


def whole(value: Any) -> int | None:
    """Return a whole number, also one written as 640.0; None for anything else.

    >>> whole(640.0), whole("640"), whole(True), whole(float("nan"))
    (640, None, None, None)
    """
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def finite_numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """Return a list of `count` numbers as a tuple, None for anything else; not a number is a number here.

    >>> finite_numbers([1, 2.5], 2), finite_numbers([1, "2"], 2), finite_numbers([1], 2)
    ((1, 2.5), None, None)
    """
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return None
    if not all(type(value) in (int, float) for value in values):
        return None
    return tuple(value if abs(value) < 1e15 else math.inf for value in values)


def size_in_header(
    path: Path, problems: Problems, where: str, *, upright: bool, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[int, int] | None:
    """Return (width, height) from the image's own header, or count why there is none."""
    try:
        return image_size(path, upright=upright, max_pixels=max_pixels)
    except BadImage as error:
        problems.error(f"images: {error.kind}", f"{where} ({error.detail})")
        return None


def name_of(value: Any) -> str:
    """Return a value for a message: short, whatever it is.

    >>> name_of(["a" * 100])
    "['aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."
    """
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**18 else "a huge number"
    return text if len(text) <= 45 else text[:42] + "..."


def listed(values: Sequence[str]) -> str:
    """Return names for a message.

    >>> listed(["a.json", "b.json"])
    'a.json, b.json'
    """
    return ", ".join(values) or "nothing"
