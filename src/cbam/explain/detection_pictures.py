"""The same images with the true objects and with what several detectors find: pictures and a manifest in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from cbam.errors import CBAMError
from cbam.explain.detections import Objects, draw_detections, side_by_side
from cbam.explain.pictures import replacing


class DetectionPictureData(Protocol):
    """What `detection_pictures` needs of a split: records, (image, target) by index, and pictures."""

    @property
    def records(self) -> Sequence[Any]:
        """What is known of each image."""

    def __getitem__(self, index: int, /) -> tuple[Any, Mapping[str, Any]]:
        """Return the image and its target."""

    def picture(self, index: int, /) -> Image.Image:
        """Return the image that the boxes are measured on."""


def detection_pictures(
    found: Mapping[str, Mapping[int, Mapping[str, Any]]],
    images: DetectionPictureData,
    chosen: Sequence[int],
    classes: Sequence[str],
    out_dir: Path,
    *,
    least_score: float = 0.5,
) -> None:
    """Draw images with their true objects and with each detector's; write PNG files and `pictures.json`.

    Beside the single pictures a sheet of each image, `image-0.png`, shows all side by side. The folder is replaced as
    a whole.

    Args:
        found: variant -> index of the image -> a detector's output for it, in pixels of the picture.
        images: a split of a detection set.
        chosen: indices of the images to draw; `first_with_objects` chooses by a rule.
        classes: the names of the labels 1, 2, ...
        out_dir: the folder to write.
        least_score: what scores lower is not drawn.

    Raises:
        CBAMError: there is no image or no detector.
    """
    if not chosen or not found:
        raise CBAMError(f"nothing to draw: {len(chosen)} images and {len(found)} detectors")
    manifest: dict[str, Any] = {"least_score": least_score, "images": []}
    with replacing(Path(out_dir)) as fresh:
        for row, index in enumerate(chosen):
            objects = {"true objects": Objects.true(images[index][1])}
            objects |= {name: Objects.found(per[index], least_score) for name, per in found.items()}
            picture = images.picture(index)
            drawn = {name: draw_detections(picture, these, classes) for name, these in objects.items()}
            side_by_side(drawn).save(fresh / f"image-{row}.png")
            entries = {}
            for name, panel in drawn.items():
                file = f"image-{row}-{name.replace(':', '-').replace(' ', '-')}.png"
                panel.save(fresh / file)
                entries[name] = {"file": file, "objects": len(objects[name].labels)}
            manifest["images"].append({"index": index, "sheet": f"image-{row}.png", "panels": entries})
        (fresh / "pictures.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def first_with_objects(images: DetectionPictureData, count: int) -> list[int]:
    """Return the indices of the first `count` images that have an object, in the order of the set."""
    return [index for index, record in enumerate(images.records) if len(record.labels)][:count]
