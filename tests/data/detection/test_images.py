import pickle

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from cbam.data.detection import load_detection
from cbam.data.pictures import BadImage
from tests.data.detection.layouts import coco_2017, coco_folder, coco_image, coco_object, save_image


def test_an_item_has_the_types_of_torchvision(tmp_path):
    data = load_detection(f"coco:{coco_2017(tmp_path)}")
    image, target = data.train[0]
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 40, 60)
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].canvas_size == (40, 60)
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert target["labels"].dtype == torch.int64
    assert target["iscrowd"].dtype == target["difficult"].dtype == torch.bool
    assert target["image_id"] == 9
    assert len(list(data.train)) == len(data.train) == 2


def test_workers_get_it_by_pickle_and_a_subset_is_a_view(tmp_path):
    data = load_detection(f"coco:{coco_2017(tmp_path)}")
    copy = pickle.loads(pickle.dumps(data.train))
    assert copy.digest() == data.train.digest()
    assert torch.equal(copy[0][0], data.train[0][0])
    assert [r.image_id for r in data.train.subset([1]).records] == [25]
    assert len(data.train) == 2


@pytest.mark.parametrize(
    ("annotated", "stored"), [((60, 40), True), ((40, 60), False)], ids=["as stored, COCO", "as shown"]
)
def test_an_image_is_turned_as_it_was_when_it_was_annotated(tmp_path, annotated, stored):
    images = [coco_image(1, "1.jpg", annotated), coco_image(2, "2.jpg")]
    root = coco_folder(tmp_path, [coco_object(1, 1), coco_object(2, 2)], images)
    save_image(tmp_path / "1.jpg", orientation=6)
    plain = load_detection(f"coco:{root}", val_fraction=0.5)
    (side, index) = next(
        (side, index)
        for side in (plain.train, plain.validation)
        for index, record in enumerate(side.records)
        if record.image_id == 1
    )
    image = side[index][0].numpy().transpose(1, 2, 0)
    assert image.shape[:2] == (annotated[1], annotated[0])
    row, column = np.unravel_index(image.sum(axis=2).argmax(), image.shape[:2])
    assert row > image.shape[0] // 2
    assert (column > image.shape[1] // 2) == stored  # the corner below right comes to lie below left


def test_a_file_that_vanished_says_so(tmp_path):
    data = load_detection(f"coco:{coco_2017(tmp_path)}")
    data.train.records[0].path.unlink()
    with pytest.raises(BadImage, match="missing file"):
        data.train[0]


def test_the_identity_changes_with_a_box_and_not_with_the_place(tmp_path):
    first = load_detection(f"coco:{coco_2017(tmp_path / 'a' / 'coco')}")
    same = load_detection(f"coco:{coco_2017(tmp_path / 'b' / 'coco')}")
    assert first.identity == same.identity
    file = tmp_path / "b" / "coco" / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text().replace("50.11", "50.12"))
    assert load_detection(f"coco:{tmp_path / 'b' / 'coco'}").identity != first.identity
