"""Read the headers of a tar file: offset and size of each sample's image, and its class."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from numpy.typing import NDArray

from cbam.data.pictures import SUFFIXES
from cbam.data.scan import is_hidden, some
from cbam.errors import CBAMError

BLOCK = tarfile.BLOCKSIZE
LARGEST_IMAGE = 2**31  # bytes; decoded, it would be many times larger
_LARGEST_LABEL = 1 << 20  # bytes of a .cls or .json
_LABEL_KEYS = ("label", "cls")
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PADDING = b" \0"


@dataclass(frozen=True)
class Rows:
    """The samples of shards, in file order: 12 bytes each.

    Attributes:
        blocks: where the image begins in its shard, in units of 512 bytes (N,) uint32.
        sizes: its length in bytes (N,) uint32.
        labels: its class (N,) int32; -1 - class where the image was found to be unusable.
    """

    blocks: NDArray[np.uint32]
    sizes: NDArray[np.uint32]
    labels: NDArray[np.int32]


@dataclass
class _Sample:
    key: str
    image: tuple[int, int] | None = None
    labels: dict[str, int] = field(default_factory=dict)


def scan_tar(stream: IO[bytes], name: str, size: int, classes: Mapping[str, int]) -> Rows:
    """Read every header of a tar file, and the small files with the classes, but not the images.

    Args:
        stream: the tar file, seekable.
        name: what errors call it.
        size: its length in bytes.
        classes: class name -> label, for shards that hold names instead of numbers.

    Raises:
        CBAMError: it is compressed, damaged or cut off, holds links, devices or names that lead elsewhere, or a sample
            lacks its image or its class.
    """
    samples: list[_Sample] = []
    seen: set[str] = set()
    for member, read in _members(stream, name, size):
        folder, slash, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if is_hidden(base):
            continue
        key = f"{folder}{slash}{stem}"
        if not samples or samples[-1].key != key:
            if key in seen:
                raise CBAMError(f"{name}: the files of sample {some([key])} do not lie next to each other.")
            seen.add(key)
            samples.append(_Sample(key))
        _take(samples[-1], member, dot + suffix.lower(), read, name, classes)
    return _rows(samples, name)


def member_name(header: bytes, size: int) -> str | None:
    """Return the name in a tar `header` (512 bytes) if it belongs to a file of `size` bytes, otherwise None.

    As every read is checked by it, it does what is needed itself; tarfile's parser takes several times as long.
    """
    if len(header) != BLOCK or header[156:157] not in _FILES:
        return None
    try:
        length, checksum = int(header[124:136].strip(_PADDING), 8), int(header[148:156].strip(_PADDING), 8)
    except ValueError:
        return None
    # The checksum counts its own eight bytes as spaces; some old programs summed signed bytes.
    rest = header[:148] + b" " * 8 + header[156:]
    if length != size or (checksum != sum(rest) and checksum != sum(memoryview(rest).cast("b"))):
        return None
    return header[:100].split(b"\0")[0].decode("utf-8", "surrogateescape")


def _members(
    stream: IO[bytes], name: str, size: int
) -> Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]:
    try:
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                if member.isdir():
                    continue
                _refuse_hostile(member, name, size)
                yield member, lambda member=member: archive.extractfile(member).read()  # type: ignore[misc, union-attr]
            end = archive.offset
    except tarfile.ReadError as error:
        if name.endswith((".gz", ".tgz", ".bz2", ".xz", ".zst")) or "compress" in str(error):
            raise CBAMError(
                f"{name} is compressed and cannot be read at random. Unpack it to .tar."
            ) from error
        raise CBAMError(f"{name} is no tar file, or damaged or cut off: {error}. Fetch it again.") from error
    # tarfile stops at a damaged header without an error, as at the end.
    stream.seek(end)
    if stream.read(BLOCK) != bytes(BLOCK):
        raise CBAMError(f"{name} is damaged or cut off at byte {end:,} of {size:,}. Fetch it again.")


def _refuse_hostile(member: tarfile.TarInfo, name: str, size: int) -> None:
    shown = some([member.name])
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "no regular file"
        raise CBAMError(f"{name}: {shown} is {kind}; shards hold plain files only.")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise CBAMError(f"{name}: the name {shown} leads out of the archive. Do not trust this file.")
    if member.offset_data + member.size > size:
        raise CBAMError(
            f"{name} is cut off: {shown} should end at byte {member.offset_data + member.size:,} of {size:,}."
        )


def _take(
    sample: _Sample,
    member: tarfile.TarInfo,
    suffix: str,
    read: Callable[[], bytes],
    name: str,
    classes: Mapping[str, int],
) -> None:
    if suffix.endswith(SUFFIXES):
        if sample.image is not None:
            raise CBAMError(f"{name}: sample {some([sample.key])} holds two images.")
        if not 0 < member.size < LARGEST_IMAGE:
            raise CBAMError(
                f"{name}: {some([member.name])} has {member.size:,} bytes and cannot be an image."
            )
        sample.image = (member.offset_data // BLOCK, member.size)
    elif suffix in (".cls", ".json"):
        if member.size > _LARGEST_LABEL:
            raise CBAMError(f"{name}: {some([member.name])} has {member.size:,} bytes, too many for a label.")
        label = _label(read(), suffix, classes)
        if label is not None:
            sample.labels[suffix] = label


def _label(content: bytes, suffix: str, classes: Mapping[str, int]) -> int | None:
    value: object
    try:
        text = content.decode("utf-8").strip()
        value = text
        if suffix == ".json":
            fields = json.loads(text)
            value = next((fields[key] for key in _LABEL_KEYS if key in fields), None)
    except (ValueError, RecursionError, TypeError):
        return None
    if isinstance(value, str):
        digits = len(value) < 12 and value.isascii() and value.isdigit()
        value = classes.get(value, int(value) if digits else None)
    return value if type(value) is int and 0 <= value < 2**31 - 1 else None  # true and false are no classes


def _rows(samples: list[_Sample], name: str) -> Rows:
    if not samples:
        raise CBAMError(f"{name} holds no samples.")
    if lacking := [sample.key for sample in samples if sample.image is None]:
        raise CBAMError(f"{name}: {len(lacking):,} samples without an image: {some(lacking)}.")
    if lacking := [sample.key for sample in samples if not sample.labels]:
        raise CBAMError(
            f"{name}: {len(lacking):,} samples without a class: {some(lacking)}. Expected KEY.cls with a number, or "
            "KEY.json with a number as label; names need a classes.txt beside the shards."
        )
    images = [sample.image for sample in samples if sample.image is not None]
    labels = [sample.labels.get(".cls", sample.labels.get(".json", 0)) for sample in samples]
    return Rows(
        np.array([block for block, _ in images], dtype=np.uint32),
        np.array([size for _, size in images], dtype=np.uint32),
        np.array(labels, dtype=np.int32),
    )
