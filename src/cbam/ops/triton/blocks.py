"""How the map is divided into programs and tiles: heuristics by shape, memory format and number of multiprocessors.

A thread has 16 or 32 elements of a tile, and its longer side is the contiguous axis. Programs read long pieces, but
every multiprocessor needs a few programs, so a small batch is divided more finely.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

import torch

from cbam.ops.triton.mode import INTERPRETED

PROGRAMS_PER_MULTIPROCESSOR = 1 if INTERPRETED else 6


class Tile(NamedTuple):
    """Channels and positions of a tile, and the warps that work on it."""

    channels: int
    positions: int
    warps: int


SMALL = Tile(32, 16, 1)
"""The interpreter's."""


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors the device has."""
    return 2 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(4096)
def tile(
    elements: int, shortest: int, channels: int, positions: int, channels_last: bool, warps: int
) -> Tile:
    """Return a tile of about `elements`, at least `shortest` long on the axis that is not contiguous."""
    if INTERPRETED:  # small, so that a test's maps have several
        return SMALL
    contiguous, other = (channels, positions) if channels_last else (positions, channels)
    long = min(_power_of_two(contiguous), 256, elements // shortest)
    short = max(1, min(_power_of_two(other), elements // long))
    return Tile(long, short, warps) if channels_last else Tile(short, long, warps)


@lru_cache(4096)
def across(
    samples: int, channels: int, positions: int, channels_last: bool, itemsize: int, device: torch.device,
    elements: int = 4096, longest: int = 256, shortest: int = 64,
) -> Tile:  # fmt: skip
    """Return a tile for a program that has all channels of its positions, fewer positions for a small batch.

    Args:
        samples, channels, positions, channels_last: of the map.
        itemsize: bytes of one of its elements.
        device: of the map.
        elements: of a tile, at most.
        longest: channels of a tile, at most.
        shortest: positions of a tile, at most, in channels_last.
    """
    if INTERPRETED:
        return SMALL
    if not channels_last:
        return tile(min(elements, 2048), 8, channels, positions, False, 4)
    block = min(_power_of_two(channels), longest)
    count = max(1, min(shortest, elements // block, _power_of_two(positions)))
    while count > 1 and samples * -(-positions // count) < 3 * multiprocessors(device):
        count //= 2
    # A thread reads 16 bytes at once, and no lane of a warp should idle.
    block = min(_power_of_two(channels), max(block, 512 // itemsize // count))
    threads = max(32, min(128, block * count * itemsize // 16))
    return Tile(block, count, threads // 32)


@lru_cache(4096)
def parts(whole: int, block: int, others: int, device: torch.device, at_most: int = 64) -> tuple[int, int]:
    """Return (number, size) of the parts that an axis is divided into so that all multiprocessors have work.

    Args:
        whole: length of the axis.
        block: the tile's side along it; a part is a multiple of it.
        others: number of programs along the other axes.
        device: of the map.
        at_most: number of parts, each of which leaves partial sums to be added.

    >>> parts(3136, 16, 10**6, torch.device("cpu"))
    (1, 3136)
    """
    blocks = -(-whole // block)
    wanted = -(-PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device) // others)
    size = -(-blocks // max(1, min(wanted, blocks, at_most)))
    return -(-blocks // size), size * block


def finer(size: Tile, others: int, channels: int, device: torch.device) -> Tile:
    """Return a tile of fewer channels, down to 64, if otherwise some multiprocessors had no program.

    With 32, threads of a warp would share short rows, and `apply` takes 4 times the instructions for an element.

    Args:
        size: the tile for large batches.
        others: number of programs along the other axes.
        channels: of the map.
        device: of the map.
    """
    count = size.channels
    while count > 64 and others * -(-channels // count) < multiprocessors(device):
        count //= 2
    return size._replace(channels=count)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
