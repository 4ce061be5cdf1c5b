"""Find objects in the user's pictures: a drawing of each, and one file with all detections."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

from cbam.data.picture_files import find_pictures
from cbam.data.pictures import BadImage, check_image, open_image
from cbam.data.scan import some
from cbam.errors import CBAMError
from cbam.evaluate.detection.rle import encode
from cbam.explain.detections import Objects, draw_detections
from cbam.files import write_atomically

FILE = "detections.json"


@dataclass(frozen=True)
class Prediction:
    """What `predict` did.

    Attributes:
        pictures: source file -> its drawing, in the order of the sources.
        detections: the content of the JSON file.
        skipped: source file -> why it could not be used.
    """

    pictures: Mapping[Path, Path]
    detections: Sequence[Mapping[str, Any]]
    skipped: Mapping[Path, str]


def predict(
    detector: nn.Module,
    sources: Sequence[str | Path],
    classes: Sequence[str],
    output: str | Path,
    *,
    category_ids: Sequence[int] | None = None,
    least_score: float = 0.5,
    batch_size: int = 1,
    skip_bad: bool = False,
    on_image: Callable[[int, int], object] = lambda done, of: None,
) -> Prediction:
    """Draw what a detector finds in pictures, and write it into `detections.json` in COCO's results form.

    The file is a list of {"image_id", "file_name", "category_id", "category_name", "bbox": [x, y, width, height],
    "score"}, with "segmentation" where the detector finds masks, by image and descending score. Image ids count from 1
    in the order of the files; boxes have two decimals of a pixel, scores five. A photograph is turned upright first, as
    its EXIF data say.

    Args:
        detector: on the device that computes; its training mode is restored.
        sources: image files and folders. A folder stands for the images in it at any depth, by name.
        classes: the names of the labels 1, 2, ...
        output: a folder that is empty or not there yet.
        category_ids: of the classes, in order; default 1, 2, ...
        least_score: what scores lower is neither drawn nor written.
        batch_size: how many images the detector gets at a time. Those of different sizes are padded to one, which
            changes the last digits.
        skip_bad: leave out files that cannot be read; otherwise nothing is done if there is one.
        on_image: called with (images done, images) after each.

    Raises:
        CBAMError: a source or an image in it cannot be used, there is no image, or the output folder is not empty.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CBAMError(f"{output} is not an empty folder: name another output, or remove it first")
    files = find_pictures(sources)
    skipped = _bad_files(files)
    if skipped and not skip_bad:
        reasons = [f"{path}: {reason}" for path, reason in skipped.items()]
        raise CBAMError(
            f"{len(skipped):,} of {len(files):,} images cannot be read; skip_bad (--skip-bad) leaves them out: "
            + some(reasons, 10)
        )
    good = {path: name for path, name in files.items() if path not in skipped}
    if not good:
        raise CBAMError(
            "no image is left to look at" if skipped else f"there is no image in {some(map(str, sources))}"
        )
    ids = category_ids or range(1, len(classes) + 1)
    drawings: dict[Path, Path] = {}
    rows: list[dict[str, Any]] = []
    for path, picture, found in _detected(detector, list(good), batch_size):
        objects = Objects.found(found, least_score)
        drawings[path] = output / good[path]
        drawings[path].parent.mkdir(parents=True, exist_ok=True)
        draw_detections(picture, objects, classes).save(drawings[path], quality=92)
        head = {"image_id": len(drawings), "file_name": str(path)}
        rows += [{**head, **row} for row in _rows(objects, classes, ids)]
        on_image(len(drawings), len(good))
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    write_atomically(output / FILE, f"[\n{lines}\n]\n" if rows else "[]\n")
    return Prediction(drawings, rows, skipped)


def _bad_files(files: Mapping[Path, str]) -> dict[Path, str]:
    bad: dict[Path, str] = {}
    for path in files:
        try:
            check_image(path)
        except BadImage as error:
            bad[path] = f"{error.kind} ({error.detail})"
    return bad


@torch.no_grad()
def _detected(
    detector: nn.Module, files: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, Image.Image, Mapping[str, Tensor]]]:
    device = next(detector.parameters()).device
    was_training = detector.training
    detector.eval()
    try:
        remaining = iter(files)
        while batch := list(islice(remaining, batch_size)):
            pictures = [open_image(path) for path in batch]
            images = [pil_to_tensor(picture).to(device).float().div_(255) for picture in pictures]
            yield from zip(batch, pictures, detector(images), strict=True)
    finally:
        detector.train(was_training)


def _rows(objects: Objects, classes: Sequence[str], ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    assert objects.scores is not None
    columns = zip(objects.boxes.tolist(), objects.labels.tolist(), objects.scores.tolist(), strict=True)
    for index, ((x1, y1, x2, y2), label, score) in enumerate(columns):
        row = {
            "category_id": ids[label - 1],
            "category_name": classes[label - 1],
            "bbox": [round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2)],
            "score": round(score, 5),
        }
        if objects.masks is not None:
            rle = encode(objects.masks[index])
            row["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        yield row
