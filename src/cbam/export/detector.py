"""Detectors as exporters take them: one image of one size in; boxes, labels and scores out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cbam.errors import CBAMError

OUTPUTS = ("boxes", "labels", "scores", "masks")
BACKGROUND = "__background__"


def is_detector(model: nn.Module) -> bool:
    """Return whether a network has the interface of torchvision's detectors.

    >>> is_detector(nn.Conv2d(3, 8, 3))
    False
    """
    return type(getattr(model, "transform", None)).__name__ == "GeneralizedRCNNTransform"


class OneImage(nn.Module):
    """A detector that maps a batch of one image (1, C, H, W), values 0..1, to a tuple of tensors.

    `boxes` (K, 4), x1, y1, x2, y2 in pixels; `labels` (K,) int64, 0 the background; `scores` (K,); of Mask R-CNN
    `masks` (K, 1, H, W), in an exported file (K, 1, 28, 28) inside of each box.

    Args:
        detector: of torchvision's interface.
    """

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what is found in the first image."""
        (found,) = self.detector([images[0]])
        return tuple(found[name] for name in OUTPUTS if name in found)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        masks = getattr(getattr(self.detector, "roi_heads", None), "mask_predictor", None) is not None
        return OUTPUTS if masks else OUTPUTS[:3]

    def example(self, size: Any) -> Tensor:
        """Return one random image.

        Args:
            size: one side, (H, W) or (C, H, W); None: SSD's own, otherwise a square of the shorter side that the
                detector resizes to.

        Raises:
            CBAMError: another form.
        """
        transform: Any = self.detector.transform
        channels = len(transform.image_mean)
        if size is None:
            size = tuple(transform.fixed_size or [transform.min_size[-1]] * 2)
        sides = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        if len(sides) != 2 or (not isinstance(size, int) and len(size) == 3 and size[0] != channels):
            raise CBAMError(
                f"image_size of a detector is one side, (H, W) or ({channels}, H, W), got {size!r}."
            )
        return torch.rand(1, channels, *sides, generator=torch.Generator().manual_seed(0))


@contextmanager
def exportable() -> Iterator[None]:
    """Let torchvision's postprocessing decide nothing by how many boxes there are, which no exporter can follow.

    Some of its functions are exchanged for the block by others with the same result: one NMS for all classes with
    shifted boxes, also for many boxes; a smallest count that is a node of the graph; boxes decoded and regions cut out
    of a pyramid without a look at their number; masks that stay in their boxes.
    """
    from torchvision.models.detection import _utils, transform
    from torchvision.ops import boxes as operations
    from torchvision.ops import poolers

    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        edge = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
        return operations.nms(boxes + (idxs.to(boxes) * edge)[:, None], scores, iou_threshold)

    def topk_min(values: Tensor, count: int, axis: int) -> Any:
        return torch.sym_min(count, values.size(axis))

    def inside(masks: Tensor, *_: Any, **__: Any) -> Tensor:
        return masks

    def decode(self: Any, codes: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        whole = torch.cat(list(boxes))
        return self.decode_single(codes.reshape(whole.shape[0], -1), whole).reshape(whole.shape[0], -1, 4)

    def align(maps: Any, boxes: Any, size: Any, sampling_ratio: int, scales: Any, mapper: Any) -> Tensor:
        if len(maps) == 1:
            return original_align(maps, boxes, size, sampling_ratio, scales, mapper)
        regions, levels = poolers._convert_to_roi_format(boxes), mapper(boxes)
        found = maps[0].new_zeros(regions.shape[0], maps[0].shape[1], *size)
        for level, (each, scale) in enumerate(zip(maps, scales, strict=True)):
            at = torch.where(levels == level)[0]
            found[at] = poolers.roi_align(each, regions[at], size, scale, sampling_ratio).to(found.dtype)
        return found

    original_align = poolers._multiscale_roi_align
    owners = (
        (operations, "batched_nms"), (_utils, "_topk_min"), (transform, "paste_masks_in_image"),
        (_utils.BoxCoder, "decode"), (poolers, "_multiscale_roi_align"),
    )  # fmt: skip
    functions = (batched_nms, topk_min, inside, decode, align)
    before = [getattr(owner, name) for owner, name in owners]
    try:
        for (owner, name), function in zip(owners, functions, strict=True):
            setattr(owner, name, function)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", category=FutureWarning, module="torchvision"
            )  # of torch, about it
            yield
    finally:
        for (owner, name), function in zip(owners, before, strict=True):
            setattr(owner, name, function)
