"""Where a network looks: class activation maps, and pictures of them."""

from cbam.explain.cams import ClassActivationMaps, class_activation_maps
from cbam.explain.pictures import gradcam_pictures

__all__ = ["ClassActivationMaps", "class_activation_maps", "gradcam_pictures"]
