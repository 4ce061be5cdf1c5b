"""The samples of shards as a data set: each is one ranged read, checked against its tar header."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cbam.data.epoch_index import EpochIndex, Item
from cbam.data.pictures import decode_image
from cbam.data.prepared import Preparation, PreparedImages
from cbam.data.shards.headers import BLOCK, Rows, member_name
from cbam.data.shards.index import ShardIndex
from cbam.data.shards.locations import ShardNames
from cbam.data.shards.order import WINDOW, WindowedOrder
from cbam.data.shards.storage import Storage
from cbam.errors import CBAMError

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Self


class Samples:
    """Some shards of an index, concatenated into long columns; memory-mapped from the index file in every process.

    Args:
        index: the index.
        names: which of its shards, in which order.
    """

    def __init__(self, index: ShardIndex, names: Sequence[str]):
        self.index = index
        self.names = list(names)
        self.starts = np.concatenate([[0], np.cumsum([index.shards[name].count for name in names])])

    @cached_property
    def rows(self) -> Rows:
        """The rows of these shards: a view of the index if they are contiguous in it, otherwise a copy."""
        shards = [self.index.shards[name] for name in self.names]
        first, length = shards[0].first, int(self.starts[-1])
        if [shard.first - first for shard in shards] == self.starts[:-1].tolist():
            everything = self.index.rows
            part = slice(first, first + length)
            return Rows(everything.blocks[part], everything.sizes[part], everything.labels[part])
        parts = [self.index.rows_of(shard) for shard in shards]
        return Rows(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in Rows.__annotations__)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "names": self.names, "starts": self.starts}


class ShardImages(PreparedImages):
    """Images in tar shards; training ones are augmented, others resized and cropped.

    Args:
        names: where the shards are.
        samples: the shards of this side.
        classes: names of the classes.
        preparation: how an image becomes an item.
        augment: whether to augment (training).
        window: shards that are shuffled together, see `WindowedOrder`.
    """

    def __init__(
        self,
        names: ShardNames,
        samples: Samples,
        classes: Sequence[str],
        preparation: Preparation,
        *,
        augment: bool,
        window: int = WINDOW,
    ):
        super().__init__(classes, preparation, augment=augment)
        self.samples = samples
        self.window = window
        self._storage = Storage([names.location(name) for name in samples.names])
        self._chosen: NDArray[np.int64] | None = None

    @property
    def labels(self) -> NDArray[np.int32]:  # type: ignore[override]
        """The class of every image (N,), int32."""
        everything = self.samples.rows.labels
        return everything if self._chosen is None else everything[self._chosen]

    def __len__(self) -> int:
        return int(self.samples.starts[-1]) if self._chosen is None else len(self._chosen)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Self:
        """Return a view of the images at `indices`, in that order."""
        view = copy.copy(self)
        chosen = np.asarray(indices, dtype=np.int64)
        view._chosen = chosen if self._chosen is None else self._chosen[chosen]
        return view

    def identifier(self, index: int) -> str:
        """Return the shard's name and the sample's number in it, from 0."""
        shard, row = self._place(index)
        return f"{self.samples.names[shard]}:{row - int(self.samples.starts[shard])}"

    def order(self, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
        """Return one epoch's order: shards shuffled, then samples within windows of shards; computed when sliced."""
        if not shuffle:
            return super().order(seed, epoch, shuffle)
        counts = np.diff(self.samples.starts)
        if self._chosen is not None:
            if np.any(np.diff(self._chosen) < 0):  # not in file order: no shards to keep together
                return super().order(seed, epoch, shuffle)
            counts = np.diff(np.searchsorted(self._chosen, self.samples.starts))
        return WindowedOrder(counts, seed, epoch, self.window)  # type: ignore[return-value]

    def digest(self) -> bytes:
        """Return a hash of which image has which label."""
        total = hashlib.sha256()
        for name in self.samples.names:
            shard = self.samples.index.shards[name]
            total.update(f"{name}\0{shard.count}\0{shard.digest}\n".encode(errors="surrogateescape"))
        if self._chosen is not None:
            total.update(self._chosen.tobytes())
        return total.digest()

    def contents(self, indices: Sequence[int]) -> list[tuple[str, bytes]]:
        """Return name and bytes of the image files at `indices`, those that are near each other in one read.

        Raises:
            CBAMError: a shard cannot be read, or is not the one that was indexed.
        """
        everything = np.asarray(indices, dtype=np.int64)
        rows = everything if self._chosen is None else self._chosen[everything]
        shards = (np.searchsorted(self.samples.starts, rows, side="right") - 1).tolist()
        starts = (self.samples.rows.blocks[rows].astype(np.int64) * BLOCK).tolist()
        sizes = self.samples.rows.sizes[rows].tolist()
        wanted = [
            (shard, start - BLOCK, start + size)
            for shard, start, size in zip(shards, starts, sizes, strict=True)
        ]
        found = []
        for (shard, _, end), size, content in zip(wanted, sizes, self._storage.read(wanted), strict=True):
            # The header before the image proves that the index and the shard belong together, at every read.
            name = member_name(content[:BLOCK], size)
            if name is None:
                raise CBAMError(
                    f"{self._storage.locations[shard]} is not the file that was indexed: no image of {size:,} bytes "
                    f"begins at {end - size:,}. Delete {self.samples.index.path} and start again."
                )
            found.append((f"{self._storage.locations[shard]}: {name}", content[BLOCK:]))
        return found

    def __getitems__(self, batch: Sequence[EpochIndex]) -> list[Item]:
        """Return several items; their bytes are requested together."""
        checked = [self._checked(at) for at in batch]
        contents = self.contents([index for _, index in checked])
        return [
            self._item(epoch, index, decode_image(content, name, self.max_pixels))
            for (epoch, index), (name, content) in zip(checked, contents, strict=True)
        ]

    def _open(self, index: int) -> Image:
        ((name, content),) = self.contents([index])
        return decode_image(content, name, self.max_pixels)

    def _item(self, epoch: int, index: int, image: Image) -> Item:
        return self._transformed(epoch, index, image), int(self.samples.rows.labels[self._place(index)[1]])

    def _place(self, index: int) -> tuple[int, int]:
        row = int(index if self._chosen is None else self._chosen[index])
        return int(np.searchsorted(self.samples.starts, row, side="right")) - 1, row
