"""The detector of a run before training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cbam.detect.build import build, detector_arguments
from cbam.detect.config import DetectorConfig

CONFIG = DetectorConfig(data="coco:x", model="ssd300_vgg16", width=1 / 8)


@pytest.mark.parametrize("model", ["ssd300_vgg16", "stairnet300_vgg16"])
def test_new_vgg_starts_with_maps_of_ordinary_size(model):
    detector = build(replace(CONFIG, model=model), "none", 0, 3).eval()
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        batch = detector.transform([image])[0].tensors
        vgg = detector.backbone.maps if model.startswith("stairnet") else detector.backbone
        maps = vgg(batch)
    assert all(maps[key].abs().max() < 20 for key in "12345")  # the first is divided by its norm


def test_vgg_with_weights_keeps_the_range_that_they_were_trained_with(tmp_path):
    assert "image_std" in detector_arguments(CONFIG, "none", None, 3)
    for other in (
        replace(CONFIG, weights=tmp_path / "vgg16.pth"),
        replace(CONFIG, model="ssd300_mobilenet"),
    ):
        assert "image_std" not in detector_arguments(other, "none", None, 3)
