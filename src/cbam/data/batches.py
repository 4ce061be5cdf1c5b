"""Which process gets which images at which step, and the loader that reads them.

The images of a step do not depend on the number of processes, only their division among the processes does. So a run
that was interrupted in the middle of an epoch can resume exactly, even with another number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from cbam.data.epoch_index import EpochDataset, EpochIndex
from cbam.data.workers import Loader
from cbam.errors import CBAMError


class EpochBatches(Sampler["list[EpochIndex]"]):
    """The batches of one process in one epoch: every `world`-th position of each step, starting at `rank`.

    Args:
        dataset: gives the order of an epoch, see `EpochDataset.order`.
        batch_size: images per step, over all processes together.
        seed: seed of the order.
        shuffle: whether to shuffle; otherwise every epoch runs in file order.
        drop_last: drop the last step if it is smaller than the others.
        rank: number of this process, from 0.
        world: number of processes.

    Raises:
        CBAMError: a rank outside the world, or processes that cannot share a training batch evenly.

    Example:
        >>> from cbam.data import load_data
        >>> digits = load_data("digits", limit_train=10).train
        >>> batches = EpochBatches(digits, 4, seed=0, shuffle=False, drop_last=False, rank=1, world=2)
        >>> batches.set_position(epoch=7, step=1)
        >>> list(batches)
        [[(7, 5), (7, 7)], [(7, 9)]]
    """

    def __init__(
        self,
        dataset: EpochDataset[Any],
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        rank: int = 0,
        world: int = 1,
    ):
        if not 0 <= rank < world:
            raise CBAMError(f"rank must be from 0 to world - 1, given rank {rank} of {world}.")
        if drop_last and batch_size % world:
            raise CBAMError(
                f"a batch of {batch_size} images cannot be shared evenly by {world} processes: give a multiple."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.step = 0

    def set_position(self, epoch: int, step: int = 0) -> None:
        """Choose the epoch whose batches come next, and its first step: steps are counted over all processes."""
        self.epoch = epoch
        self.step = step

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        return self._batches(self.epoch, self.step)  # an iterator keeps the epoch it was made for

    def _batches(self, epoch: int, first: int) -> Iterator[list[EpochIndex]]:
        order = self.dataset.order(self.seed, epoch, self.shuffle)
        for step in range(first, len(self)):
            batch = [(epoch, int(index)) for index in order[self.positions(step)]]
            if batch:  # at the end of an evaluation there may be fewer images than processes
                yield batch

    def positions(self, step: int) -> slice:
        """Return which positions of the order this process takes at a `step` of the epoch."""
        end = min((step + 1) * self.batch_size, len(self.dataset))
        return slice(step * self.batch_size + self.rank, end, self.world)

    def __len__(self) -> int:
        """Return the number of steps in a whole epoch."""
        size = len(self.dataset)
        return size // self.batch_size if self.drop_last else -(-size // self.batch_size)


def make_loader(
    dataset: EpochDataset[Any],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    workers: int = 0,
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """Return a loader of batches (N, C, H, W), (N,) over `dataset`; `loader.batch_sampler` is its `EpochBatches`.

    Args:
        dataset: the images; its augmentation is drawn from `seed` too.
        batch_size: images per step over all processes, at least 1.
        seed: seed of the order and of the augmentation.
        shuffle: whether to shuffle each epoch; call `loader.batch_sampler.set_position(epoch)` before it.
        workers: number of worker processes; it changes the speed, not the data.
        drop_last: drop the last step if it is smaller than the others.
        rank: number of this process, from 0; it gets its share of every step.
        world: number of processes.
        collate: makes a batch of items; torch's own stacks them.

    Raises:
        CBAMError: no images, a batch size below 1, workers below 0, no batch left by `drop_last`, or a batch that the
            processes cannot share evenly.
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
    return Loader(
        dataset.with_seed(seed),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Without its own generator a loader draws from the global one every epoch, which would change dropout.
        generator=torch.Generator().manual_seed(0),
    )
