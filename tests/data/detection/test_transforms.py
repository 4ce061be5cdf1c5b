import pytest
import torch
from torchvision import tv_tensors

from cbam.data.detection.transforms import AUGMENTATIONS, evaluation_transform, training_transform
from cbam.errors import CBAMError


def scene(size=(48, 64), boxes=((4, 6, 30, 40), (10, 10, 60, 20), (0, 0, 64, 48)), seed=0):
    """Each object is a rectangle of 255 in its own mask; the image is noise."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = 1
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    box = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    return tv_tensors.Image(image), {
        "boxes": tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=size),
        "labels": torch.arange(1, count + 1),
        "image_id": 5,
        "iscrowd": torch.zeros(count, dtype=torch.bool),
        "difficult": torch.zeros(count, dtype=torch.bool),
        "area": (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        "masks": tv_tensors.Mask(masks),
    }


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_masks_and_labels_stay_together(name):
    transform = training_transform(name, image_size=48, max_size=90)
    shapes, counts = set(), set()
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = transform(*scene())
        shapes.add(tuple(image.shape))
        counts.add(len(target["boxes"]))
        assert type(image) is type(target["boxes"]) is type(target["masks"]) is torch.Tensor
        assert image.dtype == torch.float32
        assert 0 <= image.min() <= image.max() <= 1
        height, width = image.shape[1:]
        assert target["masks"].shape[1:] == (height, width)
        assert target["image_id"] == 5
        for box, mask, label in zip(target["boxes"], target["masks"], target["labels"], strict=True):
            x1, y1, x2, y2 = box.tolist()
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
            if len(rows) and min(x2 - x1, y2 - y1) > 3:
                found = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
                assert found == pytest.approx([x1, y1, x2, y2], abs=1.5), (label, box)
    assert (len(shapes) > 1) == (name in ("ssd", "multiscale"))
    assert (counts == {3}) == (name in ("flip", "multiscale"))  # the others cut objects off


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(48, 64), (1, 1), (3, 2), (1, 90)])
def test_images_without_objects_and_tiny_ones(name, size):
    transform = training_transform(name, image_size=16, max_size=90)
    for seed in range(5):
        torch.manual_seed(seed)
        _, target = transform(*scene(size, ()))
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)
        torch.manual_seed(seed)
        _, target = transform(*scene(size, ((0, 0, size[1], size[0]),)))
        assert len(target["boxes"]) <= 1


def test_boxes_without_a_pixel_are_dropped_and_overhang_is_clipped():
    image, target = scene(boxes=((4, 6, 30, 40), (10, 10, 20, 20), (30, 0, 50, 20)))
    target["boxes"][1, 2] = 10.5
    target["boxes"][2, 2] = 64.9
    torch.manual_seed(1)
    _, target = training_transform("flip")(image, target)
    assert target["labels"].tolist() == [1, 3]
    assert len(target["masks"]) == len(target["iscrowd"]) == len(target["area"]) == 2
    assert target["boxes"][1].tolist() in ([30, 0, 64, 20], [0, 0, 34, 20])


def test_multiscale_draws_short_sides_up_to_the_limit():
    sides = set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, _ = training_transform("multiscale", image_size=50, max_size=60)(*scene())
        sides.add(min(image.shape[1:]))
        assert max(image.shape[1:]) <= 60
    assert min(sides) == 30
    assert max(sides) == 45  # 60 x 45: the long side is at its limit


def test_evaluation_changes_nothing_but_the_type():
    image, target = scene()
    prepared, same = evaluation_transform()(image, target)
    assert torch.equal((prepared * 255).round().to(torch.uint8), image)
    assert type(same["boxes"]) is torch.Tensor
    assert torch.equal(same["boxes"], target["boxes"].as_subclass(torch.Tensor))


def test_wrong_names_and_sizes():
    with pytest.raises(CBAMError, match=r"unknown augmentation 'sdd'. Did you mean 'ssd'\?"):
        training_transform("sdd")
    with pytest.raises(CBAMError, match="1 <= image_size <= max_size"):
        training_transform("flip", image_size=800, max_size=600)
