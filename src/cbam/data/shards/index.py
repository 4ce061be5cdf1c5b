"""The index of a set of shards: built once from the tar headers, kept in one file, memory-mapped and shared."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from cbam.data.scan import some
from cbam.data.shards.headers import Rows, scan_tar
from cbam.data.shards.locations import ShardNames
from cbam.data.shards.storage import Stamp, is_remote, local_path, read_all, stamp, with_open
from cbam.errors import CBAMError
from cbam.files import write_atomically

logger = logging.getLogger(__name__)

FILE_NAME = ".cbam-index"
_MAGIC = b"CBAMIDX1"  # increment when the layout changes
_COLUMNS = (("blocks", np.uint32), ("sizes", np.uint32), ("labels", np.int32))
_LARGEST_HEADER = 1 << 28
_LARGEST_DOWNLOAD = 1 << 36
_CONNECTIONS = 16


@dataclass(frozen=True)
class Shard:
    """One shard in the index: its name and version, first row, number of rows, whether all were decoded, a hash."""

    name: str
    stamp: Stamp
    first: int
    count: int
    top_label: int
    checked: bool
    digest: str


@dataclass(frozen=True)
class Part:
    """The part of the index that belongs to one shard."""

    name: str
    stamp: Stamp
    rows: Rows
    checked: bool = False
    stored: Shard | None = (
        None  # what an index says of these rows; only rows that it does not know are hashed anew
    )

    @property
    def top_label(self) -> int:
        """The highest class, including unusable images."""
        return self.stored.top_label if self.stored else _top_label(self.rows.labels)

    @property
    def digest(self) -> str:
        """A hash of which sample has which label."""
        if self.stored:
            return self.stored.digest
        return _digest(np.ascontiguousarray(getattr(self.rows, column), kind) for column, kind in _COLUMNS)


@dataclass(frozen=True)
class ShardIndex:
    """An index file on this machine; its rows are mapped, so that all processes share one copy in memory.

    Attributes:
        path: the index file.
        shards: what it holds, by name.
        start: where its rows begin in the file, in bytes.
    """

    path: Path
    shards: dict[str, Shard]
    start: int

    @cached_property
    def length(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.count for shard in self.shards.values())

    @cached_property
    def rows(self) -> Rows:
        """The rows of all shards, read from the file when they are used."""
        length, start = self.length, self.start
        columns: list[Any] = []
        for _, kind in _COLUMNS:
            columns.append(np.memmap(self.path, kind, "r", start, (length,)) if length else np.empty(0, kind))
            start += 4 * length
        return Rows(*columns)

    def rows_of(self, shard: Shard) -> Rows:
        """Return the rows of one shard."""
        part = slice(shard.first, shard.first + shard.count)
        return Rows(self.rows.blocks[part], self.rows.sizes[part], self.rows.labels[part])

    def is_damaged(self, shard: Shard) -> bool:
        """Whether the rows of a shard are not those that were written; read from the file, not into the map."""
        with self.path.open("rb") as stream:
            columns = []
            for number, (_, kind) in enumerate(_COLUMNS):
                stream.seek(self.start + 4 * (number * self.length + shard.first))
                columns.append(np.frombuffer(stream.read(4 * shard.count), kind))
        labels = columns[2]
        if not len(labels) or len(labels) < shard.count or _digest(columns) != shard.digest:
            return True
        return _top_label(labels) != shard.top_label or (int(labels.min()) < 0 and not shard.checked)

    def __getstate__(self) -> dict[str, object]:
        # A pickled map would be a copy of the rows.
        return {"path": self.path, "shards": self.shards, "start": self.start}


def read_index(path: Path) -> ShardIndex | None:
    """Return the index in the file `path`, or None if it does not exist or is damaged."""
    try:
        with path.open("rb") as stream:
            magic, length = struct.unpack("<8sQ", stream.read(16))
            if magic != _MAGIC or length > _LARGEST_HEADER:
                return None
            listed = json.loads(stream.read(length))
        shards, first = {}, 0
        for name, size, tag, count, top_label, checked, digest in listed:
            version = Stamp(int(size), str(tag))
            shards[str(name)] = Shard(
                str(name), version, first, int(count), int(top_label), bool(checked), str(digest)
            )
            first += int(count)
        start = _aligned(16 + length)
        whole = path.stat().st_size == start + 4 * len(_COLUMNS) * first
        return ShardIndex(path, shards, start) if whole else None
    except (OSError, ValueError, TypeError, OverflowError, struct.error, RecursionError):
        return None


def write_index(path: Path, parts: Sequence[Part]) -> ShardIndex:
    """Write the index of some shards as one file and return it."""
    listed = [
        (
            part.name,
            part.stamp.size,
            part.stamp.tag,
            len(part.rows.labels),
            part.top_label,
            part.checked,
            part.digest,
        )
        for part in parts
    ]
    header = json.dumps(listed).encode()
    pieces = [
        struct.pack("<8sQ", _MAGIC, len(header)),
        header,
        bytes(_aligned(16 + len(header)) - 16 - len(header)),
    ]
    for column, kind in _COLUMNS:
        pieces += [np.ascontiguousarray(getattr(part.rows, column), kind).tobytes() for part in parts]
    write_atomically(path, b"".join(pieces))
    index = read_index(path)
    if index is None:
        raise CBAMError(f"{path} was written, but cannot be read back. Is the disk full or failing?")
    return index


def parts_of(index: ShardIndex) -> list[Part]:
    """Return all shards of an index, to be written again."""
    return [
        Part(shard.name, shard.stamp, index.rows_of(shard), shard.checked, shard)
        for shard in index.shards.values()
    ]


def load_index(
    names: ShardNames, classes: Mapping[str, int], tell: Callable[[int, int], None] | None = None
) -> ShardIndex:
    """Return an index that holds all shards of `names`, reading the headers of those that are new or changed.

    It is looked for beside the shards, then in this user's cache; shards whose size or tag has changed are read again,
    and so are those whose rows in the index have changed since they were written.
    The new one is written beside the shards, or into the cache where that is not possible.

    Args:
        names: the shards.
        classes: class name -> label, for shards that hold names.
        tell: called with (shards done, shards to do) while headers are read.

    Raises:
        CBAMError: a shard is missing, damaged or hostile.
    """
    wanted = [*names.train, *names.val]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        stamps = dict(zip(wanted, pool.map(lambda name: stamp(names.location(name)), wanted), strict=True))
        known = _known(names, stamps)
        fitting = [name for name in wanted if known is not None and _fits(known, name, stamps[name])]
        if known is not None:
            intact = _intact(known, fitting, pool)
            if len(intact) == len(wanted):
                return known
            fitting = intact
        todo = sorted(set(wanted) - set(fitting))

        def scan(name: str) -> Rows:
            location, size = names.location(name), stamps[name].size
            return with_open(location, lambda stream: scan_tar(stream, location, size, classes))

        scanned = {}
        for done, (name, rows) in enumerate(zip(todo, pool.map(scan, todo), strict=True), 1):
            scanned[name] = rows
            if tell is not None:
                tell(done, len(todo))
    kept = [part for part in (parts_of(known) if known else []) if part.name not in scanned]
    fresh = [Part(name, stamps[name], scanned[name]) for name in todo]
    return write_somewhere(names, sorted([*kept, *fresh], key=lambda part: part.name))


def _intact(index: ShardIndex, names: Sequence[str], pool: ThreadPoolExecutor) -> list[str]:
    """Return the shards whose rows are as they were written; the log names the others."""
    damaged = list(pool.map(lambda name: index.is_damaged(index.shards[name]), names))
    if any(damaged):
        shown = some(compress(names, damaged))
        logger.warning("%s is damaged (the rows of %s): these headers are read again", index.path, shown)
    return [name for name, bad in zip(names, damaged, strict=True) if not bad]


def cached_file(base: str) -> Path:
    """Return the path of the user's copy of the index for the shards at `base`."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch-cbam" / "shards"
    full = base if is_remote(base) else str(local_path(base).resolve())
    return (
        folder
        / f"{hashlib.blake2b(full.encode('utf-8', 'surrogateescape'), digest_size=12).hexdigest()}.index"
    )


