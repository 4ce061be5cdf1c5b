"""MobileNet v1: a convolution and 13 depthwise-separable ones (Howard et al., arXiv 1704.04861)."""

from __future__ import annotations

from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.models.classifier import MapClassifier, check_counts, kaiming_fan_out

# Channels and stride of the 13 depthwise-separable convolutions; Table 1 of Howard et al.
LAYERS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class ConvNormReLU(nn.Module):
    """A convolution without bias, its batch norm and a ReLU.

    Args:
        in_channels, channels: of the input and the output.
        kernel_size: odd; padding keeps the size of the map, apart from the stride.
        stride: of the convolution.
        groups: of the convolution; in_channels makes it depthwise.

    >>> import torch
    >>> ConvNormReLU(3, 8, 3, stride=2)(torch.ones(1, 3, 8, 8)).shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int = 1, groups: int = 1):
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        return self.relu(self.bn(self.conv(x)))


class MobileNetV1(MapClassifier):
    """MobileNet v1, 4.2 M parameters at width 1.

    The CBAM paper's counts for it fit attention after every convolution with its norm and ReLU, 27 sites:
    `cbam.attach(net, sites="conv")`.

    Args:
        width: factor alpha on the channels of all layers, rounded down.
        num_classes: width of the classifier.
        in_channels: channels of the images.

    Raises:
        CBAMError: a width that leaves a layer without channels, or a count below 1.

    >>> net = MobileNetV1()
    >>> sum(p.numel() for p in net.parameters())
    4231976
    """

    def __init__(self, width: float = 1.0, num_classes: int = 1000, in_channels: int = 3):
        check_counts(num_classes, in_channels)
        if int(32 * width) < 1:
            raise CBAMError(f"width must leave at least 1 of the first layer's 32 channels, given {width}.")
        super().__init__()
        channels = int(32 * width)
        self.stem = ConvNormReLU(in_channels, channels, 3, stride=2)
        layers = []
        for full, stride in LAYERS:
            layers.append(
                nn.Sequential(
                    ConvNormReLU(channels, channels, 3, stride, groups=channels),
                    ConvNormReLU(channels, int(full * width), 1),
                )
            )
            channels = int(full * width)
        self.layers = nn.Sequential(*layers)
        self.add_classifier(channels, num_classes)
        kaiming_fan_out(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to the last map (N, num_features, ceil(H / 32), ceil(W / 32))."""
        return self.layers(self.stem(x))
