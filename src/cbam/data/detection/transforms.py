"""Training transforms of detection, from torchvision's transforms.v2, which move boxes and masks with the image."""

from __future__ import annotations

from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from cbam.data.detection.images import Target
from cbam.errors import CBAMError, unknown_name

# Of ImageNet, on the 0..255 scale: what the frame of a zoomed-out or padded image is filled with.
_MEAN = (124, 116, 104)
_FILL: dict[Any, Any] = {tv_tensors.Image: _MEAN, "others": 0}
_SHORTEST, _STEPS = 0.6, 11  # torchvision's recipe draws from 480, 512, ..., 800 for a model of 800
_PER_OBJECT = ("labels", "iscrowd", "difficult", "area")


class _IoUCrop(v2.RandomIoUCrop):
    """torchvision's crop that keeps objects; where there is none, or the image is tiny, it does nothing.

    torchvision's own searches for long without objects, and divides by zero on images of one to three pixels.
    """

    def forward(self, *inputs: Any) -> Any:
        image, target = inputs
        if not len(target["boxes"]) or min(image.shape[-2:]) < 8:
            return inputs
        return super().forward(*inputs)


class _Resize(v2.Transform):
    """Keeps torchvision's resizing from rounding the short side of a long image to nothing.

    Images one pixel wide or high stay as they are: torch 2.14 cannot resize a single pixel of type uint8.
    """

    def forward(self, *inputs: Any) -> Any:
        return inputs if min(inputs[0].shape[-2:]) < 2 else super().forward(*inputs)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params = super().make_params(flat_inputs)
        return {**params, "size": tuple(max(2, side) for side in params["size"])}


class _ScaleJitter(_Resize, v2.ScaleJitter):
    pass


class _RandomShortestSize(_Resize, v2.RandomShortestSize):
    pass


def _flip(image_size: int, max_size: int) -> list[v2.Transform]:
    return [v2.RandomHorizontalFlip()]


def _ssd(image_size: int, max_size: int) -> list[v2.Transform]:
    return [
        v2.RandomPhotometricDistort(),
        v2.RandomZoomOut(fill=_FILL),
        _IoUCrop(),
        v2.RandomHorizontalFlip(),
    ]


def _multiscale(image_size: int, max_size: int) -> list[v2.Transform]:
    shares = [_SHORTEST + (1 - _SHORTEST) * step / (_STEPS - 1) for step in range(_STEPS)]
    return [
        _RandomShortestSize([round(image_size * share) for share in shares], max_size=max_size),
        v2.RandomHorizontalFlip(),
    ]


def _lsj(image_size: int, max_size: int) -> list[v2.Transform]:
    side = (image_size, image_size)
    return [
        _ScaleJitter(side),
        v2.RandomCrop(side, pad_if_needed=True, fill=_FILL),
        v2.RandomHorizontalFlip(),
    ]


AUGMENTATIONS = {"flip": _flip, "ssd": _ssd, "multiscale": _multiscale, "lsj": _lsj}


def training_transform(name: str, *, image_size: int = 800, max_size: int = 1333) -> v2.Compose:
    """Return a training transform: (image uint8, target) to (image float32 on the 0..1 scale, target), plain tensors.

    Boxes are clipped to the image, and those without an area of one pixel dropped with everything of their objects.

    Args:
        name: "flip" left and right; "ssd" (Liu et al., arXiv 1512.02325): colours, zoom out, crop, flip; "multiscale":
            the short side drawn from 0.6 to 1 times `image_size`, and flip, for a model that does not resize to one
            size itself; "lsj", large-scale jitter (Ghiasi et al., arXiv 2012.07177): scaled by 0.1 to 2, cropped and
            padded to a square, and flip.
        image_size: short side of "multiscale", side of "lsj".
        max_size: largest long side of "multiscale".

    Raises:
        CBAMError: an unknown name, or sizes below 1.
    """
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    if not 1 <= image_size <= max_size:
        raise CBAMError(f"sizes must be 1 <= image_size <= max_size, given {image_size} and {max_size}.")
    return v2.Compose([*AUGMENTATIONS[name](image_size, max_size), *_finish()])


def _finish() -> list[v2.Transform]:
    # The clean-up comes last: the crop only sets the boxes that it lost to zero.
    return [
        v2.ClampBoundingBoxes(),
        v2.SanitizeBoundingBoxes(labels_getter=_per_object),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.ToPureTensor(),
    ]


def _per_object(inputs: tuple[Any, Target]) -> tuple[torch.Tensor, ...]:
    return tuple(inputs[1][name] for name in _PER_OBJECT)


def evaluation_transform() -> v2.Compose:
    """Return the transform for evaluation: only to float32 on the 0..1 scale and plain tensors."""
    return v2.Compose(
        [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.ToPureTensor()]
    )
