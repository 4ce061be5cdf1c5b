"""Detections on pictures: what is drawn where, at any size; names that fit; panels and their folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cbam.errors import CBAMError
from cbam.explain.detection_pictures import detection_pictures, first_with_objects
from cbam.explain.detections import COLOURS, Objects, _ink, class_colour, draw_detections, side_by_side

CLASSES = ("cat", "dog", "bird")


def objects(boxes, labels, scores=None, **more):
    scores = None if scores is None else np.array(scores)
    return Objects(np.array(boxes, dtype=float).reshape(-1, 4), np.array(labels), scores, **more)


def grey(width, height):
    return Image.new("RGB", (width, height), (128, 128, 128))


def changed(drawn):
    return (np.asarray(drawn) != 128).any(2)


@pytest.mark.parametrize("size", [(1, 1), (8, 6), (300, 9), (9, 300), (640, 480), (3000, 2000)])
def test_any_size(size):
    width, height = size
    drawn = draw_detections(grey(*size), objects([[0, 0, width, height]] * 2, [1, 3], [0.9, 0.1]), CLASSES)
    assert drawn.width * height == drawn.height * width
    assert max(drawn.size) >= 480
    assert changed(drawn).any()


def test_a_box_is_where_it_should_be():
    found = draw_detections(grey(800, 600), objects([[200, 150, 600, 450]], [2]), CLASSES)
    pixels = np.asarray(found)
    colour = np.array(class_colour(2))
    for x, y in ((200, 300), (599, 300), (500, 150), (400, 449)):
        assert (pixels[y, x] == colour).all()
    inside = changed(found)[160:440, 210:590]
    assert not inside.any()
    assert not changed(found)[:, :190].any()
    assert not changed(found)[460:].any()


def test_boxes_grow_with_a_small_picture():
    found = np.asarray(draw_detections(grey(100, 60), objects([[20, 20, 60, 50]], [1]), CLASSES))
    assert found.shape == (300, 500, 3)
    assert (found[200, 100] == class_colour(1)).all()
    assert (found[200, 299] == class_colour(1)).all()


def test_names_do_not_cover_each_other_if_there_is_room():
    boxes = [[100, 100, 300, 300]] * 5
    one = changed(draw_detections(grey(640, 480), objects(boxes[:1], [1]), CLASSES))
    all_five = changed(draw_detections(grey(640, 480), objects(boxes, [1] * 5), CLASSES))
    frame = np.zeros((480, 640), dtype=bool)
    frame[98:302, 98:302] = True
    frame[104:296, 104:296] = False
    label = (one & ~frame).sum()
    assert (all_five & ~frame).sum() > 4.5 * label


def test_a_long_name_is_cut_and_its_score_stays():
    wide = draw_detections(grey(640, 480), objects([[10, 100, 60, 200]], [1], [0.5]), ["n" * 500])
    assert not changed(wide)[:, 400:].any()
    short = draw_detections(grey(640, 480), objects([[10, 100, 60, 200]], [1], [0.6]), ["n" * 500])
    assert (np.asarray(wide) != np.asarray(short)).any()  # the score is there


def test_unprintable_names_are_drawn():
    draw_detections(grey(64, 48), objects([[1, 1, 20, 20]], [1]), ["\n\x00\u202e"])


def test_a_mask_tints_its_pixels_and_no_others():
    mask = np.zeros((1, 480, 640), dtype=bool)
    mask[0, 200:300, 200:400] = True
    drawn = draw_detections(grey(640, 480), objects([[200, 200, 400, 300]], [2], masks=mask), CLASSES)
    middle = np.asarray(drawn)[250, 300]
    assert np.abs(middle - (0.6 * 128 + 0.4 * np.array(class_colour(2)))).max() <= 1
    assert (np.asarray(drawn)[350:] == 128).all()


def test_the_best_lies_on_top():
    drawn = np.asarray(
        draw_detections(grey(640, 480), objects([[100, 100, 300, 300]] * 2, [1, 2], [0.9, 0.8]), CLASSES)
    )
    assert (drawn[200, 100] == class_colour(1)).all()


def test_found_takes_what_scores_enough_and_the_best_first():
    detections = {
        "boxes": torch.tensor([[0.0, 0, 9, 9], [1, 1, 5, 5], [2, 2, 6, 6]]),
        "labels": torch.tensor([1, 2, 3]),
        "scores": torch.tensor([0.5, 0.4, 0.8]),
        "masks": torch.ones(3, 1, 10, 10),
    }
    found = Objects.found(detections, 0.5)
    assert found.labels.tolist() == [3, 1]
    assert found.boxes.tolist() == [[2, 2, 6, 6], [0, 0, 9, 9]]
    assert found.masks.shape == (2, 10, 10)
    assert Objects.found(detections, 0.95).masks is None


def test_the_ink_has_contrast_on_every_colour():
    def luminance(colour):
        parts = [c / 255 for c in colour]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    for colour in COLOURS:
        high, low = sorted((luminance(colour), luminance(_ink(colour))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5


class Split:
    """Three images, the second without objects."""

    def __init__(self):
        self.targets = [
            {
                "boxes": torch.tensor([[5.0, 5, 30, 30]] * count).reshape(-1, 4),
                "labels": torch.tensor([1] * count, dtype=torch.int64),
                "iscrowd": torch.tensor([True] * count, dtype=torch.bool),
                "difficult": torch.tensor([False] * count, dtype=torch.bool),
            }
            for count in (1, 0, 2)
        ]

    @property
    def records(self):
        return [type("Record", (), target) for target in self.targets]

    def __getitem__(self, index):
        return None, self.targets[index]

    def picture(self, index):
        return grey(64, 48)


NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
ONE = {"boxes": torch.tensor([[5.0, 5, 30, 30]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.7])}


def test_a_folder_of_pictures(tmp_path):
    split = Split()
    chosen = first_with_objects(split, 8)
    assert chosen == [0, 2]
    found = {"none": {0: NOTHING, 2: ONE}, "cbam:official": {0: ONE, 2: ONE}}
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "old.png").write_bytes(b"")
    detection_pictures(found, split, chosen, CLASSES, tmp_path / "pictures")
    manifest = json.loads((tmp_path / "pictures" / "pictures.json").read_text())
    assert [entry["index"] for entry in manifest["images"]] == [0, 2]
    panels = manifest["images"][0]["panels"]
    assert {name: panel["objects"] for name, panel in panels.items()} == {
        "true objects": 1, "none": 0, "cbam:official": 1,
    }  # fmt: skip
    files = {path.name for path in (tmp_path / "pictures").iterdir()}
    named = {panel["file"] for entry in manifest["images"] for panel in entry["panels"].values()}
    assert files == {"pictures.json", "image-0.png", "image-1.png"} | named
    assert Image.open(tmp_path / "pictures" / "image-0.png").width > 3 * 480
    with pytest.raises(CBAMError, match="nothing to draw: 0 images and 2 detectors"):
        detection_pictures(found, split, [], CLASSES, tmp_path / "pictures")


def test_panels_wrap():
    sheet = side_by_side({f"panel {i}": grey(120, 80) for i in range(5)}, columns=2)
    assert sheet.width == 2 * 120 + 4
    assert sheet.height > 3 * 80
