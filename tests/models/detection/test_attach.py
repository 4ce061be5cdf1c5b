"""`cbam.attach` on detectors as users have them: the backbone's blocks, and never scores, boxes or proposals."""

import copy

import pytest
import torch
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import cbam
from cbam.attach import WithAttention
from cbam.errors import CBAMError
from cbam.models.detection import build_detector
from tests.models.detection.images import FEW, SMALL, found, losses, options, parameters, same

BLOCKS = [f"backbone.body.layer{i}.{j}.bn2" for i in range(1, 5) for j in range(2)]
PREDICTIONS = (
    "cls_logits",
    "bbox_pred",
    "mask_fcn_logits",
    "head.classification_head",
    "head.regression_head",
)


@pytest.mark.parametrize("kind", [FasterRCNN, MaskRCNN, RetinaNet])
def test_a_detector_without_any_argument(kind):
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    model = kind(backbone, 4, **(SMALL if kind is RetinaNet else FEW))
    before = found(model)
    attachment = cbam.attach(model)
    assert [site.name for site in attachment.sites] == BLOCKS
    assert same(found(model), before)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18_c4", "maskrcnn_resnet18_fpn", "stairnet300_mobilenet"])
@pytest.mark.parametrize("kind", ["auto", "conv", "stage"])
def test_no_kind_of_site_is_a_prediction(name, kind):
    sites = cbam.plan(build_detector(name, 3, **options(name)), sites=kind).sites
    assert sites
    assert not [site.name for site in sites if any(part in site.name for part in PREDICTIONS)]


def test_the_backbone_compiles():
    """In one graph; what is around it chooses boxes, and runs in Python."""
    torch.manual_seed(0)
    official = {"preset": "official"}  # whose gates have norms
    model = build_detector(
        "fasterrcnn_resnet18_fpn", 3, attention="cbam", attention_options=official, norm="frozen", **FEW
    )
    compiled = copy.deepcopy(model)
    compiled.backbone.compile(fullgraph=True, backend="aot_eager")
    expected, got = (losses(m, (2, 1)) for m in (model, compiled))
    torch.testing.assert_close(got, expected)
    for each in (expected, got):
        sum(each.values()).backward()
    gate = "backbone.body.layer1.0.bn2.cbam.channel_attention.mlp.0.weight"
    gradients = [m.get_parameter(gate).grad for m in (compiled, model)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


class TestSites:
    def plain(self):
        return parameters(build_detector("fasterrcnn_resnet18_fpn", 3, **FEW))

    def test_named_ones_in_the_whole_detector(self):
        model = build_detector(
            "fasterrcnn_resnet18_fpn", 3, attention="se", sites=["backbone.fpn.layer_blocks.*", "head"], **FEW
        )
        names = [name for name, m in model.named_modules() if isinstance(m, WithAttention)]
        assert names[:4] == [f"backbone.fpn.layer_blocks.{i}" for i in range(4)]
        assert names[4:] == ["rpn.head.conv.0.1", "roi_heads.box_roi_pool"]

    def test_options_of_single_ones(self):
        sites = {"backbone.body.layer4.*.bn2": {}, "backbone.body.layer3.*.bn2": {"reduction_ratio": 8}}
        options = {"mlp_bias": True}
        model = build_detector(
            "fasterrcnn_resnet18_fpn", 3, attention="cbam", sites=sites, attention_options=options, **FEW
        )
        added = parameters(model) - self.plain()
        expected = {512: 32, 256: 32}
        assert added == 2 * sum(2 * c * h + c + h + 98 for c, h in expected.items())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"attention": "cbma"}, "unknown attention 'cbma'. Did you mean 'cbam'"),
            ({"attention": "cbam", "sites": "layer9"}, "'layer9' matches none"),
            ({"attention": "cbam", "attention_options": {"ratio": 8}}, "ratio"),
            ({"norm": "frosen"}, "unknown norm 'frosen'. Did you mean 'frozen'"),
            ({"min_sise": 64}, "unknown option of fasterrcnn 'min_sise'. Did you mean 'min_size'"),
            ({"width": 0.5}, "width is for VGG16 and MobileNetV1, given width=0.5 for resnet18"),
            ({"trainable_layers": 6}, "trainable_layers of resnet18 is 0 to 5"),
            ({"boxes": "voc"}, "boxes='voc' is for SSD300 and StairNet300 on VGG16"),
            ({"weights_backbone": "none.pth"}, "none.pth"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        with pytest.raises(CBAMError, match=message):
            build_detector("fasterrcnn_resnet18_fpn", 3, **arguments)

    def test_wrong_names_and_counts(self):
        with pytest.raises(
            CBAMError, match=r"unknown detector 'fasterrcnn_resnet5_fpn'. Did you mean 'faster"
        ):
            build_detector("fasterrcnn_resnet5_fpn", 3)
        for classes in (0, 2.0):
            with pytest.raises(CBAMError, match="classes is their number without the background"):
                build_detector("fasterrcnn_resnet18_fpn", classes)
        with pytest.raises(CBAMError, match="unknown option of ssd300 'min_size'"):
            build_detector("ssd300_vgg16", 3, min_size=64)
        with pytest.raises(CBAMError, match=r"unknown default boxes 'cocos'. Did you mean 'coco'"):
            build_detector("ssd300_vgg16", 3, boxes="cocos", width=0.1)
        with pytest.raises(CBAMError, match="width must leave at least 1 of 64 channels"):
            build_detector("ssd300_vgg16", 3, width=0.01)
