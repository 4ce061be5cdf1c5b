"""Split images for training and validation: reproducible, stratified by class, and stable when files are added."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from cbam.data.hashing import name_hash
from cbam.errors import CBAMError


def stratified_split(
    names: Sequence[str], labels: Sequence[int], val_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split into the indices of training and validation images, both in the order given.

    In each class the files with the lowest hash of (relative name, seed) validate, `val_fraction` of them rounded, at
    least one and not all. The hash does not depend on other files, so an added file moves at most one other.
    A class with a single image trains only.

    Args:
        names: relative name of every image; the same on every machine.
        labels: class of every image.
        val_fraction: share of validation images, between 0 and 1.
        seed: another seed gives another split.

    Raises:
        CBAMError: `val_fraction` is not between 0 and 1.

    >>> stratified_split(["a/1", "a/2", "a/3", "a/4", "b/1", "b/2"], [0, 0, 0, 0, 1, 1], 0.25, seed=0)
    ([0, 1, 2, 5], [3, 4])
    """
    if not 0 < val_fraction < 1:
        raise CBAMError(f"val_fraction must lie between 0 and 1, given {val_fraction}. Type for example: 0.2")
    validate: set[int] = set()
    for members in _by_class(labels).values():
        count = min(max(1, round(val_fraction * len(members))), len(members) - 1)
        validate.update(
            sorted(members, key=lambda index: (name_hash(names[index], seed), names[index]))[:count]
        )
    train = [index for index in range(len(names)) if index not in validate]
    return train, sorted(validate)


def balanced_subset(labels: Sequence[int], limit: int, side: str = "images") -> list[int]:
    """Return the indices of `limit` images, the same number of each class as far as there are enough.

    Within a class the first ones in file order are taken; the result is in file order too.

    Args:
        labels: class of every image.
        limit: how many images to keep; all of them if there are no more than that.
        side: name of the limit in the error.

    Raises:
        CBAMError: `limit` is smaller than the number of classes.

    >>> balanced_subset([0, 0, 0, 0, 1, 2, 2], limit=5)
    [0, 1, 4, 5, 6]
    """
    by_class = _by_class(labels)
    if limit < len(by_class):
        raise CBAMError(
            f"{side} must leave at least one image of each of the {len(by_class)} classes, given {limit}. "
            f"Type a number from {len(by_class)} up."
        )
    kept: list[int] = []
    remaining, waiting = limit, len(by_class)
    # Smallest class first: the share that it cannot fill goes to the others.
    for label in sorted(by_class, key=lambda label: (len(by_class[label]), -label)):
        share = remaining // waiting
        kept += by_class[label][:share]
        remaining -= min(share, len(by_class[label]))
        waiting -= 1
    return sorted(kept)


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    return members
