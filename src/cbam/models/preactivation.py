"""The very deep ResNets for 32 x 32 images: bottlenecks with pre-activation, He et al. (arXiv 1603.05027)."""

from __future__ import annotations

from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.models.classifier import MapClassifier, check_counts, kaiming_fan_out


class PreActivationBottleneck(nn.Module):
    """x + conv3(relu(bn3(conv2(relu(bn2(conv1(relu(bn1(x)))))))), 1x1, 3x3, 1x1.

    Where the shape changes, the shortcut is a 1x1 convolution of relu(bn1(x)).

    Args:
        in_channels: channels of the input.
        channels: channels of the output; a quarter of them inside.
        stride: of the first convolution and the shortcut.

    Source: He et al., Figure 4e, section 5 and the appendix.

    >>> import torch
    >>> PreActivationBottleneck(16, 64, stride=2)(torch.ones(1, 16, 28, 28)).shape
    torch.Size([1, 64, 14, 14])
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        inner = channels // 4
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner, 1, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and in_channels == channels
        self.downsample = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        active = self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(active)
        out = self.conv1(active)
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.conv3(self.relu(self.bn3(out)))
        return out + shortcut


class PreActivationResNet(MapClassifier):
    """A pre-activation ResNet of 9n + 2 layers with 64, 128 and 256 channels for small images.

    Args:
        depth: 164 (1.7 M weights), 1001 (10.2 M and 0.15 M of the norms), or any other 9n + 2.
        num_classes: width of the classifier.
        in_channels: channels of the images.

    Source: He et al., Table 4, whose 10.2 M for 1001 layers leave the norms out. Any image size works.

    Raises:
        CBAMError: if the depth is not 9n + 2, or a count is below 1.

    >>> net = PreActivationResNet(164)
    >>> sum(p.numel() for p in net.parameters())
    1703258
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3):
        if depth < 11 or (depth - 2) % 9:
            raise CBAMError(f"a pre-activation ResNet has 9n + 2 layers, given {depth}. Take 164 or 1001.")
        check_counts(num_classes, in_channels)
        super().__init__()
        blocks = (depth - 2) // 9
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 64, blocks, stride=1)
        self.layer2 = _stage(64, 128, blocks, stride=2)
        self.layer3 = _stage(128, 256, blocks, stride=2)
        self.bn = nn.BatchNorm2d(256)
        self.relu = nn.ReLU(inplace=True)
        self.add_classifier(256, num_classes)
        kaiming_fan_out(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to the last map (N, 256, ceil(H / 4), ceil(W / 4))."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.relu(self.bn(x))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActivationBottleneck(in_channels, channels, stride)
    return nn.Sequential(first, *(PreActivationBottleneck(channels, channels) for _ in range(blocks - 1)))
