"""Data sets indexed by (epoch, index).

An item depends on (seed, epoch, index) and on nothing else: not on the number of workers, the other images of the batch
or the step at which an interrupted run was resumed.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

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


Sample = TypeVar("Sample")


class EpochDataset(Dataset[Sample], abc.ABC):
    """Anything that is indexed by (epoch, index) and drawn in a new order every epoch.

    Attributes:
        seed: the seed of the augmentation; see `with_seed`.
    """

    seed: int = 0

    @abc.abstractmethod
    def __getitem__(self, at: EpochIndex) -> Sample:
        """Return what lies at (epoch, index)."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of items in an epoch."""

    def order(self, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
        """Return the indices (len(self),) in the order of one epoch: shuffled by (seed, epoch), or as they are."""
        return permutation(len(self), seed, epoch) if shuffle else np.arange(len(self))

    def __getitems__(self, batch: Sequence[EpochIndex]) -> list[Sample]:
        """Return several items; each is the same as it would be alone."""
        return [self[at] for at in batch]

    def with_seed(self, seed: int) -> Self:
        """Return a view of the same images whose augmentation is drawn from another `seed`."""
        view = copy.copy(self)
        view.seed = seed
        return view

    def _checked(self, at: Any) -> EpochIndex:
        if not (isinstance(at, tuple) and len(at) == 2):
            raise CBAMError(f"items are indexed by (epoch, index), given {at!r}. Type: dataset[0, {at!r}]")
        epoch, index = int(at[0]), int(at[1])
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} images")
        return epoch, index


class EpochIndexDataset(EpochDataset[Item]):
    """Images with labels; item (epoch, index) is a normalised float32 tensor (C, H, W) and its label.

    Attributes:
        labels: the class of every image, as an index into `classes`.
        classes: the names of the classes.
    """

    labels: list[int]
    classes: tuple[str, ...]

    @property
    def strata(self) -> list[int]:
        """The class of every image by which it is split, limited and balanced."""
        return list(self.labels)

    @abc.abstractmethod
    def picture(self, index: int) -> Image:
        """Return image `index` in RGB as the network sees it: resized and cropped, not augmented, not normalised."""

    @abc.abstractmethod
    def subset(self, indices: Sequence[int]) -> Self:
        """Return a view of the images at `indices`, in that order."""

    def identifier(self, index: int) -> str:
        """Return what identifies image `index`: its number in the set, or its file's name."""
        return str(index)

    def __len__(self) -> int:
        return len(self.labels)
