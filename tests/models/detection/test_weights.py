"""Files: a classifier's into the backbone, a detector's into the whole, old names, other classes, eps 0."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model, resnet18
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.ops import FrozenBatchNorm2d

from cbam.attach import attach
from cbam.errors import CBAMError
from cbam.models import MobileNetV1
from cbam.models.detection import build_detector
from cbam.models.detection.norms import FixedBatchNorm2d
from tests.models.detection.images import FEW, SMALL, found, same

NAME = "fasterrcnn_resnet18_fpn"


def saved(model, path):
    torch.save(model.state_dict(), path)
    return path


def trained(model):
    """The model with norms as after training."""
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand_like(value) + 0.5)
    return model


class TestBackbone:
    def test_a_plain_classifier(self, tmp_path):
        file = saved(trained(resnet18(num_classes=7)), tmp_path / "resnet18.pth")
        model = build_detector(NAME, 3, weights_backbone=file, attention="cbam", **FEW)
        state, expected = model.state_dict(), torch.load(file)
        assert all(
            torch.equal(state[f"backbone.body.{key}"], value)
            for key, value in expected.items()
            if not key.startswith("fc.") and not key.endswith("tracked")
        )
        assert isinstance(model.backbone.body.bn1, FrozenBatchNorm2d)
        trains = {name for name, p in model.backbone.body.named_parameters() if p.requires_grad}
        layers = {name.split(".")[0] for name in trains if ".cbam." not in name}
        assert layers == {"layer2", "layer3", "layer4"}  # 3 of 5, as in torchvision
        assert any(name.startswith("layer1.") for name in trains), "new gates train in layers that do not"
        plain = build_detector(NAME, 3, weights_backbone=file, **FEW)
        model.load_state_dict(plain.state_dict(), strict=False)
        assert same(found(model), found(plain)), "with weights, attention starts at the identity"

    @pytest.mark.parametrize("neck", ["fpn", "c4"])
    def test_a_classifier_with_attention(self, tmp_path, neck):
        network = resnet18()
        attach(network, "cbam", preset="official", init="paper", input_size=64)
        trained(network)
        file = saved(network, tmp_path / "resnet18_cbam.pth")
        model = build_detector(
            f"fasterrcnn_resnet18_{neck}", 3, weights_backbone=file, attention="cbam", init="paper",
            attention_options={"preset": "official"}, **FEW,
        ).train()  # fmt: skip
        gate = model.backbone.body.layer1[0].bn2.cbam
        norm = gate.spatial_attention.norm
        assert isinstance(norm, FixedBatchNorm2d)
        assert torch.equal(norm.running_var, network.layer1[0].bn2.cbam.spatial_attention.norm.running_var)
        assert not any(p.requires_grad for p in gate.parameters()), "trained gates stop with their layer"
        x = torch.rand(2, 3, 64, 64)
        body, network = model.backbone.body, network.eval()
        with torch.no_grad():
            expected = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(x)))))
            got = body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(x)))))
        torch.testing.assert_close(got, expected)

    def test_attention_that_nobody_asked_for(self, tmp_path):
        network = resnet18()
        attach(network, input_size=64)
        with pytest.raises(CBAMError, match=r"8 blocks of CBAM.*the model has no attention"):
            build_detector(NAME, 3, weights_backbone=saved(network, tmp_path / "cbam.pth"), **FEW)

    def test_mobilenet_and_vgg(self, tmp_path):
        network = MobileNetV1(0.25, 9)
        file = tmp_path / "mobilenet.safetensors"
        save_file(network.state_dict(), file)
        for name in ("fasterrcnn_mobilenet_v1_fpn", "ssd300_mobilenet"):
            model = build_detector(name, 3, weights_backbone=file, width=0.25)
            stem = model.backbone.body["0"] if "rcnn" in name else model.backbone.stem
            assert torch.equal(stem.conv.weight, network.stem.conv.weight)
        vgg = build_detector("ssd300_vgg16", 3, width=1 / 16)
        names = dict(vgg.backbone.features.named_parameters())
        file = {f"features.{k}": torch.rand_like(v) for k, v in names.items()}
        for index, out in ((24, 32), (26, 32), (28, 32)):
            file |= {
                f"features.{index}.weight": torch.rand(out, 32, 3, 3),
                f"features.{index}.bias": torch.rand(out),
            }
        torch.save({**file, "classifier.0.weight": torch.rand(4, 4)}, tmp_path / "vgg16.pth")
        model = build_detector("ssd300_vgg16", 3, width=1 / 16, weights_backbone=tmp_path / "vgg16.pth")
        assert torch.equal(model.backbone.features[21].weight, file["features.21.weight"])
        assert torch.equal(model.backbone.extra[0][5].weight, file["features.28.weight"])

    def test_another_network(self, tmp_path):
        with pytest.raises(CBAMError, match="does not fit ResNet"):
            build_detector(NAME, 3, weights_backbone=saved(MobileNetV1(0.25), tmp_path / "other.pth"), **FEW)


# The names that these parts had when torchvision's first weights were saved.
OLD = (
    (r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1."),
    (r"(rpn\.head\.conv)\.0\.0\.", r"\1."),
    (r"(mask_head)\.(\d)\.0\.", lambda m: f"{m[1]}.mask_fcn{int(m[2]) + 1}."),
    (r"(_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}."),
)


def as_before(state):
    for pattern, old in OLD:
        state = {re.sub(pattern, old, key): value for key, value in state.items()}
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


class TestWholeDetector:
    @pytest.mark.parametrize(
        ("kind", "names"), [("maskrcnn", "old"), ("retinanet", "old"), ("maskrcnn", "new"), ("fcos", "new")]
    )
    def test_torchvision_s_file(self, tmp_path, kind, names):
        options = FEW if "rcnn" in kind else SMALL
        theirs = trained(get_model(f"{kind}_resnet50_fpn", weights=None, weights_backbone=None, **options))
        state = as_before(theirs.state_dict()) if names == "old" else theirs.state_dict()
        if names == "old":
            fresh = get_model(f"{kind}_resnet50_fpn", weights=None, weights_backbone=None, **options)
            assert set(state) - set(theirs.state_dict()), "the names are others"
            loaded = fresh.load_state_dict(dict(state), strict=False)  # torchvision knows them too
            assert not loaded.unexpected_keys
            assert all(key.endswith("num_batches_tracked") for key in loaded.missing_keys)
        torch.save(dict(state), tmp_path / "detector.pth")
        model = build_detector(
            f"{kind}_resnet50_fpn",
            90,
            attention="cbam",
            weights=tmp_path / "detector.pth",
            norm="batch",
            **options,
        )
        assert same(found(model), found(theirs))

    def test_weights_without_eps(self, tmp_path):
        theirs = get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None, **FEW)
        name = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url.rpartition("/")[2]
        for file, eps in ((tmp_path / name, 0.0), (tmp_path / "mine.pth", 1e-5)):
            model = build_detector("maskrcnn_resnet50_fpn", 90, weights=saved(theirs, file), **FEW)
            norms = {m.eps for m in model.modules() if isinstance(m, FrozenBatchNorm2d)}
            assert norms == {eps}

    @pytest.mark.parametrize(
        ("name", "layers"),
        [
            (
                "maskrcnn_resnet18_fpn",
                ["box_predictor.cls_score", "box_predictor.bbox_pred", "mask_fcn_logits"],
            ),
            ("retinanet_resnet18_fpn", ["head.classification_head.cls_logits"]),
            ("fcos_resnet18_fpn", ["head.classification_head.cls_logits"]),
            ("stairnet300_mobilenet", ["head.classification_head.module_list.5"]),
        ],
    )
    def test_other_classes(self, tmp_path, caplog, name, layers):
        options = {"width": 0.125} if "mobilenet" in name else {}
        file = saved(build_detector(name, 5, attention="se", **options), tmp_path / "five.pth")
        with caplog.at_level("INFO"):
            model = build_detector(name, 2, attention="se", weights=file, norm="batch", **options)
        for layer in layers:
            assert re.search(f"another number of classes: newly initialised are .*{layer}", caplog.text)
        old, new = torch.load(file), model.state_dict()
        changed = {key for key in new if old[key].shape != new[key].shape}
        assert {key for key in new if key not in changed and not torch.equal(old[key], new[key])} == set()
        assert len(changed) >= 2

    def test_default_boxes_that_differ(self, tmp_path):
        file = saved(build_detector("ssd300_vgg16", 3, width=1 / 16, boxes="coco"), tmp_path / "ssd.pth")
        with pytest.raises(CBAMError, match=r"4 default boxes at each place.*this detector 6.*boxes='coco'"):
            build_detector("ssd300_vgg16", 3, width=1 / 16, weights=file)
