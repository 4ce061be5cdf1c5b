"""One function from a name to a classifier."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from cbam.errors import CBAMError
from cbam.models.cifar import CifarResNet

CIFAR_DEPTHS = (20, 32, 44, 56, 110)


def build_model(
    name: str,
    num_classes: int,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    weights: Path | None = None,
) -> nn.Module:
    """Build a classifier by name."""
    for depth in CIFAR_DEPTHS:
        if name == f"resnet{depth}":
            return CifarResNet(depth, num_classes, in_channels)
    raise CBAMError(f"unknown model {name!r}")
