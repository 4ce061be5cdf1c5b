"""SSD300 on VGG16 and on MobileNetV1, as in the paper's Table 7; the detector itself is torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead

from cbam.errors import unknown_name
from cbam.models.detection.stairnet import Stairs
from cbam.models.detection.vgg import VGGTrunk, scaled
from cbam.models.mobilenet import ConvNormReLU, MobileNetV1
from cbam.nn.norms import BatchNorm2dOfAny

SIDE = 300
# (middle, out, stride, padding) of the pairs of convolutions behind the backbone: 19 -> 10 -> 5 -> 3 -> 1.
_VGG_EXTRAS = ((256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0))
# 10 -> 5 -> 3 -> 2 -> 1.
_MOBILENET_EXTRAS = ((256, 512), (128, 256), (128, 256), (64, 128))


class DefaultBoxes(NamedTuple):
    """Default boxes of the six maps.

    Args:
        ratios: aspect ratios, each with its inverse, beside the two squares.
        scales: sides of the smaller square, over the image's; one more than there are maps.
        steps: pixels between two places; None: the image's side over the map's.
    """

    ratios: tuple[tuple[int, ...], ...]
    scales: tuple[float, ...]
    steps: tuple[int, ...] | None


_SIX, _FOUR = (2, 3), (2,)
_VOC, _COCO = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05), (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
_STEPS = (8, 16, 32, 64, 100, 300)
_PAPER_RATIOS, _SSD_RATIOS = (_SIX,) * 4 + (_FOUR,) * 2, (_FOUR,) + (_SIX,) * 3 + (_FOUR,) * 2
VGG_BOXES: dict[str, DefaultBoxes] = {
    "paper": DefaultBoxes(_PAPER_RATIOS, _VOC, _STEPS),
    "voc": DefaultBoxes(_SSD_RATIOS, _VOC, _STEPS),
    "coco": DefaultBoxes(_SSD_RATIOS, _COCO, _STEPS),
}
# The first map has 19 x 19 places: it starts where VGG16's second one does.
MOBILENET_BOXES = DefaultBoxes(_PAPER_RATIOS, (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0), None)


class VGGMaps(nn.Module):
    """The six maps of SSD300 from VGG16, with the keys of torchvision's SSD.

    conv4_3 divided by its norm over the channels and scaled, fc7 as a convolution, and four more.

    Args:
        trunk: VGG16.
        width: factor on the channels of what is behind it.

    Source: Liu et al., arXiv 1512.02325, section 3.1 and Figure 2.

    >>> maps = VGGMaps(VGGTrunk(1 / 16), 1 / 16)(torch.zeros(1, 3, 300, 300))
    >>> [tuple(m.shape[1:]) for m in maps.values()]
    [(32, 38, 38), (64, 19, 19), (32, 10, 10), (16, 5, 5), (16, 3, 3), (16, 1, 1)]
    """

    def __init__(self, trunk: VGGTrunk, width: float = 1.0):
        super().__init__()
        pool4 = [i for i, layer in enumerate(trunk.features) if isinstance(layer, nn.MaxPool2d)][3]
        c512, c1024 = scaled(512, width), scaled(1024, width)
        self.scale_weight = nn.Parameter(torch.full((c512,), 20.0))
        self.features = nn.Sequential(*trunk.features[:pool4])
        fc = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(c512, c1024, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(c1024, c1024, 1),
            nn.ReLU(inplace=True),
        )
        pairs, before = [], c1024
        for middle, out, stride, padding in _VGG_EXTRAS:
            pairs.append(
                nn.Sequential(
                    nn.Conv2d(before, scaled(middle, width), 1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(scaled(middle, width), scaled(out, width), 3, stride, padding),
                    nn.ReLU(inplace=True),
                )
            )
            before = scaled(out, width)
        for part in (fc, *pairs):
            xavier(part)
        self.extra = nn.ModuleList([nn.Sequential(*trunk.features[pool4:], fc), *pairs])
        self.out_channels = [c512, c1024, *(scaled(out, width) for _, out, _, _ in _VGG_EXTRAS)]
        self.sides = (38, 19, 10, 5, 3, 1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Map images (N, 3, 300, 300) to the six maps, from 38 x 38 to 1 x 1."""
        x = self.features(x)
        maps = [self.scale_weight.view(1, -1, 1, 1) * F.normalize(x)]
        for part in self.extra:
            x = part(x)
            maps.append(x)
        return OrderedDict((str(i), m) for i, m in enumerate(maps))


