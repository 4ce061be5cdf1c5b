"""Images with objects for training detectors: COCO, VOC and YOLO folders, checked before use."""

from cbam.data.detection.batches import PreparedDetection, make_detection_loader
from cbam.data.detection.detection_data import DetectionData
from cbam.data.detection.doctor import DetectionReport, check_detection
from cbam.data.detection.generate import write_generated
from cbam.data.detection.images import DetectionImages
from cbam.data.detection.load import load_detection
from cbam.data.detection.records import DetectionRecord
from cbam.data.detection.transforms import AUGMENTATIONS

__all__ = [
    "AUGMENTATIONS",
    "DetectionData",
    "DetectionImages",
    "DetectionRecord",
    "DetectionReport",
    "PreparedDetection",
    "check_detection",
    "load_detection",
    "make_detection_loader",
    "write_generated",
]
