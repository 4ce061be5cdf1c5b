"""U-Nets in the forms in which people write them; the right sites are known by reading them."""

import torch
import torch.nn.functional as F
from torch import nn


def double(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
    )  # fmt: skip


class DoubleConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.double_conv = double(inputs, outputs)

    def forward(self, x):
        return self.double_conv(x)


class SequenceUNet(nn.Module):
    """All blocks are plain sequences; `mode` is how the decoder enlarges its map."""

    def __init__(self, block=double, classes=2, mode="transposed"):
        super().__init__()
        self.enc1, self.enc2, self.middle = block(3, 4), block(4, 8), block(8, 16)
        self.pool = nn.MaxPool2d(2)
        if mode == "transposed":
            self.up2, self.up1 = nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)
        else:
            self.up2, self.up1 = (
                nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(2 * c, c, 1)) for c in (8, 4)
            )
        self.dec2, self.dec1 = block(16, 8), block(8, 4)
        self.out = nn.Conv2d(4, classes, 1)

    def forward(self, x):
        one = self.enc1(x)
        two = self.enc2(self.pool(one))
        y = self.middle(self.pool(two))
        y = self.dec2(torch.cat([two, self.up2(y)], 1))
        y = self.dec1(torch.cat([one, self.up1(y)], 1))
        return self.out(y)


class FunctionalUNet(nn.Module):
    """Activations, pooling and enlargement are functions; the skip connection is a sum, the output probabilities."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.out = nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        one = F.relu(self.conv1(x))
        two = F.relu(self.conv2(F.max_pool2d(one, 2)))
        y = F.interpolate(self.conv3(two), scale_factor=2, mode="bilinear") + one
        return torch.sigmoid(self.out(F.relu(self.norm(self.conv4(y)))))


class Gate(nn.Module):
    """Attention gate of a small U-Net of its own: pooled, convolved, enlarged."""

    def __init__(self, channels):
        super().__init__()
        self.pool, self.conv = nn.MaxPool2d(2), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x * torch.sigmoid(F.interpolate(self.conv(self.pool(x)), scale_factor=2))


class Context(nn.Module):
    """Pooled context beside the map, as in PSPNet."""

    def __init__(self, channels):
        super().__init__()
        self.pool, self.conv = nn.AdaptiveAvgPool2d(3), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return torch.cat([x, F.interpolate(self.conv(self.pool(x)), size=x.shape[2:])], 1)
