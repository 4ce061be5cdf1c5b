"""Policies of augmentation: drawn from (seed, epoch, index) alone, and a validation that cuts no object away."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cbam.data import load_data
from cbam.data.augmentation import AUGMENTATIONS
from cbam.errors import CBAMError
from tests.data.pictures_on_disk import photo_folder

DRAWN = [policy for policy in AUGMENTATIONS if policy != "none"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("photos"), 4)


def items(dataset, epoch=2):
    return torch.stack([dataset[epoch, index][0] for index in range(8)])


@pytest.mark.parametrize("policy", DRAWN)
@pytest.mark.parametrize("source", ["digits", "photos"])
def test_an_item_depends_on_seed_epoch_and_index_only(source, policy, photos, request):
    data = {"data": "digits", "flip": 0.5} if source == "digits" else {"data": photos, "image_size": 24}
    train = load_data(**data, augment=policy).train.with_seed(3)
    torch.manual_seed(0)
    first = items(train)
    torch.manual_seed(1)
    again = [train.__getitems__([(2, index)])[0][0] for index in reversed(range(8))]
    assert torch.equal(first, torch.stack(again[::-1])), "neither the order nor torch's generator matter"
    together = torch.stack([image for image, _ in train.__getitems__([(2, index) for index in range(8)])])
    assert torch.equal(first, together)
    assert not torch.equal(first, items(train, epoch=3))
    assert not torch.equal(first, items(train.with_seed(4)))


def test_without_augmentation_training_images_are_seen_as_in_validation(photos):
    train = load_data(photos, image_size=24, augment="none").train
    assert torch.equal(items(train), items(train.with_seed(5), epoch=9))
    shown = np.asarray(train.picture(0)).astype(np.float32) / 255
    pixels = train[0, 0][0] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    pixels += torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    assert np.allclose(pixels.permute(1, 2, 0), shown, atol=1e-5)


def framed(folder, size):
    """Put one picture of a white frame, two pixels wide, on black into two classes."""
    picture = np.full((size, size, 3), 255, np.uint8)
    picture[2:-2, 2:-2] = 0
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    return folder


def test_a_small_picture_is_validated_whole(tmp_path):
    edge = np.asarray(load_data(framed(tmp_path, 32), image_size=32).val.picture(0))[:, 0]
    assert (edge == 255).all(), "the frame is cut off"


def test_a_large_one_is_cut_as_usual_and_by_option_not_at_all(tmp_path):
    framed(tmp_path, 112)
    default = load_data(tmp_path, image_size=112)
    assert default.resize == 128
    assert (np.asarray(default.val.picture(0))[56, 0] == 0).all()
    whole = load_data(tmp_path, image_size=112, resize=112)
    assert (np.asarray(whole.val.picture(0))[56, 0] == 255).all()


def test_a_crop_shows_no_less_than_its_smallest_share(tmp_path):
    """Colours rise from left to right: how far they span is how much of the width is seen."""
    ramp = np.zeros((96, 96, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 96)[None, :]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(ramp).save(tmp_path / name / f"{number}.png")

    def least(crop):
        train = load_data(tmp_path, image_size=96, crop=crop, flip=0, mean=[0], std=[1]).train
        rows = torch.stack([train[epoch, 0][0][0, 48] for epoch in range(30)])
        return float((rows[:, -1] - rows[:, 0]).min())

    assert least("0.9") > 0.75
    assert least(None) < 0.6


def test_mirroring_follows_its_probability(photos):
    plain = items(load_data(photos, image_size=24, augment="none").train)
    always = items(load_data(photos, image_size=24, augment="flip", flip=1).train)
    assert torch.equal(always, plain.flip(-1))
    drawn = load_data(photos, image_size=24, augment="flip").train
    mirrored = [
        torch.equal(drawn[epoch, index][0], plain[index].flip(-1)) for epoch in range(8) for index in range(8)
    ]
    assert 16 < sum(mirrored) < 48
    digits = load_data("digits")
    assert not digits.train.augmentation.mirrors, "a mirrored digit is another sign"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"augment": "trivia"}, "--augment.*Did you mean 'trivial'"),
        ({"crop": "half"}, "--crop takes the smallest share of the area.*given 'half'"),
        ({"crop": "0"}, "--crop takes the smallest share"),
        ({"flip": 1.5}, "--flip is a probability from 0 to 1, given 1.5"),
        ({"resize": 20}, "--resize 20 is less than the image size, 24"),
        ({"augment": "none", "flip": 0.5}, "--flip 0.5 has no effect with --augment none"),
        ({"augment": "flip", "crop": "0.5"}, "--crop 0.5 has no effect with --augment flip"),
    ],
)
def test_what_cannot_be_is_refused(photos, given, message):
    with pytest.raises(CBAMError, match=message):
        load_data(photos, image_size=24, **given)


@pytest.mark.parametrize("given", [{"resize": 8}, {"crop": "0.5"}])
def test_built_in_images_are_not_resized_and_cut(given):
    with pytest.raises(CBAMError, match="has no effect on digits"):
        load_data("digits", **given)
