"""Parameters, counted by hand from the paper's Table 7 and torchvision's pages, and where attention sits."""

import pytest

from cbam.attach import WithAttention
from cbam.models.detection import build_detector
from tests.models.detection.images import parameters

OFFICIAL = {"preset": "official"}


def sites(model):
    return [(name, m.position, m.cbam) for name, m in model.named_modules() if isinstance(m, WithAttention)]


@pytest.mark.parametrize(
    ("name", "norm", "expected"),
    [
        ("fasterrcnn_resnet50_fpn", "frozen", 41_755_286),
        ("fasterrcnn_resnet50_fpn", "batch", 41_808_406),
        ("maskrcnn_resnet50_fpn", "frozen", 44_401_393),
        ("retinanet_resnet50_fpn", "frozen", 34_014_999),
        ("fcos_resnet50_fpn", "frozen", 32_269_600),
        ("fasterrcnn_mobilenet_v3_large_fpn", "frozen", 19_386_354),
    ],
)
def test_torchvision_s(name, norm, expected):
    assert parameters(build_detector(name, 90, norm=norm)) == expected


@pytest.mark.parametrize("backbone", ["resnet50", "paper_resnet50"])
@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_the_paper_s_attention_in_the_backbone(backbone, neck):
    name = f"fasterrcnn_{backbone}_{neck}"
    plain = build_detector(name, 80)
    model = build_detector(name, 80, attention="cbam", attention_options=OFFICIAL)
    assert parameters(model) - parameters(plain) == 2_532_592  # as in the classifier
    found = [name for name, _, _ in sites(model)]
    assert len(found) == 16
    last = {"fpn": "backbone.body.layer4", "c4": "roi_heads.box_head.layer4"}[neck]
    assert [name for name in found if "layer4" in name] == [f"{last}.{i}.bn3" for i in range(3)]


# 20 classes. In the paper, in millions: 26.5, 32.0, 32.1, 32.1; 5.81, 5.98, 5.99, 6.00.
@pytest.mark.parametrize(
    ("name", "attention", "expected"),
    [
        ("ssd300_vgg16", "none", 26_515_936),
        ("stairnet300_vgg16", "none", 32_005_600),
        ("stairnet300_vgg16", "se", 32_056_384),
        ("stairnet300_vgg16", "cbam", 32_056_984),
        ("ssd300_mobilenet", "none", 5_815_264),
        ("stairnet300_mobilenet", "none", 5_976_672),
        ("stairnet300_mobilenet", "se", 5_989_776),
        ("stairnet300_mobilenet", "cbam", 5_990_376),
    ],
)
def test_the_paper_s_table_7(name, attention, expected):
    options = OFFICIAL if attention == "cbam" else {}
    model = build_detector(name, 20, attention=attention, attention_options=options)
    assert parameters(model) == expected
    width = 256 if "vgg16" in name else 128
    found = [(name, position, gate.in_channels) for name, position, gate in sites(model)]
    levels = range(6) if attention != "none" else ()
    assert sorted(found) == [(f"backbone.last.{i}.2", "output", width) for i in levels]
    if "mobilenet" in name:
        printed = {
            "none": {"ssd300": 5.81, "stairnet300": 5.98}[name.split("_")[0]],
            "se": 5.99,
            "cbam": 6.00,
        }
        assert abs(expected / 1e6 / printed[attention] - 1) < 0.005


def test_ssd300_with_the_boxes_of_torchvision():
    model = build_detector("ssd300_vgg16", 20, boxes="voc")
    assert parameters(model) == 26_285_486
    assert parameters(build_detector("ssd300_vgg16", 90, boxes="coco")) == 35_641_826
