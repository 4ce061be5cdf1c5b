"""VGG16's convolutions, of any width: the backbone of SSD300."""

from __future__ import annotations

from torch import Tensor, nn

from cbam.errors import CBAMError

# Channels of VGG16's 13 convolutions; "M" is a max pooling.
_LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


class VGGTrunk(nn.Module):
    """The convolutions of VGG16, with torchvision's keys.

    Args:
        width: factor on all channels, rounded down.

    >>> import torch
    >>> VGGTrunk(1 / 16)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for full in _LAYERS:
            if isinstance(full, str):
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=len(layers) == 16))  # 75 pixels to 38
                continue
            layers += [nn.Conv2d(channels, scaled(full, width), 3, padding=1), nn.ReLU(inplace=True)]
            channels = scaled(full, width)
        self.features = nn.Sequential(*layers)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the last map, at 1/16 of their size."""
        return self.features(x)


def scaled(channels: int, width: float) -> int:
    """Return channels times width, rounded down.

    Raises:
        CBAMError: if none are left.

    >>> scaled(512, 0.3)
    153
    """
    if int(channels * width) < 1:
        raise CBAMError(f"width must leave at least 1 of {channels} channels, given {width}.")
    return int(channels * width)
