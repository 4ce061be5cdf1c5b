"""torchvision's Faster R-CNN, Mask R-CNN, RetinaNet and FCOS on a classifier of ours or theirs."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign

from cbam.models.detection.backbone import C4, levels, out_channels, pyramid
from cbam.models.detection.names import MOBILENETS, Detector

CLASSES: dict[str, type[nn.Module]] = {
    "fasterrcnn": FasterRCNN,
    "maskrcnn": MaskRCNN,
    "retinanet": RetinaNet,
    "fcos": FCOS,
}
_SIDES, _RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)


def build_on_classifier(
    parsed: Detector, network: nn.Module, classes: int, options: dict[str, Any]
) -> nn.Module:
    """Return a detector whose backbone is a classifier.

    Args:
        parsed: its name.
        network: the classifier; the detector takes its stages.
        classes: with the background.
        options: of torchvision's class.
    """
    if parsed.kind in ("retinanet", "fcos"):
        return CLASSES[parsed.kind](pyramid(network, parsed.backbone, dense=True), classes, **options)
    model: FasterRCNN = _with_proposals(parsed, network, classes, options)
    model.roi_heads.__class__ = RoIHeadsOfAny
    return model


class RoIHeadsOfAny(RoIHeads):
    """torchvision's heads that also train where a batch has neither objects nor proposals.

    Their loss is a mean over the sampled boxes, NaN for none. Here one box of the first image then serves as a sample
    of the background, which it is.
    """

    def add_gt_proposals(self, proposals: list[Tensor], gt_boxes: list[Tensor]) -> list[Tensor]:
        """Return the proposals (K, 4) of each image with its objects."""
        found = super().add_gt_proposals(proposals, gt_boxes)
        if not any(map(len, found)):
            found[0] = found[0].new_tensor([[0.0, 0.0, 16.0, 16.0]])
        return found


def _with_proposals(parsed: Detector, network: nn.Module, classes: int, options: dict[str, Any]) -> Any:
    if parsed.neck == "c4":
        return _c4(network, classes, options)
    if parsed.backbone in MOBILENETS:
        count = len(levels(network)) + 1  # and the pooled one
        options = {"rpn_anchor_generator": AnchorGenerator((_SIDES,) * count, (_RATIOS,) * count), **options}
    if parsed.backbone == "mobilenet_v3_large":
        options = {"rpn_score_thresh": 0.05, **options}  # as torchvision's
    return CLASSES[parsed.kind](pyramid(network, parsed.backbone), classes, **options)


def _c4(network: Any, classes: int, options: dict[str, Any]) -> FasterRCNN:
    """Return the Faster R-CNN without a pyramid, as in the paper's Table 6: the last stage runs on every region."""
    layer4, channels = network.layer4, out_channels(network)
    head = nn.Sequential(OrderedDict(layer4=layer4, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    given: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator((_SIDES,), (_RATIOS,)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        "box_head": head,
        "box_predictor": FastRCNNPredictor(channels, classes),
    }
    return FasterRCNN(C4(network), **{**given, **options})
