"""Classes of unequal size: an order in which each comes equally often, and weights that make up for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cbam.data.hashing import hash64, permutation

REPEAT = 1 << 32
"""Added to the epoch of an item for each time that its image has come before in the epoch, so that it is augmented
differently."""


def balanced_order(
    labels: Sequence[int], seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return an order of one epoch in which every class comes equally often, up to one image.

    As many images as there are, (N,): those of a small class come several times, of a large one a part, another in
    every epoch. It is a function of (seed, epoch), as the plain order is.

    Args:
        labels: class of every image; only classes that have images count.
        seed: of the order.
        epoch: counted from 0.

    Returns:
        The indices, and how often each image has come before.

    >>> indices, repeats = balanced_order([0, 0, 0, 0, 0, 1], seed=0, epoch=0)
    >>> sorted(indices.tolist()).count(5), sorted(repeats.tolist())
    (3, [0, 0, 0, 0, 1, 2])
    """
    of = np.asarray(labels, dtype=np.int64)
    classes = np.unique(of)
    # Which class gets one more is another one in every epoch.
    shares = np.bincount((np.arange(len(of)) + epoch) % len(classes), minlength=len(classes))
    indices, repeats = [], []
    for label, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(of == label)
        rounds = [
            members[np.argsort(hash64(seed, epoch, number, members), kind="stable")]
            for number in range(-(-int(share) // len(members)))
        ]
        if rounds:
            indices.append(np.concatenate(rounds)[:share])
            repeats.append(np.arange(share) // len(members))
    order = permutation(len(of), seed, epoch)
    return np.concatenate(indices)[order], np.concatenate(repeats)[order]


def class_weights(counts: Sequence[int]) -> list[float]:
    """Return a weight for each class, inversely proportional to its number of images; their mean over images is 1.

    Args:
        counts: images of each class; one without images gets 1.

    >>> class_weights([30, 10, 0])
    [0.6666666666666666, 2.0, 1.0]
    """
    present = [count for count in counts if count]
    return [sum(present) / (len(present) * count) if count else 1.0 for count in counts]