class MobileNetMaps(nn.Module):
    """The six maps of SSD300 from MobileNetV1: the ends of the stages at 1/16 and 1/32, and four more.

    Args:
        network: MobileNetV1; its classifier is left.
        width: factor on the channels of what is behind it.

    >>> maps = MobileNetMaps(MobileNetV1(1 / 8), 1 / 8)(torch.zeros(1, 3, 300, 300))
    >>> [tuple(m.shape[1:]) for m in maps.values()]
    [(64, 19, 19), (128, 10, 10), (64, 5, 5), (32, 3, 3), (32, 2, 2), (16, 1, 1)]
    """

    def __init__(self, network: MobileNetV1, width: float = 1.0):
        super().__init__()
        self.stem = network.stem
        self.middle, self.last = nn.Sequential(*network.layers[:11]), nn.Sequential(*network.layers[11:])
        self.out_channels = [int(512 * width), int(1024 * width)]
        pairs = []
        for middle, out in _MOBILENET_EXTRAS:
            c = scaled(middle, width)
            first = ConvNormReLU(self.out_channels[-1], c, 1)
            pairs.append(nn.Sequential(first, ConvNormReLU(c, scaled(out, width), 3, stride=2)))
            self.out_channels.append(scaled(out, width))
        pairs[-1][1].bn = BatchNorm2dOfAny(self.out_channels[-1])  # its map is one pixel
        self.extra = nn.ModuleList(pairs)
        self.sides = (19, 10, 5, 3, 2, 1)
        xavier(self.extra)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Map images (N, 3, 300, 300) to the six maps, from 19 x 19 to 1 x 1."""
        maps = [self.middle(self.stem(x))]
        for part in (self.last, *self.extra):
            maps.append(part(maps[-1]))
        return OrderedDict((str(i), m) for i, m in enumerate(maps))


def build_ssd(
    stairs: bool, trunk: nn.Module, classes: int, boxes: str, width: float, options: dict[str, Any]
) -> SSD:
    """Return SSD300, or StairNet300, whose backbone is a classifier's trunk.

    Args:
        stairs: whether it is StairNet.
        trunk: VGG16 or MobileNetV1.
        classes: with the background.
        boxes: the default boxes, "paper", "voc" or "coco".
        width: factor on all channels.
        options: of torchvision's class.
    """
    vgg = isinstance(trunk, VGGTrunk)
    if boxes not in VGG_BOXES:
        raise unknown_name("default boxes", boxes, VGG_BOXES)
    layout = VGG_BOXES[boxes] if vgg else MOBILENET_BOXES
    maps: Any = VGGMaps(trunk, width) if isinstance(trunk, VGGTrunk) else MobileNetMaps(trunk, width)  # type: ignore[arg-type]
    if stairs:
        maps = Stairs(maps, scaled(256 if vgg else 128, width), depthwise=not vgg)
    generator = DefaultBoxGenerator(
        [list(ratios) for ratios in layout.ratios],
        scales=list(layout.scales),
        steps=None if layout.steps is None else list(layout.steps),
    )
    head = _head(
        maps.out_channels, generator.num_anchors_per_location(), classes, kernel_size=3 if vgg else 1
    )
    if vgg:  # the mean and the range of the Caffe weights that SSD starts from
        caffe = {"image_mean": [0.48235, 0.45882, 0.40784], "image_std": [1 / 255] * 3}
        options = {**caffe, **options}
    return SSD(maps, generator, (SIDE, SIDE), classes, head=head, **options)


def _head(channels: list[int], boxes: list[int], classes: int, kernel_size: int) -> SSDHead:
    """Return torchvision's head, or the same with 1x1 convolutions."""
    head = SSDHead(channels, boxes, classes)
    if kernel_size == 1:
        for part in (head.classification_head, head.regression_head):
            part.module_list = nn.ModuleList(
                nn.Conv2d(conv.in_channels, conv.out_channels, 1) for conv in part.module_list
            )
            xavier(part)
    return head


def xavier(module: nn.Module) -> None:
    """Draw the weights of all convolutions as SSD does; biases become zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
