"""Detectors with attention: torchvision's Faster R-CNN, Mask R-CNN, RetinaNet, FCOS and SSD, and StairNet."""

try:
    import torchvision as _  # noqa: F401
except ImportError:
    from cbam.errors import MissingExtra

    raise MissingExtra("building a detector", "compare", "torchvision") from None

from cbam.models.detection.build import build_detector
from cbam.models.detection.names import detector_names

__all__ = ["build_detector", "detector_names"]
