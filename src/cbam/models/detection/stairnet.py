"""StairNet300: SSD300 whose maps get features of all coarser ones, from the top down.

Woo et al., arXiv 1709.05788. The paper leaves out what this needs; the parts are those of its second author's PyTorch
code, and with VGG16 the counts are those of the CBAM paper's Table 7: 32,005,600 parameters for 20 classes, with
per-level predictors on 256 channels. Predictors that all levels share would give 30.5 M. docs/decisions has the whole.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from cbam.nn.norms import BatchNorm2dOfAny

_MOMENTUM = 0.01  # of the norms


class Stairs(nn.Module):
    """Top-down features on the maps of SSD300: fused = up(fused of the next coarser map) + lateral(map).

    What a predictor sees is a last convolution's map of the fused one. Nothing else reads that map, so attention right
    before every classifier goes behind it.

    Args:
        maps: the network that gives the six maps; `out_channels` and `sides` say what they are like.
        channels: of all fused maps.
        depthwise: for MobileNet: the transposed convolutions become a depthwise and a 1x1 one, the last convolutions
            depthwise.

    >>> import torch
    >>> from cbam.models.detection.ssd import VGGMaps, VGGTrunk
    >>> stairs = Stairs(VGGMaps(VGGTrunk(1 / 16), 1 / 16), 16).eval()
    >>> [tuple(m.shape[1:]) for m in stairs(torch.zeros(1, 3, 300, 300)).values()]
    [(16, 38, 38), (16, 19, 19), (16, 10, 10), (16, 5, 5), (16, 3, 3), (16, 1, 1)]
    """

    def __init__(self, maps: Any, channels: int, depthwise: bool = False):
        super().__init__()
        self.maps = maps
        self.out_channels = [channels] * len(maps.out_channels)
        self.sides = maps.sides
        self.lateral = nn.ModuleList(_lateral(width, channels) for width in maps.out_channels)
        steps = zip(self.sides[1:], self.sides, strict=False)
        self.up = nn.ModuleList(_up(channels, coarse, fine, depthwise) for coarse, fine in steps)
        self.last = nn.ModuleList(_last(channels, depthwise) for _ in self.sides)
        for part in (self.lateral, self.up, self.last):
            for layer in part.modules():
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                    nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Map images (N, 3, 300, 300) to the maps of the predictors, the finest first."""
        maps = list(self.maps(x).values())
        fused = self.lateral[-1](maps[-1])
        found = [self.last[-1](fused)]
        for level in reversed(range(len(maps) - 1)):
            side = self.lateral[level](maps[level])
            fused = self.up[level](fused) + side
            found.append(self.last[level](fused))
        return OrderedDict((str(i), m) for i, m in enumerate(reversed(found)))


def _lateral(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), _norm(channels))


def _up(channels: int, coarse: int, fine: int, depthwise: bool) -> nn.Sequential:
    """Return the layers that enlarge a map of coarse^2 places to fine^2: by 2, but from 1 to 3."""
    geometry = {"stride": 2, "padding": 1, "output_padding": fine - (2 * coarse - 1)}
    if (coarse, fine) == (1, 3):
        geometry = {}
    groups = channels if depthwise else 1
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(channels, channels, 3, groups=groups, bias=False, **geometry)  # type: ignore[arg-type]
    ]
    if depthwise:
        layers.append(nn.Conv2d(channels, channels, 1, bias=False))
    return nn.Sequential(*layers, _norm(channels))


def _last(channels: int, depthwise: bool) -> nn.Sequential:
    groups = channels if depthwise else 1
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
    return nn.Sequential(conv, _norm(channels), nn.ReLU(inplace=True))


def _norm(channels: int) -> nn.BatchNorm2d:
    return BatchNorm2dOfAny(channels, momentum=_MOMENTUM)
