"""Random numbers as a pure function of a key such as (seed, epoch, index)."""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the output of the SplitMix64 generator in each `state` (Steele, Lea and Flood, OOPSLA 2014).

    Args:
        state: any shape, uint64.

    >>> int(splitmix64(np.array([1234567], dtype=np.uint64))[0])
    6457827717110365317
    """
    with np.errstate(over="ignore"):
        z = state + _GAMMA
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        return z ^ (z >> np.uint64(31))


def hash64(*key: ArrayLike) -> NDArray[np.uint64]:
    """Return one 64-bit number for each key; its parts are broadcast like NumPy arrays.

    Args:
        key: integers or integer arrays, for example seed, epoch, indices (N,); negative ones wrap around.

    >>> hash64(0, 1, [5, 6]).shape
    (2,)
    >>> bool(hash64(0, 1, 5) == hash64(0, 1, [5, 6])[0])
    True
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        array = np.asarray(part & 0xFFFFFFFFFFFFFFFF if isinstance(part, int) else part)
        state = splitmix64(state ^ array.astype(np.uint64))
    return state if any(np.ndim(part) for part in key) else state[0]


def uniform(*key: ArrayLike) -> NDArray[np.float64]:
    """Return one float64 in [0, 1) for each key, from the upper 53 bits of `hash64`.

    >>> bool(0 <= uniform(0, 1, 2) < 1)
    True
    """
    return (hash64(*key) >> np.uint64(11)) * 2.0**-53


def permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of `size` items in one epoch, (size,) int64.

    Sorting hashes, rather than a library's shuffle, keeps the order the same for every version of NumPy and torch.

    >>> sorted(permutation(4, seed=0, epoch=1).tolist())
    [0, 1, 2, 3]
    """
    return np.argsort(hash64(seed, epoch, np.arange(size)), kind="stable")


def name_hash(name: str, seed: int) -> int:
    """Return a 64-bit number for a file's relative name, the same on every system and for every form of Unicode.

    >>> name_hash("cat/e\u0301.jpg", 0) == name_hash("cat/\u00e9.jpg", 0)
    True
    """
    text = f"{seed}\0{unicodedata.normalize('NFC', name)}"
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big"
    )
