"""CBAM as other people write it, with the weights of this library's modules: what it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cbam.attach import Attachment


class TextbookChannel(nn.Module):
    """The channel gate as in most repositories that have one: adaptive pooling modules and 1x1 convolutions."""

    def __init__(self, channels: int, ratio: int = 16):
        super().__init__()
        hidden = max(1, channels // ratio)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = nn.AdaptiveMaxPool2d(1)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate, (N, C, 1, 1)."""
        avg_out = self.mlp(self.avg_pool(x))
        max_out = self.mlp(self.max_pool(x))
        return self.sigmoid(avg_out + max_out)


class TextbookSpatial(nn.Module):
    """The spatial gate as in most repositories that have one: mean and max along the channels, concatenated."""

    def __init__(self, kernel_size: int = 7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate, (N, 1, H, W)."""
        avg_out = torch.mean(x, dim=1, keepdim=True)
        max_out = torch.max(x, dim=1, keepdim=True)[0]
        return self.sigmoid(self.conv(torch.cat([avg_out, max_out], dim=1)))


class Textbook(nn.Module):
    """CBAM as commonly written. Its keys are the widespread ones, which are `cbam.CBAM`'s as well."""

    def __init__(self, channels: int):
        super().__init__()
        self.channel_attention = TextbookChannel(channels)
        self.spatial_attention = TextbookSpatial()

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        x = self.channel_attention(x) * x
        return self.spatial_attention(x) * x


class Careful(Textbook):
    """The same written with the fastest of PyTorch's reductions: `amax` for every maximum."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        mlp, conv = self.channel_attention.mlp, self.spatial_attention.conv
        x = x * torch.sigmoid(mlp(x.mean((2, 3), keepdim=True)) + mlp(x.amax((2, 3), keepdim=True)))
        return x * torch.sigmoid(conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))


def timm_module(weights: Mapping[str, Tensor], channels: int) -> nn.Module:
    """Return timm's `CbamModule` with the weights of a `cbam.CBAM`.

    It has a batch norm in the spatial gate. In eval mode its statistics make it the identity, so the function is the
    same; in training it normalises by the batch, which is more work and another function.
    """
    from timm.layers.cbam import CbamModule

    module = CbamModule(channels, rd_channels=len(weights["channel_attention.mlp.0.weight"]))
    names = {
        "channel.fc1.weight": "channel_attention.mlp.0.weight",
        "channel.fc2.weight": "channel_attention.mlp.2.weight",
        "spatial.conv.conv.weight": "spatial_attention.conv.weight",
    }
    module.load_state_dict({theirs: weights[ours] for theirs, ours in names.items()}, strict=False)
    norm = module.get_submodule("spatial.conv.bn")
    norm.get_buffer("running_var").fill_(1 - norm.eps)  # type: ignore[operator]
    return module


def with_module(
    kind: type[Textbook], plain: nn.Module, attended: nn.Module, attachment: Attachment
) -> nn.Module:
    """Return the plain network with a module of `kind` where `attended` has ours, and with its weights."""
    network = copy.deepcopy(plain)
    for site in attachment.sites:
        block = kind(site.channels)
        block.load_state_dict(attended.get_submodule(f"{site.name}.cbam").state_dict())
        host = network.get_submodule(site.name)
        both = (host, block) if site.position == "output" else (block, host)
        network.set_submodule(site.name, nn.Sequential(*both))
    return network


def calibrate(network: nn.Module, images: Tensor) -> None:
    """Give the batch norms of an untrained network the statistics of some images.

    In eval mode they would do nothing otherwise, and activations would grow or shrink from block to block, to another
    size in each of the networks; in trained networks they do not.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.inference_mode():
        network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
