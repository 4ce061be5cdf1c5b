"""Backbones: our CIFAR ResNets, the paper's ImageNet ResNets, and everything torchvision and timm know."""

from cbam.models.build import build_model

__all__ = ["build_model"]
