"""Data sets addressed by (epoch, index), and the loader that joins them with the batches of an epoch.

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
from torch.utils.data import DataLoader, Dataset

from cbam.data.batches import EpochBatches
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


def make_loader(
    dataset: EpochIndexDataset,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    workers: int = 0,
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Item]:
    """Return a loader of batches (N, C, H, W), (N,) over `dataset`; `loader.batch_sampler` is its `EpochBatches`.

    Args:
        dataset: the images; its augmentation is drawn from `seed` too.
        batch_size: images per step over all processes, at least 1.
        seed: seed of the order and of the augmentation.
        shuffle: whether to shuffle each epoch; call `loader.batch_sampler.set_position(epoch)` before it.
        workers: number of worker processes; it changes the speed and no bit of the data.
        drop_last: leave out the last step when it is smaller than the others.
        rank: number of this process, from 0; it gets its share of every step.
        world: number of processes.

    Raises:
        CBAMError: no image, a batch size below 1, workers below 0, `drop_last` would leave no batch at all, or the
            processes cannot share a batch evenly.
    """
    if batch_size < 1 or workers < 0:
        raise CBAMError(
            f"batch_size must be at least 1 and workers at least 0, given {batch_size} and {workers}."
        )
    if len(dataset) < (batch_size if drop_last else 1):
        raise CBAMError(
            f"{len(dataset)} images give no batch of {batch_size}"
            f"{' when the last, smaller one is dropped' if drop_last else ''}. Use a smaller batch size or more images."
        )
    batches = EpochBatches(
        dataset, batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last, rank=rank, world=world
    )
    return DataLoader(
        dataset.with_seed(seed),
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Without a generator of its own a loader draws from the global one at every epoch, which would shift dropout.
        generator=torch.Generator().manual_seed(0),
    )
