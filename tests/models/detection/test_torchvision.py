"""Plain detectors are torchvision's, bit for bit; attention at the identity changes no bit."""

import pytest
import torch
from torchvision.models import get_model
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from cbam.attach import WithAttention
from cbam.models.detection import build_detector
from tests.models.detection.images import FEW, IMAGES, SMALL, found, losses, same

CLASSES = {"fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN, "retinanet": RetinaNet, "fcos": FCOS}
KINDS = pytest.mark.parametrize("kind", CLASSES)


def torchvision_s(kind, norm_layer=torch.nn.BatchNorm2d, trainable=5):
    """torchvision's detector on a ResNet-18, as its builders make those on a ResNet-50."""
    dense = kind in ("retinanet", "fcos")
    levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)} if dense else {}
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=norm_layer, trainable_layers=trainable, **levels
    )
    return CLASSES[kind](backbone, 4, **(SMALL if dense else FEW))


def ours(kind, **options):
    torch.manual_seed(0)
    small = FEW if "rcnn" in kind else SMALL
    return build_detector(f"{kind}_resnet18_fpn", 3, **small, **options)


def sites(model):
    return [name for name, module in model.named_modules() if isinstance(module, WithAttention)]


@KINDS
class TestOnAResNet:
    def test_plain_is_torchvision_s(self, kind):
        theirs, model = torchvision_s(kind), ours(kind)
        if kind in ("retinanet", "fcos"):  # whose extra levels are drawn before the backbone there
            model.load_state_dict(theirs.state_dict())
        assert list(model.state_dict()) == list(theirs.state_dict())
        assert type(model) is type(theirs)
        expected = losses(theirs, (2, 0))
        assert same(losses(model, (2, 0)), expected)
        assert same(found(model), found(theirs))
        assert same(dict(model.named_buffers()), dict(theirs.named_buffers()))

    def test_so_it_is_with_frozen_norms(self, kind):
        theirs = torchvision_s(kind, FrozenBatchNorm2d, trainable=3)
        model = ours(kind, norm="frozen", trainable_layers=3)
        for name, buffer in theirs.named_buffers():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith(("var", "weight")) else -0.5))
        model.load_state_dict(theirs.state_dict())
        assert list(model.state_dict()) == list(theirs.state_dict())
        frozen = {name for name, p in theirs.named_parameters() if not p.requires_grad}
        assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen != set()
        assert same(losses(model, (2, 0)), losses(theirs, (2, 0)))
        assert same(found(model), found(theirs))

    @pytest.mark.parametrize("norm", ["batch", "frozen"])
    def test_identity_changes_no_bit(self, kind, norm):
        plain, model = ours(kind, norm=norm), ours(kind, norm=norm, attention="cbam", init="identity")
        names = [f"backbone.body.layer{i}.{j}.bn2" for i in range(1, 5) for j in range(2)]
        assert sites(model) == names
        old = plain.state_dict()
        assert {k: v for k, v in model.state_dict().items() if ".cbam." not in k}.keys() == old.keys()
        expected = losses(plain, (2, 0))
        assert same(losses(model, (2, 0)), expected)
        assert same(found(model), found(plain))

    def test_every_gate_trains(self, kind):
        model = ours(kind, attention="cbam", norm="frozen", trainable_layers=2)
        sum(losses(model, (2, 1)).values()).backward()
        gates = {name: p for name, p in model.named_parameters() if ".cbam." in name}
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gates.values())


MOBILENET = "fasterrcnn_mobilenet_v3_large_fpn"


def test_a_mobilenet_is_torchvision_s():
    torch.manual_seed(0)
    theirs = get_model(MOBILENET, weights=None, weights_backbone=None, num_classes=4, **FEW)
    torch.manual_seed(0)
    model = build_detector(MOBILENET, 3, **FEW)
    assert list(model.state_dict()) == list(theirs.state_dict())
    assert same(losses(model, (2, 0)), losses(theirs, (2, 0)))
    assert same(found(model), found(theirs))


def test_which_layers_of_a_mobilenet_train():
    for given, first in ((3, 7), (2, 13), (1, 16), (0, 17), (6, 0)):  # as torchvision counts them
        model = build_detector(MOBILENET, 3, trainable_layers=given, norm="frozen", **FEW)
        trained = {name for name, p in model.named_parameters() if p.requires_grad and "body" in name}
        assert {int(name.split(".")[2]) for name in trained} == set(range(first, 17)), given


@pytest.fixture(scope="module")
def ssd():
    """torchvision's SSD300."""
    torch.manual_seed(0)
    return get_model("ssd300_vgg16", weights=None, weights_backbone=None, num_classes=4)


@pytest.mark.slow  # six forward passes of VGG16 on 300 x 300 pixels
def test_ssd300_is_torchvision_s_and_identity_changes_no_bit(ssd):
    plain = build_detector("ssd300_vgg16", 3, boxes="coco")
    model = build_detector("ssd300_vgg16", 3, boxes="coco", attention="cbam", init="identity")
    assert list(plain.state_dict()) == list(ssd.state_dict())
    plain.load_state_dict(ssd.state_dict())
    model.load_state_dict(ssd.state_dict(), strict=False)
    step, boxes = losses(ssd, (2,)), found(ssd, IMAGES[:1])
    for other in (plain, model):
        assert same(losses(other, (2,)), step)
        assert same(found(other, IMAGES[:1]), boxes)
    assert len(sites(model)) == 12  # in front of each of the six levels' predictors


def test_the_parts_and_the_default_boxes_of_ssd300(ssd):
    model = build_detector("ssd300_vgg16", 3, boxes="coco", width=1 / 16)
    assert repr(model.anchor_generator) == repr(ssd.anchor_generator)
    assert list(model.state_dict()) == list(ssd.state_dict())
    assert repr(model.transform) == repr(ssd.transform)
    for name, module in ssd.named_modules():
        if not list(module.children()) and not isinstance(module, torch.nn.Conv2d):
            assert repr(model.get_submodule(name)) == repr(module), name
    trained = build_detector("ssd300_vgg16", 3, width=1 / 16, trainable_layers=3)
    stopped = {name for name, p in trained.named_parameters() if not p.requires_grad}
    assert stopped == {f"backbone.features.{i}.{n}" for i in (0, 2, 5, 7) for n in ("weight", "bias")}


def test_the_default_boxes_of_the_paper():
    generator = build_detector("ssd300_vgg16", 3, width=1 / 16).anchor_generator
    assert generator.scales == [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05]
    boxes, sides = generator.num_anchors_per_location(), (38, 19, 10, 5, 3, 1)
    assert boxes == [6, 6, 6, 6, 4, 4]
    assert sum(n * side**2 for n, side in zip(boxes, sides, strict=True)) == 11_620
    voc = build_detector("ssd300_vgg16", 3, width=1 / 16, boxes="voc").anchor_generator
    assert (voc.num_anchors_per_location()[0], voc.scales) == (4, generator.scales)
