"""Any batch trains: no object in it, no proposal, one image, and in every kind of detector."""

import math

import pytest
import torch

from cbam.models.detection import build_detector
from tests.models.detection.images import IMAGES, found, losses, options

DETECTORS = (
    "fasterrcnn_resnet18_fpn", "fasterrcnn_resnet18_c4", "fasterrcnn_mobilenet_v1_fpn", "maskrcnn_resnet18_fpn",
    "retinanet_resnet18_fpn", "fcos_resnet18_fpn",
    "ssd300_vgg16", "ssd300_mobilenet", "stairnet300_vgg16", "stairnet300_mobilenet",
)  # fmt: skip


@pytest.mark.parametrize("name", DETECTORS)
def test_any_batch(name):
    torch.manual_seed(0)
    official = {"preset": "official"}  # whose gates have norms
    model = build_detector(name, 2, attention="cbam", attention_options=official, **options(name))
    for counts, threshold in (((2, 0), 0.0), ((1,), 1.1), ((0,), 1.1)):  # with all proposals, or none
        if "rcnn" in name:
            model.rpn.score_thresh = threshold
        model.zero_grad()
        loss = sum(losses(model, counts).values())
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert math.isfinite(loss.item()), counts
        assert gradients
        assert all(g.isfinite().all() for g in gradients), counts
    boxes = found(model, IMAGES[:1])[0]["boxes"]
    assert boxes.shape[1] == 4
    assert len(boxes) == 0 or "rcnn" not in name


def test_the_masks_have_the_size_of_the_image():
    model = build_detector("maskrcnn_resnet18_fpn", 2, box_score_thresh=0.0, **options("maskrcnn"))
    first, second = found(model, [IMAGES[0], IMAGES[1][:, :50]])
    assert first["masks"].shape == (len(first["boxes"]), 1, 64, 80)
    assert second["masks"].shape == (len(second["boxes"]), 1, 50, 80)
