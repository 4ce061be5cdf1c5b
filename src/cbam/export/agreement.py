"""Compare an exported detector with eager mode, box by box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cbam.errors import CBAMError
from cbam.export.detector import OneImage
from cbam.export.loading import Loaded

_PIXELS, _SCORE = 0.5, 1e-3  # how far two detections may be apart and still be the same
_SAME = 0.98  # share of the detections


@dataclass(frozen=True)
class Agreement:
    """How the detections of an exported detector are those of eager mode, in one image.

    Two are the same if they have one label, no corner is more than half a pixel away, and the scores differ by at most
    0.001.

    Attributes:
        shape: of the image.
        eager, exported: how many detections.
        same: how many of eager mode's are in the exported one's.
        largest: difference of a corner, in pixels, of those.
        score: largest difference of a score of those.
    """

    HEADINGS: ClassVar = ("input", "detections", "exported", "the same", "largest difference", "of a score")

    shape: tuple[int, ...]
    eager: int
    exported: int
    same: int
    largest: float
    score: float

    def cells(self) -> tuple[str, ...]:
        """Return what stands below the headings."""
        return (
            " x ".join(map(str, self.shape)), str(self.eager), str(self.exported), str(self.same),
            f"{self.largest:.1e} px", f"{self.score:.1e}",
        )  # fmt: skip


def compare_detections(model: OneImage, loaded: Loaded, images: Tensor) -> list[Agreement]:
    """Return how detections agree, image by image.

    Args:
        model: in evaluation mode.
        loaded: the exported detector.
        images: (N, C, H, W).
    """
    device = next(model.parameters()).device
    found = []
    for image in images.split(1):
        with torch.no_grad():
            eager = [each.cpu() for each in model(image.to(device))]
        found.append(_agreement(tuple(image.shape), eager, loaded(image)))
    return found


def _agreement(shape: tuple[int, ...], eager: Sequence[Tensor], exported: Sequence[Tensor]) -> Agreement:
    apart = (eager[0][:, None] - exported[0][None]).abs().amax(2)
    scores = (eager[2][:, None] - exported[2][None]).abs()
    same = (apart <= _PIXELS) & (scores <= _SCORE) & (eager[1][:, None] == exported[1][None])
    left = set(range(len(exported[0])))
    pairs = []
    for row in range(len(eager[0])):
        near = [column for column in torch.nonzero(same[row])[:, 0].tolist() if column in left]
        if near:
            column = min(near, key=lambda each: float(apart[row, each]))
            left.discard(column)
            pairs.append((float(apart[row, column]), float(scores[row, column])))
    largest, score = (max((pair[place] for pair in pairs), default=0.0) for place in (0, 1))
    return Agreement(shape, len(eager[0]), len(exported[0]), len(pairs), largest, score)


def refuse_detections(found: Sequence[Agreement]) -> None:
    """Raise unless nearly all detections are the same.

    Raises:
        CBAMError: more than 2 % are not.
    """
    same = sum(each.same for each in found)
    most = sum(max(each.eager, each.exported) for each in found)
    if same < _SAME * most:
        raise CBAMError(
            f"of {sum(each.eager for each in found)} detections of eager mode and"
            f" {sum(each.exported for each in found)} of the exported detector only {same} are the same."
            " No file was written."
        )
