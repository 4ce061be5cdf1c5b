"""Backbones: the paper's networks, the small ResNets, and everything torchvision and timm know."""

from cbam.models.build import build_model, model_names
from cbam.models.cam_layer import cam_layer
from cbam.models.cifar import CifarResNet
from cbam.models.files import LoadReport, load_file
from cbam.models.mobilenet import MobileNetV1
from cbam.models.own import made_for
from cbam.models.preactivation import PreActivationResNet
from cbam.models.widen import widen

__all__ = [
    "CifarResNet",
    "LoadReport",
    "MobileNetV1",
    "PreActivationResNet",
    "build_model",
    "cam_layer",
    "load_file",
    "made_for",
    "model_names",
    "widen",
]
