from __future__ import annotations

import numpy as np
import pytest
import torch

from cbam.data.augmentation import Augmentation
from cbam.data.hashing import uniform
from cbam.data.memory import MemoryImages

GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randint(1, 256, (40, 3, 10, 16), dtype=torch.uint8, generator=GENERATOR)
BOTH, CROP, FLIP = Augmentation("crop"), Augmentation("crop", flip=0.0), Augmentation("flip")
LABELS = [index % 4 for index in range(40)]


def images(**kwargs):
    return MemoryImages(PIXELS, LABELS, "abcd", mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4], **kwargs)


def test_normalisation_is_exact():
    item, label = images()[0, 7]
    expected = (
        PIXELS[7].numpy().astype(np.float32) / 255 - np.float32([0.5, 0.4, 0.3])[:, None, None]
    ) / np.float32([0.2, 0.3, 0.4])[:, None, None]
    assert item.dtype == torch.float32
    assert np.array_equal(item.numpy(), expected)
    assert label == 3


def test_without_augmentation_every_epoch_is_the_same():
    assert torch.equal(images()[0, 3][0], images().with_seed(9)[5, 3][0])


def one_by_one(index, epoch, seed):
    """Crop from a zero-padded frame, then flip, written out for one image in NumPy."""
    y, x, flip = (float(uniform(seed, epoch, index, which)) for which in range(3))
    frame = np.zeros((3, 12, 18), dtype=np.uint8)  # max(1, 10 // 8) = 1 on every side
    frame[:, 1:-1, 1:-1] = PIXELS[index]
    top, left = int(y * 3), int(x * 3)
    crop = frame[:, top : top + 10, left : left + 16]
    return crop[:, :, ::-1] if flip < 0.5 else crop


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_batch_is_what_one_image_at_a_time_gives(epoch):
    dataset = MemoryImages(PIXELS, LABELS, "abcd", mean=[0] * 3, std=[1] * 3, augmentation=BOTH).with_seed(5)
    batch = dataset.__getitems__([(epoch, index) for index in range(40)])
    for index, (item, _) in enumerate(batch):
        assert np.array_equal((item * 255).round().numpy(), one_by_one(index, epoch, 5).astype(np.float32))


def test_every_offset_and_both_orientations_occur():
    dataset = MemoryImages(PIXELS[:1, :1], [0], "ab", mean=[0], std=[1], augmentation=BOTH)
    seen = {dataset[epoch, 0][0].numpy().tobytes() for epoch in range(300)}
    assert len(seen) == 3 * 3 * 2


def test_no_flip_means_no_mirror_image():
    dataset = MemoryImages(PIXELS[:1, :1], [0], "ab", mean=[0], std=[1], augmentation=CROP)
    assert len({dataset[epoch, 0][0].numpy().tobytes() for epoch in range(300)}) == 3 * 3


def test_the_pictures_are_the_pixels_in_rgb():
    picture = images(augmentation=BOTH).picture(4)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), PIXELS[4].permute(1, 2, 0).numpy())
    grey = MemoryImages(PIXELS[:, :1], LABELS, "abcd", mean=[0], std=[1]).picture(4)
    assert np.array_equal(np.asarray(grey)[..., 2], PIXELS[4, 0].numpy())


def test_a_subset_is_a_view_in_the_order_given():
    part = images().subset([9, 2])
    assert part.labels == [1, 2]
    assert len(part) == 2
    assert torch.equal(part[0, 1][0], images()[0, 2][0])


def test_the_pixels_stay_untouched():
    before = PIXELS.clone()
    images(augmentation=BOTH).__getitems__([(0, index) for index in range(40)])
    assert torch.equal(PIXELS, before)
