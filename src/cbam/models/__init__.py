"""Backbones: our CIFAR ResNets, the paper's ImageNet ResNets, and everything torchvision and timm know."""

from cbam.models.build import build_model, model_names
from cbam.models.cifar import CifarResNet
from cbam.models.files import LoadReport, load_file

__all__ = ["CifarResNet", "LoadReport", "build_model", "load_file", "model_names"]
