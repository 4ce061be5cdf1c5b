"""Data sets whose index is (epoch, index).

What an item looks like depends on (seed, epoch, index) and on nothing else. So the number of workers, the make-up of
the batch and the place where a run was killed cannot change it.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cbam.data.hashing import permutation
from cbam.errors import CBAMError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from typing_extensions import Self

EpochIndex = tuple[int, int]
Item = tuple[torch.Tensor, int]


class EpochIndexDataset(Dataset[Item], abc.ABC):
    """Images with labels; the item at address (epoch, index) is a float32 tensor (C, H, W), normalised, and its label.

    Attributes:
        labels: the class of every image, as an index into `classes`.
        classes: the names of the classes.
        seed: the seed of the augmentation; see `with_seed`.
    """

    labels: list[int]
    classes: tuple[str, ...]
    seed: int = 0

    @abc.abstractmethod
    def __getitem__(self, address: EpochIndex) -> Item:
        """Return the image (C, H, W) and the label at `address` = (epoch, index)."""

    @abc.abstractmethod
    def picture(self, index: int) -> Image:
        """Return image `index` in RGB as the network sees it: resized and cropped, not augmented, not normalised."""

    @abc.abstractmethod
    def subset(self, indices: Sequence[int]) -> Self:
        """Return a view of the images at `indices`, in that order."""

    def identifier(self, index: int) -> str:
        """Return what image `index` is known by: its place in the set, or its file's name."""
        return str(index)

    def order(self, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
        """Return the indices (len(self),) in the order of one epoch: shuffled by (seed, epoch), or as they are."""
        return permutation(len(self), seed, epoch) if shuffle else np.arange(len(self))

    def __getitems__(self, addresses: Sequence[EpochIndex]) -> list[Item]:
        """Return the items at several addresses; each is the same as it would be alone."""
        return [self[address] for address in addresses]

    def __len__(self) -> int:
        return len(self.labels)

    def with_seed(self, seed: int) -> Self:
        """Return a view of the same images whose augmentation is drawn from another `seed`."""
        view = copy.copy(self)
        view.seed = seed
        return view

    def _checked(self, address: Any) -> EpochIndex:
        if not (isinstance(address, tuple) and len(address) == 2):
            raise CBAMError(
                f"items are addressed by (epoch, index), given {address!r}. Type: dataset[0, {address!r}]"
            )
        epoch, index = int(address[0]), int(address[1])
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} images")
        return epoch, index
