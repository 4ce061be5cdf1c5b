"""Images with objects for training detectors: COCO, VOC and YOLO folders, checked before use."""

from cbam.data.detection.detection_data import DetectionData
from cbam.data.detection.doctor import DetectionReport, check_detection
from cbam.data.detection.generate import write_generated
from cbam.data.detection.images import DetectionImages
from cbam.data.detection.load import load_detection
from cbam.data.detection.records import DetectionRecord

__all__ = [
    "DetectionData",
    "DetectionImages",
    "DetectionRecord",
    "DetectionReport",
    "check_detection",
    "load_detection",
    "write_generated",
]
