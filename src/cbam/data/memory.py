"""Images that lie in memory as uint8, augmented a whole batch at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image as PILImage
from torch.nn import functional

from cbam.data.augmentation import Augmentation, margin
from cbam.data.epoch_index import EpochIndex, EpochIndexDataset, Item
from cbam.data.hashing import hash64, uniform
from cbam.data.seeded import seeded

if TYPE_CHECKING:
    from typing_extensions import Self

_CROP_Y, _CROP_X, _FLIP, _POLICY = range(4)
_NOTHING = Augmentation("none")


class MemoryImages(EpochIndexDataset):
    """Images in memory; training ones are cropped at random from a zero-padded frame, flipped, and augmented further.

    The padding is an eighth of the height on every side. It is zero because that is the background of the sets held
    this way.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) integers, indices into `classes`.
        classes: names of the classes.
        mean: per-channel mean on the 0..1 scale.
        std: per-channel standard deviation on the 0..1 scale.
        augmentation: what is drawn at random (training); a crop is always a shift.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: Sequence[int],
        classes: Sequence[str],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation = _NOTHING,
    ):
        self.images = images
        self.labels = [int(label) for label in labels]
        self.classes = tuple(classes)
        self.augmentation = augmentation
        self._more = augmentation.more()
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __getitem__(self, at: EpochIndex) -> Item:
        return self.__getitems__([at])[0]

    def __getitems__(self, batch: Sequence[EpochIndex]) -> list[Item]:
        """Return several items; each is the same as it would be alone."""
        epochs, indices = np.array([self._checked(at) for at in batch]).T
        pixels = self._augmented(self.images[torch.from_numpy(indices)], epochs, indices)
        # Separate operations, each rounded by itself, give the same bits for every batch size.
        items = pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)
        return [(image, self.labels[index]) for image, index in zip(items, indices, strict=True)]

    def picture(self, index: int) -> PILImage.Image:
        """Return image `index` in RGB as the network sees it, without augmentation."""
        pixels = self.images[index].permute(1, 2, 0).numpy()
        return PILImage.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).convert("RGB")

    def subset(self, indices: Sequence[int]) -> Self:
        """Return a view of the images at `indices`, in that order."""
        view = copy.copy(self)
        view.images = self.images[torch.as_tensor(list(indices), dtype=torch.int64)]
        view.labels = [self.labels[index] for index in indices]
        return view

    def _augmented(self, pixels: torch.Tensor, epochs: np.ndarray, indices: np.ndarray) -> torch.Tensor:
        def draw(which: int) -> np.ndarray:
            return uniform(self.seed, epochs, indices, which)

        if self.augmentation.crops:
            height, width = pixels.shape[-2:]
            border = margin(height)
            top, left = (
                torch.from_numpy((draw(which) * (2 * border + 1)).astype(np.int64))
                for which in (_CROP_Y, _CROP_X)
            )
            windows = functional.pad(pixels, [border] * 4).unfold(2, height, 1).unfold(3, width, 1)
            pixels = windows[torch.arange(len(pixels)), :, top, left]
        if self.augmentation.mirrors:
            mirrored = torch.from_numpy(draw(_FLIP) < self.augmentation.flip).view(-1, 1, 1, 1)
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        for further in self._more:
            changed = []
            for image, seed in zip(pixels, hash64(self.seed, epochs, indices, _POLICY), strict=True):
                with seeded(int(seed)):
                    changed.append(further(image))
            pixels = torch.stack(changed)
        return pixels
