"""The order of an epoch over shards: shards shuffled, then samples within windows of shards; computed when sliced."""

from __future__ import annotations

import operator
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cbam.data.hashing import hash64, permutation

WINDOW = 64  # shards; with 10,000 samples each, the order of a window needs about 20 MB


class WindowedOrder:
    """A sequence of all indices, computed window by window when it is sliced; it holds the order of one window.

    Reading in this order keeps at most two windows of shards busy at any time, and needs memory for the number of
    shards and for one window's samples, not for all samples.

    Args:
        counts: samples in each shard (S,); indices run through the shards one after the other.
        seed: seed of the order.
        epoch: another epoch has another order.
        window: shards whose samples are shuffled together; at least 1.

    Example:
        >>> order = WindowedOrder([3, 3, 3, 3], seed=0, epoch=0, window=2)
        >>> len(order), sorted(order[0:12].tolist()) == list(range(12))
        (12, True)
        >>> order[2:9:3].tolist() == order[0:12][2:9:3].tolist()
        True
    """

    def __init__(self, counts: ArrayLike, seed: int, epoch: int, window: int = WINDOW):
        self._counts = np.asarray(counts, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._seed, self._epoch, self._window = seed, epoch, window
        self._shards = permutation(len(self._counts), seed, epoch)
        ends = np.cumsum(self._counts[self._shards])
        self._bounds = np.concatenate([[0], ends[window - 1 :: window], ends[-1:]])
        self._kept: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: slice) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, place: int) -> int: ...
    def __getitem__(self, place: slice | int) -> NDArray[np.int64] | int:
        if not isinstance(place, slice):
            position = range(len(self))[operator.index(place)]
            return int(self[position : position + 1][0])
        wanted = range(len(self))[place]
        if not wanted:
            return np.empty(0, dtype=np.int64)
        if wanted.step < 0:
            return self[wanted[-1] : wanted[0] + 1 : -wanted.step][::-1]
        first = int(np.searchsorted(self._bounds, wanted[0], side="right")) - 1
        last = int(np.searchsorted(self._bounds, wanted[-1], side="right")) - 1
        parts = []
        for number in range(first, last + 1):
            begin, end = int(self._bounds[number]), int(self._bounds[number + 1])
            # The first wanted position inside this window, on the stride that began before it.
            skip = -(-max(0, begin - wanted.start) // wanted.step) * wanted.step + wanted.start
            parts.append(self._order_of(number)[skip - begin : min(end, wanted.stop) - begin : wanted.step])
        return np.concatenate(parts)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.int64)

    def _order_of(self, number: int) -> NDArray[np.int64]:
        if self._kept[0] != number:
            shards = np.sort(self._shards[number * self._window : (number + 1) * self._window])
            indices = np.concatenate(
                [np.arange(self._starts[shard], self._starts[shard + 1]) for shard in shards]
            )
            shuffled = np.argsort(hash64(self._seed, self._epoch, indices), kind="stable")
            self._kept = (number, indices[shuffled])
        return self._kept[1]
