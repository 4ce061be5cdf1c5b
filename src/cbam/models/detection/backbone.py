"""Backbones of detectors: a classifier without its head, with the maps that a detector reads."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from cbam.errors import CBAMError
from cbam.models.build import build_model
from cbam.models.detection.names import MOBILENETS
from cbam.models.detection.vgg import VGGTrunk
from cbam.models.mobilenet import MobileNetV1

FPN_CHANNELS = 256
# From the last stage to the first, as torchvision counts layers that train.
_RESNET_LAYERS = ("layer4", "layer3", "layer2", "layer1", "conv1", "bn1")


class C4(nn.Module):
    """The first three stages of a ResNet: one map with a step of 16 pixels.

    Args:
        network: a ResNet classifier; its layer4 is left to the box head.

    >>> import torch
    >>> C4(build_model("resnet18", 10))(torch.zeros(1, 3, 64, 64))["0"].shape
    torch.Size([1, 256, 4, 4])
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.body = IntermediateLayerGetter(network, {"layer3": "0"})
        self.out_channels = out_channels(network) // 2

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Map images (N, 3, H, W) to {"0": (N, out_channels, H / 16, W / 16)}."""
        return self.body(x)


def build_classifier(name: str, width: float) -> nn.Module:
    """Return a classifier by its name; the channels of MobileNetV1 and VGG16 are multiplied by `width`."""
    if name == "mobilenet_v1":
        return MobileNetV1(width)
    if name == "vgg16":
        return VGGTrunk(width)
    if width != 1.0:
        raise CBAMError(
            f"width is for VGG16 and MobileNetV1, given width={width} for {name}. A smaller ResNet is resnet18."
        )
    network = build_model(name, 1000)
    if name.startswith("mobilenet_v3"):  # whose classifiers have other norms than torchvision's detectors
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = 1e-5, 0.1
    return network


def out_channels(network: Any) -> int:
    """Return the channels of a ResNet's last map."""
    return network.fc.in_features


def pyramid(network: nn.Module, name: str, *, dense: bool = False) -> BackboneWithFPN:
    """Return a network with torchvision's feature pyramid on top of its stages.

    Args:
        network: a classifier.
        name: of the classifier.
        dense: the levels of RetinaNet and FCOS, from the second stage on and two more beyond the last; otherwise those
            of Faster R-CNN, all stages and a pooled one.
    """
    extra = LastLevelP6P7(FPN_CHANNELS, FPN_CHANNELS) if dense else LastLevelMaxPool()
    if name in MOBILENETS:
        features = _features(network)
        stages = levels(network)
        channels = [_channels(features[i]) for i in stages]
        layers = {str(i): str(level) for level, i in enumerate(stages)}
        return BackboneWithFPN(features, layers, channels, FPN_CHANNELS, extra)
    numbers = (2, 3, 4) if dense else (1, 2, 3, 4)
    layers = {f"layer{number}": str(level) for level, number in enumerate(numbers)}
    channels = [out_channels(network) // 2 ** (4 - number) for number in numbers]
    return BackboneWithFPN(network, layers, channels, FPN_CHANNELS, extra)


def freeze_first(network: nn.Module, name: str, trainable: int, fresh: bool) -> None:
    """Take the gradients of all layers but the last ones, as torchvision does.

    Args:
        network: a classifier.
        name: of the classifier.
        trainable: layers that train, from the last one on: 0 to 5 of a ResNet or VGG16 (5: all), 0 to 6 of a
            MobileNet.
        fresh: attached gates are new: they train wherever they are.
    """
    for key, parameter in network.named_parameters():
        if not (fresh and ".cbam." in key) and not key.startswith(_trained(network, name, trainable)):
            parameter.requires_grad_(False)


def count_trainable(name: str, given: int | None, pretrained: bool) -> int:
    """Return how many layers of a backbone train: all; with weights from a file the last 3, of VGG16 the last 4.

    Raises:
        CBAMError: more or fewer than there are.

    >>> count_trainable("resnet50", None, True), count_trainable("resnet50", None, False)
    (3, 5)
    """
    most = 6 if name in MOBILENETS else 5
    if given is None:
        return {"vgg16": 4}.get(name, 3) if pretrained else most  # as torchvision
    if not 0 <= given <= most:
        raise CBAMError(f"trainable_layers of {name} is 0 to {most} ({most}: all), given {given}.")
    return given


def _trained(network: nn.Module, name: str, count: int) -> tuple[str, ...]:
    """Return the beginnings of the names of what trains."""
    if isinstance(network, VGGTrunk):
        parts: nn.Sequential = network.features
        starts = [0, *(i for i, layer in enumerate(parts) if isinstance(layer, nn.MaxPool2d))]
    elif name in MOBILENETS:
        parts = _features(network)
        starts = [0, *_strided(parts)]
    else:
        return tuple(f"{layer}." for layer in _RESNET_LAYERS[: count + (count == 5)])
    first = len(parts) if count == 0 else starts[max(0, len(starts) - count)]
    return tuple(f"{_prefix(network, i)}." for i in range(first, len(parts)))


def levels(network: nn.Module) -> list[int]:
    """Return the parts of a MobileNet whose maps a pyramid reads.

    Those of MobileNetV1 are the last ones at steps of 8, 16 and 32 pixels. Those of torchvision's are the first and
    the last one at 32, as in torchvision's own detectors.
    """
    strided = _strided(_features(network))
    if not isinstance(network, MobileNetV1):
        return strided[-2:]
    return [i - 1 for i in strided[-3:-1]] + strided[-1:]


def _channels(block: Any) -> int:
    if hasattr(block, "out_channels"):
        return block.out_channels
    return block[-1].conv.out_channels  # of a pair of MobileNetV1's


def _features(network: Any) -> nn.Sequential:
    if isinstance(network, MobileNetV1):
        return nn.Sequential(network.stem, *network.layers)
    return network.features


def _prefix(network: nn.Module, index: int) -> str:
    """Return the path of a part of `_features` in the network."""
    if not isinstance(network, MobileNetV1):
        return f"features.{index}"
    return f"layers.{index - 1}" if index else "stem"


def _strided(features: nn.Sequential) -> list[int]:
    """Return the blocks that make the map smaller, and the last one."""
    strides = [any(c.stride[0] > 1 for c in f.modules() if isinstance(c, nn.Conv2d)) for f in features]
    return [*(i for i, strided in enumerate(strides) if strided and i), len(features) - 1]
