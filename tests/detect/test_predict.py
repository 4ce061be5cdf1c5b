"""Objects in the user's pictures: files found, drawn and written; bad ones named before anything is done."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from cbam.detect.predict import FILE, find_pictures, predict
from cbam.errors import CBAMError


class BrightBox(nn.Module):
    """A detector without training: the box around all bright pixels scores 0.9, the whole image 0.3."""

    def __init__(self, masks=False):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.9))
        self.masks, self.batches = masks, []

    def forward(self, images):
        assert not self.training
        self.batches.append(len(images))
        return [self.one(image) for image in images]

    def one(self, image):
        assert image.dtype == torch.float32
        assert image.max() <= 1
        bright = image.mean(0) > self.threshold
        ys, xs = torch.nonzero(bright, as_tuple=True)
        height, width = bright.shape
        boxes = [[0.0, 0.0, width, height]]
        if len(ys):
            boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        found = {
            "boxes": torch.tensor(boxes) + 0.001,
            "labels": torch.tensor([1, 2])[: len(boxes)],
            "scores": torch.tensor([0.3, 0.9])[: len(boxes)],
        }
        if self.masks:
            found["masks"] = torch.stack([torch.ones_like(bright), bright]).float()[: len(boxes), None]
        return found


def photo(path, size=(60, 40), box=(10, 5, 30, 25), **options):
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    if box:
        pixels[box[1] : box[3], box[0] : box[2]] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    photo(tmp_path / "photos" / "b.png")
    photo(tmp_path / "photos" / "a" / "c.png", size=(50, 50))
    photo(tmp_path / "photos" / "a" / ".hidden.png")
    photo(tmp_path / "photos" / "dark.bmp", box=None)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


CLASSES = ("<thing>", "bright box")


def test_what_is_written(folder, tmp_path):
    detector = BrightBox().train()
    single = photo(tmp_path / "single.jpg", quality=100)
    done = []
    told = predict(
        detector, [single, folder], CLASSES, tmp_path / "found", category_ids=(7, 90), batch_size=3,
        on_image=lambda *progress: done.append(progress),
    )  # fmt: skip
    rows = json.loads((tmp_path / "found" / FILE).read_text(encoding="utf-8"))
    assert rows == told.detections
    files = [single, folder / "a" / "c.png", folder / "b.png", folder / "dark.bmp"]
    assert list(told.pictures) == files
    assert [row["file_name"] for row in rows] == [str(file) for file in files[:3]]
    assert [row["image_id"] for row in rows] == [1, 2, 3]
    assert rows[1] == {
        "image_id": 2,
        "file_name": str(files[1]),
        "category_id": 90,
        "category_name": "bright box",
        "bbox": [10.0, 5.0, 20.0, 20.0],
        "score": 0.9,
    }
    assert detector.training
    assert detector.batches == [3, 1]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    written = sorted(
        path.relative_to(tmp_path / "found").as_posix() for path in (tmp_path / "found").rglob("*.*g")
    )
    assert written == ["a/c.png", "b.png", "dark.png", "single.jpg"]
    assert Image.open(tmp_path / "found" / "b.png").size == (480, 320)
    assert told.skipped == {}


def test_everything_with_a_score_of_zero(folder, tmp_path):
    rows = predict(BrightBox(), [folder], CLASSES, tmp_path / "found", least_score=0).detections
    assert [(row["image_id"], row["score"]) for row in rows] == [
        (1, 0.9), (1, 0.3), (2, 0.9), (2, 0.3), (3, 0.3),
    ]  # fmt: skip
    assert rows[0]["category_id"] == 2


def test_masks(folder, tmp_path):
    rows = predict(BrightBox(masks=True), [folder / "b.png"], CLASSES, tmp_path / "found").detections
    mask = coco_masks.decode(rows[0]["segmentation"])
    assert mask.shape == (40, 60)
    assert mask.sum() == mask[5:25, 10:30].sum() == 400


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown 40 wide, 60 high
    photo(tmp_path / "phone.jpg", exif=exif, quality=100)
    told = predict(BrightBox(), [tmp_path / "phone.jpg"], CLASSES, tmp_path / "found")
    assert told.detections[0]["bbox"] == pytest.approx([15, 10, 20, 20], abs=1)
    assert Image.open(tmp_path / "found" / "phone.jpg").size == (320, 480)


def test_a_real_detector(folder, tmp_path):
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    detector = FasterRCNN(
        backbone, 3, min_size=64, max_size=64, box_score_thresh=0.0, rpn_post_nms_top_n_test=20
    )
    first = predict(detector, [folder], CLASSES, tmp_path / "one", least_score=0.1).detections
    assert first
    assert predict(detector, [folder], CLASSES, tmp_path / "two", least_score=0.1).detections == first


def test_bad_files_are_named_before_anything_is_done(folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (folder / "empty.png").write_bytes(b"")
    detector = BrightBox()
    with pytest.raises(
        CBAMError, match=r"2 of 5 images cannot be read; skip_bad .*broken\.jpg: .*empty\.png: empty"
    ):
        predict(detector, [folder], CLASSES, tmp_path / "found")
    assert detector.batches == []
    assert not (tmp_path / "found").exists()
    told = predict(detector, [folder], CLASSES, tmp_path / "found", skip_bad=True)
    assert [path.name for path in told.skipped] == ["broken.jpg", "empty.png"]
    assert len(told.pictures) == 3


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["nowhere"], "nowhere is neither a folder nor an image file"),
        (["notes.txt"], r"notes\.txt is neither a folder nor an image file \(\.jpg"),
        (["none.jpg"], r"none\.jpg: missing file"),
        (["hollow"], "there is no image in"),
    ],
)
def test_sources_that_cannot_be_used(folder, tmp_path, sources, message):
    (folder / "hollow").mkdir()
    with pytest.raises(CBAMError, match=message):
        predict(BrightBox(), [folder / name for name in sources], CLASSES, tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_the_output_must_be_empty(folder, tmp_path):
    with pytest.raises(CBAMError, match="photos is not an empty folder"):
        predict(BrightBox(), [folder], CLASSES, folder)
    (tmp_path / "found").mkdir()
    predict(BrightBox(), [folder], CLASSES, tmp_path / "found")


def test_nothing_found_is_an_empty_list(folder, tmp_path):
    predict(BrightBox(), [folder / "dark.bmp"], CLASSES, tmp_path / "found")
    assert json.loads((tmp_path / "found" / FILE).read_text()) == []


def test_names_of_drawings_are_unique(tmp_path):
    for name in ("one/a.png", "one/a.bmp", "two/a.png", "two/A-2.png"):
        photo(tmp_path / name)
    names = find_pictures([tmp_path / "one", tmp_path / "two", tmp_path / "one" / "a.png"])
    assert list(names.values()) == ["a.png", "a-2.png", "A-2-2.png", "a-3.png"]
