"""How well a detector finds objects: COCO's and VOC's average precision, and how far it depends on the images."""

from cbam.evaluate.detection.bootstrap import BootstrapInterval, bootstrap_ap
from cbam.evaluate.detection.coco import CocoEvaluator
from cbam.evaluate.detection.voc import VocEvaluator

__all__ = ["BootstrapInterval", "CocoEvaluator", "VocEvaluator", "bootstrap_ap"]
