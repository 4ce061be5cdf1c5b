"""Which process sees which images at which step: arithmetic on one order, so that any number of processes can go on.

The images of a step do not depend on the number of processes, only their division among the processes does. So a run
that was stopped in the middle of an epoch goes on exactly, with more processes or fewer too, and no image comes twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.data import Sampler

from cbam.errors import CBAMError

if TYPE_CHECKING:
    from cbam.data.epoch_index import EpochIndex, EpochIndexDataset


class EpochBatches(Sampler["list[EpochIndex]"]):
    """The batches of one process in one epoch: of the positions of each step, every `world`-th, from `rank` on.

    Args:
        dataset: gives the order of an epoch, see `EpochIndexDataset.order`.
        batch_size: images per step, over all processes together.
        seed: seed of the order.
        shuffle: whether to shuffle; otherwise every epoch runs in file order.
        drop_last: leave out the last step where it is smaller than the others.
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
        dataset: EpochIndexDataset,
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
        return self._addresses(self.epoch, self.step)  # an iterator keeps the epoch it was made for

    def _addresses(self, epoch: int, first: int) -> Iterator[list[EpochIndex]]:
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
