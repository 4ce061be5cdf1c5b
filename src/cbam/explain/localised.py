"""Images in which it is known where the object is, as a network sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from cbam.data.detection.images import DetectionImages
from cbam.data.inputs import InputForm
from cbam.data.prepared import centre_crop
from cbam.errors import CBAMError


@dataclass(frozen=True)
class Localised:
    """An image, the class of an object in it, and where objects of that class are.

    Attributes:
        name: of the image.
        picture: in RGB.
        label: of the class, as the network counts.
        region: (H, W) bool, the pixels of the objects: their masks, or their boxes where there are none.
    """

    name: str
    picture: Image.Image
    label: int
    region: NDArray[np.bool_]

    def cropped(self, form: InputForm) -> tuple[Image.Image, NDArray[np.bool_]]:
        """Return the part that a network sees, and the region in it."""
        region = tv_tensors.Mask(torch.from_numpy(self.region.astype(np.uint8)))
        return form.crop(self.picture), centre_crop(form.size, form.resize)(region).numpy().astype(bool)


def localised_images(
    images: DetectionImages, classes: Sequence[str], network_classes: Sequence[str], limit: int | None = None
) -> list[Localised]:
    """Return the images of a detection set, each for the class of its largest object; those without one are left out.

    Args:
        images: one side of a set of `cbam.data.detection.load_detection`.
        classes: of the set, from label 1 on.
        network_classes: of the network; matched by name.
        limit: at most so many, the first ones.

    Raises:
        CBAMError: a class that the network does not know, or no image with an object.
    """
    unknown = [name for name in classes if name not in network_classes]
    if unknown:
        raise CBAMError(
            f"the network has no class {', '.join(map(repr, unknown[:5]))}; its {len(network_classes)} classes begin"
            f" with {', '.join(map(repr, network_classes[:5]))}. Name them alike: --class-names FILE"
        )
    found = list[Localised]()
    for index, record in enumerate(images.records):
        if limit is not None and len(found) == limit:
            break
        usable = ~(record.iscrowd | record.difficult)
        if not usable.any():
            continue
        largest = int(np.argmax(np.where(usable, record.areas, -1)))
        label = int(record.labels[largest])
        _, target = images[index]
        wanted = torch.from_numpy(usable & (record.labels == label))
        region = _region(target, wanted, (record.height, record.width))
        name = classes[label - 1]
        found.append(
            Localised(record.path.name, images.picture(index), list(network_classes).index(name), region)
        )
    if not found:
        raise CBAMError("no image of the set has an object that counts: there is nothing to score.")
    return found


def _region(
    target: dict[str, torch.Tensor], wanted: torch.Tensor, size: tuple[int, int]
) -> NDArray[np.bool_]:
    region = np.zeros(size, dtype=bool)
    if "masks" in target:
        return region | target["masks"][wanted].numpy().astype(bool).any(0)
    for left, top, right, bottom in target["boxes"][wanted].numpy():
        region[int(np.floor(top)) : int(np.ceil(bottom)), int(np.floor(left)) : int(np.ceil(right))] = True
    return region
