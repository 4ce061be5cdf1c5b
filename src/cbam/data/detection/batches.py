"""Batches of images of different sizes: lists, in which the images of a batch have nearly one aspect ratio."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from cbam.data.batches import make_loader
from cbam.data.detection.images import DetectionImages, Target
from cbam.data.detection.transforms import evaluation_transform, training_transform
from cbam.data.epoch_index import EpochDataset, EpochIndex
from cbam.data.hashing import hash64, permutation
from cbam.data.seeded import seeded
from cbam.errors import CBAMError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

DetectionItem = tuple[torch.Tensor, Target]
_ORDER_OF_BATCHES = 1  # a part of the key of random numbers


class PreparedDetection(EpochDataset[DetectionItem]):
    """Images as detectors take them: item (epoch, index) is a float32 tensor (3, H, W) on the 0..1 scale and a target.

    For training, regions of many objects and VOC's difficult objects are dropped (as py-faster-rcnn, ssd.pytorch do),
    and the augmentation is drawn from (seed, epoch, index). For evaluation nothing is changed.

    Args:
        images: the images.
        augmentation: one of `AUGMENTATIONS` for training, None for evaluation.
        image_size: see `training_transform`.
        max_size: likewise.

    Raises:
        CBAMError: an unknown augmentation, or sizes that cannot be.
    """

    def __init__(
        self,
        images: DetectionImages,
        augmentation: str | None,
        *,
        image_size: int = 800,
        max_size: int = 1333,
    ):
        self.images = images
        self.training = augmentation is not None
        self._grouped_by: int | None = None
        self._groups: NDArray[np.int64] | None = None
        self._transform = (
            evaluation_transform()
            if augmentation is None
            else training_transform(augmentation, image_size=image_size, max_size=max_size)
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: EpochIndex) -> DetectionItem:
        epoch, index = self._checked(at)
        image, target = self.images[index]
        if not self.training:
            return self._transform(image, target)
        kept = ~(target["iscrowd"] | target["difficult"])
        target = {key: value if key == "image_id" else _rows(value, kept) for key, value in target.items()}
        with seeded(int(hash64(self.seed, epoch, index))):
            image, target = self._transform(image, target)
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        return image, {**target, "area": sides.prod(dim=1)}

    def grouped(self, batch_size: int, ratios_per_octave: int = 3) -> Self:
        """Return a view whose shuffled order has images of one aspect ratio in each batch of `batch_size`.

        Ratios of width to height from 1/2 to 2 are divided into 2 x `ratios_per_octave` groups, with one more at each
        end, as in torchvision's reference. Its batches repeat images to fill the last of each group; here every image
        comes once an epoch, and the few that fill no batch of their own group share batches with neighbouring ratios.

        Args:
            batch_size: images a step, over all processes together.
            ratios_per_octave: 0 separates wide images from high ones only.

        Raises:
            CBAMError: a number out of range.
        """
        if batch_size < 1 or ratios_per_octave < 0:
            raise CBAMError(
                f"batch_size must be at least 1 and ratios_per_octave at least 0, given {batch_size} and "
                f"{ratios_per_octave}."
            )
        view = copy.copy(self)
        view._grouped_by = batch_size
        ratios = np.array([record.width / record.height for record in self.images.records])
        edges = 2 ** np.linspace(-1, 1, 2 * ratios_per_octave + 1) if ratios_per_octave else np.ones(1)
        view._groups = np.searchsorted(edges, ratios, side="right")
        return view

    def order(self, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
        """Return the indices (len(self),) in the order of one epoch: a pure function of (seed, epoch)."""
        order = super().order(seed, epoch, shuffle)
        if self._grouped_by is None or self._groups is None or not shuffle:
            return order
        return _grouped_order(order, self._groups, self._grouped_by, seed, epoch)


def _grouped_order(
    order: NDArray[np.int64], groups: NDArray[np.int64], size: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    whole = (
        len(order) // size * size
    )  # the images of the last, smaller batch are chosen by chance, not by their ratio
    order, last = order[:whole], order[whole:]
    full, rest = [], []
    for group in np.unique(groups):
        members = order[groups[order] == group]
        cut = len(members) // size * size
        full.append(members[:cut])
        rest.append(members[cut:])
    batches = np.concatenate([*full, *rest, np.zeros(0, dtype=np.int64)]).reshape(-1, size)
    mixed = permutation(len(batches), int(hash64(seed, _ORDER_OF_BATCHES)), epoch)
    return np.concatenate([batches[mixed].ravel(), last])


def make_detection_loader(
    dataset: PreparedDetection,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    workers: int = 0,
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
    ratios_per_octave: int | None = 3,
) -> DataLoader[Any]:
    """Return a loader of (list of images, list of targets); `loader.batch_sampler` is its `EpochBatches`.

    Args:
        dataset: the images.
        batch_size: images a step over all processes, at least 1.
        seed: seed of the order and of the augmentation.
        shuffle: whether to shuffle each epoch; call `loader.batch_sampler.set_position(epoch, step)` before it.
        workers: number of worker processes; it changes the speed, not the data.
        drop_last: drop the last step if it is smaller than the others.
        rank: number of this process, from 0; it gets its share of every step.
        world: number of processes.
        ratios_per_octave: groups of aspect ratios, see `PreparedDetection.grouped`; None for none.

    Raises:
        CBAMError: see `cbam.data.make_loader`.
    """
    if shuffle and ratios_per_octave is not None:
        dataset = dataset.grouped(max(1, batch_size), ratios_per_octave)
    return make_loader(
        dataset,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        workers=workers,
        drop_last=drop_last,
        rank=rank,
        world=world,
        collate=as_lists,
    )


def as_lists(items: Sequence[DetectionItem]) -> tuple[list[torch.Tensor], list[Target]]:
    """Make a batch of items: their images and their targets, each a list.

    >>> as_lists([("a", {"image_id": 1}), ("b", {"image_id": 2})])
    (['a', 'b'], [{'image_id': 1}, {'image_id': 2}])
    """
    return [image for image, _ in items], [target for _, target in items]


def _rows(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    rows = values[kept]
    return tv_tensors.wrap(rows, like=values) if isinstance(values, tv_tensors.TVTensor) else rows
