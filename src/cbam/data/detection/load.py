"""`load_detection`: images with objects to train on and to validate, from a folder of annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cbam.data.detection.detection_data import DetectionData
from cbam.data.detection.doctor import check_detection, have_masks
from cbam.data.detection.images import DetectionImages
from cbam.data.detection.raw import RawDetection
from cbam.data.detection.records import DetectionRecord
from cbam.data.folder import BAD_IMAGES
from cbam.data.hashing import name_hash
from cbam.data.pictures import DEFAULT_MAX_PIXELS
from cbam.errors import CBAMError, unknown_name


def load_detection(
    data: str | Path,
    *,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    limit_train: int | None = None,
    limit_val: int | None = None,
    bad_data: str = "fail",
    check_images: bool = True,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> DetectionData:
    """Load a detection set after checking it.

    Args:
        data: "coco:FOLDER" (or a JSON file), "voc:FOLDER" or "yolo:FOLDER"; options follow a question mark, as in
            "coco:photos?train=a.json&val=b.json&images=pictures" or "voc:VOCdevkit?train=2007:trainval&val=2007:test".
        val_fraction: share of the images that validates where the set names no validation.
        split_seed: another seed gives another split.
        limit_train: keep only this many training images, chosen by a hash of their names.
        limit_val: likewise for validation.
        bad_data: "fail" stops at annotations and images that cannot be used, "skip" leaves them out with a notice.
        check_images: decode every image once before training; of large sets the good ones are remembered.
        max_pixels: images with more pixels count as bad; checked before decoding.

    Raises:
        CBAMError: no such set, or faults that the message lists; it says what to type.
    """
    if bad_data not in BAD_IMAGES:
        raise unknown_name("bad_data", bad_data, BAD_IMAGES)
    if not 0 < val_fraction < 1:
        raise CBAMError(f"val_fraction must lie between 0 and 1, given {val_fraction}. Type for example: 0.2")
    for name, limit in (("limit_train", limit_train), ("limit_val", limit_val)):
        if limit is not None and limit < 1:
            raise CBAMError(f"{name} must be at least 1, given {limit}.")
    report = check_detection(data, check_images=check_images, max_pixels=max_pixels)
    raw = report.raw
    errors = report.problems.errors
    if errors and (bad_data == "fail" or not raw.train):
        raise CBAMError(
            f"{data} cannot be trained on as it is.\n"
            + "\n".join(f"  {line}" for line in report.problems.lines() if not line.startswith("note"))
            + "\nRepair or remove what the errors name, or leave it out by typing: --bad-data skip"
        )
    train, validation, how = _split(raw, val_fraction, split_seed)
    train, validation = _limited(train, limit_train), _limited(validation, limit_val)
    with_masks = have_masks(train)
    return DetectionData(
        name=raw.name,
        source=f"{raw.source}{how}: {len(train):,} training and {len(validation):,} validation images.",
        train=DetectionImages(train, with_masks=with_masks, max_pixels=max_pixels),
        validation=DetectionImages(
            validation, with_masks=with_masks and have_masks(validation), max_pixels=max_pixels
        ),
        classes=raw.classes,
        category_ids=raw.category_ids,
        has_masks=with_masks,
        notices=(*(str(fault) for fault in (*errors, *report.problems.warnings)), *report.problems.notices),
    )


def _split(
    raw: RawDetection, val_fraction: float, seed: int
) -> tuple[list[DetectionRecord], list[DetectionRecord], str]:
    if raw.validation is not None:
        if not raw.validation:
            raise CBAMError(f"the validation side of {raw.name} has no image that can be used.")
        return raw.train, raw.validation, ""
    if len(raw.train) < 2:
        raise CBAMError(
            f"{raw.name} has one image, and at least one to train on and one to validate are needed."
        )
    count = min(max(1, round(val_fraction * len(raw.train))), len(raw.train) - 1)
    chosen = {id(record) for record in _first(raw.train, count, seed)}
    train = [record for record in raw.train if id(record) not in chosen]
    validation = [record for record in raw.train if id(record) in chosen]
    return train, validation, f", split by file name with split seed {seed}"


def _limited(records: list[DetectionRecord], limit: int | None) -> list[DetectionRecord]:
    if limit is None or limit >= len(records):
        return records
    chosen = {id(record) for record in _first(records, limit, 0)}
    return [record for record in records if id(record) in chosen]


def _first(records: Sequence[DetectionRecord], count: int, seed: int) -> list[DetectionRecord]:
    """Return the `count` records with the lowest hash of folder and file name: added files move few others."""

    def key(record: DetectionRecord) -> tuple[int, int]:
        return name_hash(f"{record.path.parent.name}/{record.path.name}", seed), record.image_id

    return sorted(records, key=key)[:count]
