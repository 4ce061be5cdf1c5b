"""One model of each family through the zoo's checks; that these see what is wrong; that the command goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.zoo import checks as zoo

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "zoo.py"
REPORT = Path(__file__).parents[2] / "docs" / "zoo.md"

# Library -> family, as the report names it -> its model that is checked quickest, or several, separated by spaces;
# a list where names hold spaces.
SAMPLE = {
    "torchvision": {
        "AlexNet": "alexnet",
        "ConvNeXt": "convnext_tiny",
        "DeepLabV3": "deeplabv3_mobilenet_v3_large",
        "DenseNet": "densenet121",
        "EfficientNet": "efficientnet_b0",
        "FCN": "fcn_resnet50",
        "FCOS": "fcos_resnet50_fpn",
        "FasterRCNN": "fasterrcnn_mobilenet_v3_large_320_fpn",
        "GoogLeNet": "googlenet",
        "Inception3": "inception_v3",
        "KeypointRCNN": "keypointrcnn_resnet50_fpn",
        "LRASPP": "lraspp_mobilenet_v3_large",
        "MNASNet": "mnasnet0_5",
        "MaskRCNN": "maskrcnn_resnet50_fpn",
        "MaxVit": "maxvit_t",
        "MobileNetV2": "mobilenet_v2",
        "MobileNetV3": "mobilenet_v3_small",
        "RAFT": "raft_small",
        "RegNet": "regnet_x_400mf",
        "ResNet": "resnet18",
        "RetinaNet": "retinanet_resnet50_fpn_v2",
        "S3D": "s3d",
        "SSD": "ssdlite320_mobilenet_v3_large",
        "ShuffleNetV2": "shufflenet_v2_x0_5",
        "SqueezeNet": "squeezenet1_1",
        "VGG": "vgg11",
        "VideoResNet": "r3d_18",
    },
    "timm": {
        "ByobNet": "repvgg_a0",
        "CPUBone": "cpubone_t0",
        "CSATv2": "csatv2",
        "CoaT": "coat_lite_tiny",
        "ConvMixer": "convmixer_1024_20_ks9_p14",
        "ConvNeXt": "convnext_zepto_rms",
        "CrossVit": "crossvit_9_dagger_240",
        "CspNet": "cs3darknet_s",
        "CspNext": "cspnext_tiny",
        "DLA": "dla46_c",
        "DPN": "dpn48b",
        "DaVit": "davit_tiny",
        "DenseNet": "densenetblur121d",
        "EdgeNeXt": "edgenext_xx_small",
        "EfficientFormer": "efficientformer_l1",
        "EfficientFormerV2": "efficientformerv2_s0",
        "EfficientNet": "efficientnet_es",
        "EfficientViM": "efficientvim_m1",
        "EfficientViMDistilled": "efficientvim_m1_dist",
        "EfficientVit": "efficientvit_b0",
        "EfficientVitLarge": "efficientvit_l1",
        "EfficientVitMsra": "efficientvit_m2",
        "FastVit": "fastvit_t8",
        "FasterNet": "fasternet_t0",
        "FocalNet": "focalnet_tiny_srf",
        "GhostNet": "ghostnet_050",
        "GlobalContextVit": "gcvit_xxtiny",
        "HighPerfGpuNet": "hgnetv2_b1",
        "HighResolutionNet": "hrnet_w18_small",
        "IFormer": "iformer_t",
        "InceptionResnetV2": "inception_resnet_v2",
        "InceptionV3": "inception_v3",
        "InceptionV4": "inception_v4",
        "LCNetV2": "lcnetv2_small",
        "Levit": "levit_256d",
        "LevitDistilled": "levit_128s",
        "LowFormer": "lowformer_b0",
        "MambaOut": "mambaout_femto",
        "MaxxVit": "coatnext_nano_rw_224",
        "MetaFormer": "caformer_s18",
        "MetaNeXt": "inception_next_atto",
        "MobileNetV3": "tf_mobilenetv3_small_100",
        "MobileNetV5": "mobilenetv5_300m",
        "MobileNetV5Encoder": "mobilenetv5_300m_enc",
        "NASNetALarge": "nasnetalarge",
        "NextViT": "nextvit_small",
        "NormFreeNet": "eca_nfnet_l0",
        "PNASNet5Large": "pnasnet5large",
        "PoolingVisionTransformer": "pit_ti_224",
        "PyramidVisionTransformerV2": "pvt_v2_b0",
        "RDNet": "rdnet_tiny",
        "RegNet": "regnetz_005",
        "RepGhostNet": "repghostnet_050",
        "RepVit": "repvit_m1_0",
        "ResNet": "resnet10t",
        "ResNetV2": "resnetv2_18",
        "RexNet": "rexnet_100",
        "SENet": "legacy_seresnext50_32x4d",
        "SHViT": "shvit_s1",
        "SelecSls": "selecsls42",
        "StarNet": "starnet_s050",
        "SwiftFormer": "swiftformer_xs",
        "TResNet": "tresnet_m",
        "TinyVit": "tiny_vit_5m_224",
        "Twins": "twins_pcpvt_small",
        "VGG": "vgg11",
        "VOLO": "volo_d1_224",
        "Visformer": "visformer_tiny",
        "VisionTransformer": "vitamin_small_224",
        "VovNet": "ese_vovnet19b_slim",
        "Xception": "legacy_xception",
        "XceptionAligned": "xception41p",
        "Xcit": "xcit_nano_12_p16_224",
    },
    "smp": {
        "Unet": "resnet18 mobilenet_v2 efficientnet-b0 mobileone_s0",
        "DeepLabV3": ["DeepLabV3 resnet18"],
        "DeepLabV3Plus": ["DeepLabV3Plus resnet18"],
        "FPN": ["FPN resnet18"],
        "Linknet": ["Linknet resnet18"],
        "MAnet": ["MAnet resnet18"],
        "PAN": ["PAN resnet18"],
        "PSPNet": ["PSPNet resnet18"],
        "Segformer": ["Segformer resnet18"],
        "UPerNet": ["UPerNet resnet18"],
        "UnetPlusPlus": ["UnetPlusPlus resnet18"],
    },
    "transformers": {
        "ConvNextForImageClassification": "convnext-tiny",
        "ConvNextV2ForImageClassification": "convnextv2-tiny",
        "RegNetForImageClassification": "regnet-x regnet-y",
        "ResNetForImageClassification": "resnet-18 resnet-50",
    },
    "monai": {
        "AttentionUnet": "attention-unet-2d attention-unet-1d",
        "BasicUNet": "basic-unet-2d basic-unet-3d",
        "BasicUNetPlusPlus": "basic-unet-plus-plus-2d",
        "DenseNet121": "densenet121-1d",
        "DynUNet": "dynunet-2d dynunet-3d",
        "HighResNet": "highresnet-2d",
        "ResNet": "resnet18-1d resnet18-3d",
        "SEResNet50": "seresnet50-1d",
        "SegResNet": "segresnet-2d segresnet-3d",
        "UNet": "unet-2d unet-residual-3d",
        "VNet": "vnet-3d",
    },
    "ultralytics": {
        "DetectionModel": "yolo11n",
        "PoseModel": "yolo11n-pose",
        "SegmentationModel": "yolo11n-seg",
    },
}
EVERY = [
    pytest.param(library, family, name, id=f"{library}-{name}")
    for library, families in SAMPLE.items()
    for family, names in families.items()
    for name in (names.split() if isinstance(names, str) else names)
]


@pytest.mark.slow
@pytest.mark.parametrize(("library", "family", "name"), EVERY)
def test_a_model_of_every_family(library, family, name):
    if library in ("monai", "ultralytics"):
        pytest.importorskip(library)
    row = zoo.check(library, name)
    assert row["reason"] == ""
    assert row["convolutional"]
    assert row["family"] == family
    assert row["sites"] > 0


def test_the_sample_has_every_family_of_the_report():
    families, library = {}, ""
    for line in REPORT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            library = line.split()[1]
            families[library] = set()
        elif len(cells) > 2 and cells[1].isdecimal():  # no heading, and no failure, which has two
            families[library].add(cells[0])
    assert families == {library: set(names) for library, names in SAMPLE.items()}
    assert set(families) == set(zoo.LIBRARIES)


@pytest.mark.parametrize("name", ["mixer_s32_224", "vit_tiny_patch16_224"])
def test_what_does_not_convolve_is_left_out(name):
    assert not zoo.check("timm", name)["convolutional"]


class TestItSees:
    def check(self, monkeypatch, model):
        monkeypatch.setattr(zoo, "build", lambda library, name: model)
        monkeypatch.setattr(zoo, "is_convolutional", lambda model: True)
        return zoo.check("torchvision", "a model")["reason"]

    def network(self):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))

    def test_a_good_one(self, monkeypatch):
        assert self.check(monkeypatch, self.network()) == ""

    def test_a_changed_output(self, monkeypatch):
        import cbam

        attach = cbam.attach
        monkeypatch.setattr(cbam, "attach", lambda model, **options: attach(model, init="paper", **options))
        assert self.check(monkeypatch, self.network()) == "the output is not the same"

    def test_gates_that_do_not_move(self, monkeypatch):
        class Cut(nn.Module):
            def forward(self, x):
                return x.detach()

        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), Cut(), nn.LazyLinear(5))
        assert "leaves 1 of 1 gates as they were, such as 1" in self.check(monkeypatch, model)


def test_the_command_goes_on_and_reports(tmp_path):
    output, page = tmp_path / "zoo.jsonl", tmp_path / "zoo.md"
    line = {"library": "torchvision", "model": "alexnet", "seconds": 1, "family": "AlexNet", "sites": 3,
            "convolutional": True, "reason": "a reason"}  # fmt: skip
    output.write_text(json.dumps(line) + '\n{"library": "torchv')

    def run(*arguments):
        command = [sys.executable, str(SCRIPT), "--output", str(output), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stderr

    assert "2 models, 1 of them done before" in run("--library", "torchvision", "--only", "squeezenet1_1")
    run("--report", str(page))
    text = page.read_text()
    assert "1 of 2 convolutional models pass" in text
    assert "| alexnet | a reason |" in text
    assert "timm: not run yet" in text
    assert torch.__version__ in text
