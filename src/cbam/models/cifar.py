"""The small ResNets for 32 x 32 images of He et al. (arXiv 1512.03385), section 4.2."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cbam.errors import CBAMError
from cbam.models.classifier import MapClassifier, check_counts, kaiming_fan_out


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut "option A": every second row and column, and zeros for the new channels.

    Args:
        in_channels: channels C of the input (N, C, H, W).
        out_channels: channels of the output (N, out_channels, ceil(H / stride), ceil(W / stride)).
        stride: step between the rows and columns that are kept.

    Source: He et al., sections 3.3 and 4.2 ("we use identity shortcuts in all cases (i.e., option A)").

    >>> import torch
    >>> PaddedShortcut(16, 32)(torch.ones(1, 16, 7, 7)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2):
        super().__init__()
        self.new_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C + new_channels, ceil(H / stride), ceil(W / stride))."""
        kept = x[:, :, :: self.stride, :: self.stride]
        before = self.new_channels // 2
        return F.pad(kept, (0, 0, 0, 0, before, self.new_channels - before))

    def extra_repr(self) -> str:
        """Show what the shortcut adds and skips."""
        return f"new_channels={self.new_channels}, stride={self.stride}"


class CifarBlock(nn.Module):
    """A basic residual block with torchvision's names: relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)).

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        stride: stride of the first convolution.

    >>> import torch
    >>> CifarBlock(16, 32, stride=2)(torch.ones(1, 16, 28, 28)).shape
    torch.Size([1, 32, 14, 14])
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        same = stride == 1 and in_channels == channels
        self.downsample = None if same else PaddedShortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + shortcut
        return self.relu(out)


class CifarResNet(MapClassifier):
    """A ResNet of 6n + 2 layers with 16, 32 and 64 channels for small images.

    Args:
        depth: 20, 32, 44, 56, 110, or any other 6n + 2.
        num_classes: width of the classifier.
        in_channels: channels of the images, 1 for grey ones.

    Source: He et al., section 4.2 and Table 6 (ResNet-20: 0.27 M parameters). Kaiming weights (fan out,
    as torchvision's ResNet), option-A shortcuts without parameters. The paper's images are 32 x 32; any size
    works.

    Raises:
        CBAMError: if the depth is not 6n + 2, or a count is below 1.

    >>> net = CifarResNet(20, num_classes=10)
    >>> sum(p.numel() for p in net.parameters())
    269722
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3):
        if depth < 8 or (depth - 2) % 6:
            raise CBAMError(f"a CIFAR ResNet has 6n + 2 layers, given {depth}. Take 20, 32, 44, 56 or 110.")
        check_counts(num_classes, in_channels)
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.add_classifier(64, num_classes)
        kaiming_fan_out(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to the last map (N, 64, ceil(H / 4), ceil(W / 4))."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = CifarBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(CifarBlock(channels, channels) for _ in range(blocks - 1)))
