"""sites="head": right before every classifier, on torchvision's detectors and on networks known by reading them."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import cbam
from cbam.attach import WithAttention
from cbam.attach.graph.probe import run_probe
from cbam.attach.sites.head import find_heads
from cbam.errors import CBAMError
from tests.attach.networks import Block, Net

SMALL = {"min_size": 128, "max_size": 128}
LEVELS = [
    f"head.{which}_head.module_list.{i}" for which in ("regression", "classification") for i in range(6)
]
TOWERS = ["head.classification_head.conv", "head.regression_head.conv"]
RPN, BOX = "rpn.head.conv.0.1", "roi_heads.box_roi_pool"
SITES = {
    "ssd300_vgg16": ("input", LEVELS),
    "ssdlite320": ("input", LEVELS),
    "retinanet": ("input", TOWERS),
    "fcos": ("input", TOWERS),
    "fasterrcnn": ("output", [RPN, BOX]),
    "maskrcnn": ("output", [RPN, BOX, "roi_heads.mask_predictor.relu"]),
}


def detector(name):
    torch.manual_seed(0)
    if name == "ssd300_vgg16":
        return get_model(name, weights=None, weights_backbone=None, num_classes=3)
    if name == "ssdlite320":
        return get_model("ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3)
    pyramid = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    more = pyramid if name in ("retinanet", "fcos") else {}
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, **more)
    kind = {"retinanet": RetinaNet, "fcos": FCOS, "fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN}[name]
    few = {"rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16}
    return kind(backbone, 3, **SMALL, **(few if "rcnn" in name else {}))


def targets(name):
    """One object for each level of the pyramid."""
    sides = torch.tensor([12.0, 24.0, 40.0, 60.0, 84.0, 110.0, 126.0])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sides, sides], 1)
    target = {"boxes": boxes, "labels": torch.ones(7, dtype=torch.int64)}
    if name == "maskrcnn":
        target["masks"] = torch.ones(7, 128, 128, dtype=torch.uint8)
    return [target]


def equal(got, expected):
    return all(torch.equal(a[key], b[key]) for a, b in zip(got, expected, strict=True) for key in b)


LONG = ("ssd300_vgg16", "maskrcnn")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in SITES]
)
def test_detectors(name):
    model, images = detector(name).eval(), [torch.rand(3, 128, 128)]
    modules = list(model.named_modules())
    with torch.no_grad():
        before = model(images)
    attachment = cbam.attach(model, sites="head", example_input=images)
    position, names = SITES[name]
    assert {site.position for site in attachment.sites} == {position}
    assert sorted(site.name for site in attachment.sites) == sorted(names)
    assert all(site in str(attachment) for site in names)
    with torch.no_grad():
        assert equal(model(images), before)
    move_every_gate(model, images, targets(name))
    cbam.detach(model)
    assert list(model.named_modules()) == modules


def move_every_gate(model, images, target):
    gates = {name: m.cbam for name, m in model.named_modules() if isinstance(m, WithAttention)}
    start = {name: [p.detach().clone() for p in gate.parameters()] for name, gate in gates.items()}
    model.train()
    optimizer = torch.optim.Adam([p for gate in gates.values() for p in gate.parameters()], 1e-3)
    sum(model([*images, images[0].flip(-1)], target * 2).values()).backward()
    optimizer.step()
    for name, gate in gates.items():
        moved = [not torch.equal(p, old) for p, old in zip(gate.parameters(), start[name], strict=True)]
        assert any(moved), name


def test_one_attention_for_all_levels_says_so():
    plan = cbam.plan(detector("retinanet"), sites="head", example_input=[torch.rand(3, 128, 128)])
    assert f"{TOWERS[0]} runs on 5 maps: one attention serves all of them" in plan.notes
    assert any("each head has attention of its own in front" in note for note in plan.notes)
    assert (plan.sites[0].channels, plan.sites[0].size) == (
        256,
        (16, 16),
    )  # of the map, not of what the head gives


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("resnet18", "layer4.1"), ("vgg11", "features.19"), ("mobilenet_v2", "features.18.2"),
        ("mobilenet_v3_small", "features.12.2"), ("densenet121", "features.norm5"), ("squeezenet1_1", "features.12"),
        ("convnext_tiny", "features.7.2"),
    ],
)  # fmt: skip
def test_a_classifier_has_the_last_map_before_pooling(name, site):
    model = get_model(name, weights=None).eval()
    assert [s.name for s in cbam.plan(model, sites="head", input_size=64).sites] == [site]


class Pyramid(nn.Module):
    """Two levels with class scores and boxes each; with `own_map` from maps that nothing else reads."""

    def __init__(self, own_map):
        super().__init__()
        self.own_map = own_map
        self.stem, self.down = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.lateral = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(2))
        self.classes = nn.ModuleList(nn.Conv2d(4, 6, 3, padding=1) for _ in range(2))
        self.boxes = nn.ModuleList(nn.Conv2d(4, 8, 3, padding=1) for _ in range(2))

    def forward(self, x):
        first = self.stem(x)
        maps = [first, self.down(first)]
        if self.own_map:
            maps = [lateral(level) for lateral, level in zip(self.lateral, maps, strict=True)]
        heads = zip(self.classes, self.boxes, maps, strict=True)
        return [head(level).flatten(1) for classes, boxes, level in heads for head in (classes, boxes)]


def test_a_map_that_only_the_heads_read_gets_one_attention():
    assert [(s.name, s.position) for s in cbam.plan(Pyramid(True), sites="head", input_size=16).sites] == [
        ("lateral.0.1", "output"),
        ("lateral.1.1", "output"),
    ]


def test_a_map_that_goes_on_is_left_alone():
    sites = cbam.plan(Pyramid(False), sites="head", input_size=16).sites
    found = [(site.name, site.position) for site in sites]
    assert found == [(f"{which}.{i}", "input") for i in (0, 1) for which in ("classes", "boxes")]
    assert {site.channels for site in sites} == {4}  # of the map in front, not of what the head gives


def test_heads_without_a_module_of_their_own_are_named():
    class Bare(Pyramid):
        def forward(self, x):
            first = self.stem(x)
            scores = nn.functional.conv2d(first, self.classes[0].weight)
            return (
                scores.flatten(1),
                self.boxes[1](self.down(first)).flatten(1),
                self.boxes[0](first).flatten(1),
            )

    locations, notes = find_heads(run_probe(Bare(False).eval(), (torch.rand(1, 3, 16, 16),)))
    assert "boxes.0" in [location.name for location in locations]
    assert any("1 heads on the map of 4x8x8 have no module of their own" in note for note in notes)


def test_tokens_are_no_map_and_the_error_names_what_there_is():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.mix, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.mix(self.patches(x).flatten(2).transpose(1, 2)).mean(1))

    with pytest.raises(CBAMError, match="Tokens is no CNN: patches embeds patches"):
        cbam.plan(Tokens(), sites="head", input_size=16)


def test_head_goes_with_other_kinds():
    names = [s.name for s in cbam.plan(Net(Block(8)), sites=["auto", "head"], input_size=16).sites]
    assert names == ["blocks.0.bn2", "blocks.0"]
