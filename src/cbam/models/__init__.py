"""Backbones: our CIFAR ResNets, the paper's ImageNet ResNets, and everything torchvision and timm know."""

from cbam.models.build import build_model, model_names
from cbam.models.cam_layer import cam_layer
from cbam.models.cifar import CifarResNet
from cbam.models.files import LoadReport, load_file
from cbam.models.widen import widen

__all__ = ["CifarResNet", "LoadReport", "build_model", "cam_layer", "load_file", "model_names", "widen"]
