"""Backbones: the paper's networks, the small ResNets, and everything torchvision and timm know."""

from cbam.models.build import build_model, model_names
from cbam.models.cam_layer import cam_layer
from cbam.models.cifar import CifarResNet
from cbam.models.matched_control import match_parameters
from cbam.models.mobilenet import MobileNetV1
from cbam.models.preactivation import PreActivationResNet
from cbam.models.registry import made_for

__all__ = [
    "CifarResNet",
    "MobileNetV1",
    "PreActivationResNet",
    "build_model",
    "cam_layer",
    "made_for",
    "match_parameters",
    "model_names",
]