def _known(names: ShardNames, stamps: Mapping[str, Stamp]) -> ShardIndex | None:
    """Return the existing index that knows the most of these shards."""
    cached = cached_file(names.base)
    found = [read_index(cached)]
    if not is_remote(names.base):
        found.insert(0, read_index(local_path(names.base) / FILE_NAME))
    elif found[0] is None or not all(_fits(found[0], name, stamps[name]) for name in stamps):
        beside = read_all(f"{names.base.rstrip('/')}/{FILE_NAME}", _LARGEST_DOWNLOAD)
        if beside is not None and beside.startswith(_MAGIC):
            found.append(read_index(write_atomically(cached, beside)))
    there = [index for index in found if index is not None]
    return max(
        there, key=lambda index: sum(_fits(index, name, stamps[name]) for name in stamps), default=None
    )


def write_somewhere(names: ShardNames, parts: Sequence[Part]) -> ShardIndex:
    """Write the index beside the shards, or into the user's cache if that is not possible."""
    if not is_remote(names.base):
        try:
            return write_index(local_path(names.base) / FILE_NAME, parts)
        except OSError:  # shards are often read-only
            pass
    return write_index(cached_file(names.base), parts)


def _fits(index: ShardIndex, name: str, version: Stamp) -> bool:
    return name in index.shards and index.shards[name].stamp.fits(version)


def _digest(columns: Iterable[Any]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for column in columns:
        total.update(column)
    return total.hexdigest()


def _top_label(labels: Any) -> int:
    return int(np.maximum(labels, -1 - labels).max())


def _aligned(position: int) -> int:
    return -(-position // 64) * 64
