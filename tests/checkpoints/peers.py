"""The formats, each written anew from its equations with its own key names; no code of the library in here.

Sources: see `cbam.checkpoints.formats`. Each class is the smallest module that has these names and this function.
"""

import torch
from torch import nn
from torch.nn import functional as F


class OfficialChannel(nn.Module):
    def __init__(self, channels, ratio):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels, channels // ratio),
            nn.ReLU(),
            nn.Linear(channels // ratio, channels),
        )

    def forward(self, x):
        size = x.shape[2:]
        z = self.mlp(F.avg_pool2d(x, size, stride=size)) + self.mlp(F.max_pool2d(x, size, stride=size))
        return x * torch.sigmoid(z)[:, :, None, None]


class ConvNorm(nn.Module):
    def __init__(self, momentum=0.01):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, eps=1e-5, momentum=momentum)

    def forward(self, x):
        return self.bn(self.conv(x))


class OfficialSpatial(nn.Module):
    def __init__(self):
        super().__init__()
        self.spatial = ConvNorm()

    def forward(self, x):
        maps = torch.stack([x.max(1).values, x.mean(1)], dim=1)
        return x * torch.sigmoid(self.spatial(maps))


class Official(nn.Module):
    def __init__(self, channels, ratio=16, no_spatial=False):
        super().__init__()
        self.ChannelGate = OfficialChannel(channels, ratio)
        self.SpatialGate = None if no_spatial else OfficialSpatial()

    def forward(self, x):
        x = self.ChannelGate(x)
        return x if self.SpatialGate is None else self.SpatialGate(x)


class PytorchcvMLP(nn.Module):
    def __init__(self, channels, ratio):
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // ratio)
        self.fc2 = nn.Linear(channels // ratio, channels)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


class PytorchcvChannel(nn.Module):
    def __init__(self, channels, ratio):
        super().__init__()
        self.mlp = PytorchcvMLP(channels, ratio)

    def forward(self, x):
        return x * torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))[:, :, None, None]


class PytorchcvSpatial(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = ConvNorm(momentum=0.1)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(torch.stack([x.amax(1), x.mean(1)], dim=1)))


class Pytorchcv(nn.Module):
    def __init__(self, channels, ratio=16):
        super().__init__()
        self.ch_gate = PytorchcvChannel(channels, ratio)
        self.sp_gate = PytorchcvSpatial()

    def forward(self, x):
        return self.sp_gate(self.ch_gate(x))


def MLP(channels, ratio=16, bias=False):
    hidden = channels // ratio
    return nn.Sequential(
        nn.Conv2d(channels, hidden, 1, bias=bias), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=bias)
    )


class Gate(nn.Module):
    """A channel gate with its MLP under `name`; the product is up to the caller."""

    def __init__(self, name, channels, ratio=16):
        super().__init__()
        self.name = name
        self.add_module(name, MLP(channels, ratio))

    def forward(self, x):
        mlp = getattr(self, self.name)
        return torch.sigmoid(mlp(x.mean((2, 3), keepdim=True)) + mlp(x.amax((2, 3), keepdim=True)))


class Where(nn.Module):
    """A spatial gate with its convolution under `name`."""

    def __init__(self, name, size=7, bias=False, max_first=False):
        super().__init__()
        self.name, self.max_first = name, max_first
        self.add_module(name, nn.Conv2d(2, 1, size, padding=size // 2, bias=bias))

    def forward(self, x):
        maps = [x.mean(1), x.amax(1)]
        return torch.sigmoid(
            getattr(self, self.name)(torch.stack(maps[::-1] if self.max_first else maps, dim=1))
        )


class Textbook(nn.Module):
    def __init__(self, channels, ratio=16, size=7):
        super().__init__()
        self.channel_attention = Gate("mlp", channels, ratio)
        self.spatial_attention = Where("conv", size)

    def forward(self, x):
        x = x * self.channel_attention(x)
        return x * self.spatial_attention(x)


class Luuuyi(nn.Module):
    def __init__(self, channels, ratio=16, size=7):
        super().__init__()
        self.ca = Gate("fc", channels, ratio)
        self.sa = Where("conv1", size)

    def forward(self, x):
        x = self.ca(x) * x
        return self.sa(x) * x


class Changzy00(Luuuyi):
    def __init__(self, channels, ratio=16, size=7):
        super().__init__(channels, ratio)
        self.sa = Where("conv", size)


class Xmu(nn.Module):
    def __init__(self, channels, ratio=16, size=49):
        super().__init__()
        self.ca = Gate("se", channels, ratio)
        self.sa = Where("conv", size, bias=True, max_first=True)

    def forward(self, x):
        y = x * self.ca(x)
        y = y * self.sa(y)
        return y + x


class ConvModule(nn.Module):
    """open-mmlab's: the convolution is `conv`, an activation may follow."""

    def __init__(self, conv, relu=False):
        super().__init__()
        self.conv, self.relu = conv, relu

    def forward(self, x):
        return torch.relu(self.conv(x)) if self.relu else self.conv(x)


class MmyoloChannel(nn.Module):
    def __init__(self, channels, ratio):
        super().__init__()
        hidden = int(channels / ratio)
        self.fc = nn.Sequential(
            ConvModule(nn.Conv2d(channels, hidden, 1), relu=True), ConvModule(nn.Conv2d(hidden, channels, 1))
        )

    def forward(self, x):
        return torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)) + self.fc(x.amax((2, 3), keepdim=True)))


class MmyoloSpatial(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.conv = ConvModule(nn.Conv2d(2, 1, size, padding=size // 2))

    def forward(self, x):
        return torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))


class Mmyolo(nn.Module):
    def __init__(self, channels, ratio=16, size=7):
        super().__init__()
        self.channel_attention = MmyoloChannel(channels, ratio)
        self.spatial_attention = MmyoloSpatial(size)

    def forward(self, x):
        x = self.channel_attention(x) * x
        return self.spatial_attention(x) * x


def timm_cbam(channels, **options):
    """timm's own module, not a copy."""
    from timm.layers.cbam import CbamModule

    return CbamModule(channels, **options)


def shaken(module, seed=0):
    """Draw all weights, biases and statistics, so that no plane, bias or norm can be mistaken for another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                low, high = (
                    (0.5, 1.5) if "var" in name or ("bn" in name and "weight" in name) else (-0.5, 0.5)
                )
                tensor.copy_(
                    torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * (high - low) + low
                )
    return module.eval()
