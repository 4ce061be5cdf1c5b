"""The ImageNet ResNets of the paper: torchvision's blocks and keys, other strides, widths and depths."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from cbam.errors import CBAMError, unknown_name
from cbam.models.classifier import MapClassifier, check_counts, kaiming_fan_out

BLOCKS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}


class PaperResNet(MapClassifier):
    """A ResNet for ImageNet in the paper's form; the state dict's keys are those of torchvision's ResNet.

    Args:
        depth: 18, 34 (basic blocks), 50, 101, 152 or 200 (bottlenecks).
        num_classes: width of the classifier.
        in_channels: channels of the images.
        stride_on: the convolution of a bottleneck that makes the map smaller: "first", its 1x1, as in He et al.
            (2015) and in the cost tables of the CBAM paper; "second", its 3x3, as torchvision does ("v1.5").
        widening: factor on the channels of all blocks; the first convolution keeps its 64.
        groups, group_width: ResNeXt's cardinality and width of a group, 32 and 4 for "32x4d".

    Sources: He et al., arXiv 1512.03385, Table 1; 200 layers: arXiv 1603.05027, section 4; Xie et al., arXiv
    1611.05431, Table 1. Zagoruyko and Komodakis, arXiv 1605.07146, for the widened ResNet-18.

    Raises:
        CBAMError: an unknown depth or stride_on, counts below 1, groups in basic blocks.

    >>> net = PaperResNet(50)
    >>> sum(p.numel() for p in net.parameters())
    25557032
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        stride_on: Literal["first", "second"] = "first",
        widening: float = 1.0,
        groups: int = 1,
        group_width: int = 64,
    ):
        check_counts(num_classes, in_channels)
        if depth not in BLOCKS:
            raise CBAMError(f"PaperResNet has {', '.join(map(str, BLOCKS))} layers, given {depth}.")
        if stride_on not in ("first", "second"):
            raise unknown_name("stride_on", stride_on, ("first", "second"))
        kind, counts = BLOCKS[depth]
        if kind == "basic" and groups != 1:
            raise CBAMError(
                f"the basic blocks of {depth} layers take no groups, given groups={groups}. Take 50."
            )
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, channels = [], 64
        for number, count in enumerate(counts):
            planes = int(64 * 2**number * widening)
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if number and not index else 1
                block = (
                    _basic(channels, planes, stride)
                    if kind == "basic"
                    else _bottleneck(channels, planes, stride, stride_on, groups, group_width)
                )
                channels = planes * block.expansion
                blocks.append(block)
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.add_classifier(channels, num_classes)
        kaiming_fan_out(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to the last map (N, num_features, ceil(H / 32), ceil(W / 32))."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def pool(self, x: Tensor) -> Tensor:
        """Average a map (N, C, h, w) to (N, C)."""
        return self.avgpool(x).flatten(1)


def _basic(channels: int, planes: int, stride: int) -> BasicBlock:
    return BasicBlock(channels, planes, stride, _projection(channels, planes, stride))


def _bottleneck(
    channels: int, planes: int, stride: int, stride_on: str, groups: int, group_width: int
) -> Bottleneck:
    projection = _projection(channels, planes * Bottleneck.expansion, stride)
    block = Bottleneck(channels, planes, stride, projection, groups, group_width)
    if stride_on == "first":
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return block


def _projection(channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )
