"""Build a detector by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cbam.attach.config import Attention
from cbam.attach.sites.select import Sites
from cbam.errors import CBAMError, unknown_name
from cbam.models.detection.attention import DetectorAttention, attach_to_backbone, attach_to_detector
from cbam.models.detection.backbone import build_classifier, count_trainable, freeze_first
from cbam.models.detection.names import SSD_KINDS, Detector, parse_name
from cbam.models.detection.norms import freeze_gate_norms, freeze_norms
from cbam.models.detection.rcnn import CLASSES, build_on_classifier
from cbam.models.detection.ssd import build_ssd
from cbam.models.detection.weights import load_classifier, load_detector

NORMS = ("auto", "frozen", "batch")


def build_detector(
    name: str,
    classes: int,
    *,
    attention: Attention = "none",
    sites: Sites | None = None,
    init: str | None = None,
    attention_options: Mapping[str, Any] | None = None,
    weights_backbone: str | Path | None = None,
    weights: str | Path | None = None,
    trainable_layers: int | None = None,
    norm: str = "auto",
    width: float = 1.0,
    boxes: str = "paper",
    **options: Any,
) -> nn.Module:
    """Build a detector with torchvision's interface, plain or with attention.

    In training it maps (images, targets) to a dict of losses, in evaluation mode images to a list of dicts with
    boxes, labels and scores. Images are a list of float tensors (3, H, W) with values in 0..1. Labels are 1 to
    `classes`; 0 is the background, in every kind of detector.

    - `fasterrcnn_BACKBONE_fpn`, `maskrcnn_BACKBONE_fpn`, `retinanet_BACKBONE_fpn`, `fcos_BACKBONE_fpn`: torchvision's,
      with a ResNet, ResNeXt or wide ResNet of torchvision's (`resnet50`) or of the paper (`paper_resnet50`), the first
      two also with a MobileNet. The plain ones are torchvision's bit for bit.
    - `fasterrcnn_BACKBONE_c4`: without a pyramid, as in Table 6: the last stage runs on every region.
    - `ssd300_vgg16`, `ssd300_mobilenet`, `stairnet300_vgg16`, `stairnet300_mobilenet`: as in Table 7. Images become
      300 x 300 pixels.

    Args:
        name: see above; `detector_names()` lists all.
        classes: number of classes, without the background.
        attention: a kind for `cbam.attach`, or "none".
        sites: "backbone": at the end of every residual branch, in MobileNetV1 behind every convolution, in VGG16 at
            the end of every stage; "head": right before every classifier, the default of SSD300 and StairNet300; or
            any other `sites` of `cbam.attach`, in the whole detector.
        init: "identity" or "paper"; by default "identity" with weights from a file, else "paper".
        attention_options: of the attention, such as {"reduction_ratio": 8}.
        weights_backbone: a classifier's state dict, with attention or without, as for `cbam.models.build_model`.
        weights: a detector's state dict, such as torchvision's; predictors of other classes are newly initialised.
        trainable_layers: layers of the backbone that train, from the last one on; by default 3 with weights, else all.
            New gates train everywhere.
        norm: of the backbone: "batch", or "frozen": batch norms with fixed statistics and weights; the gates' own
            norms then keep their statistics, too. "auto": frozen with weights, except in SSD300 and StairNet300.
        width: factor on all channels of MobileNetV1, VGG16 and what SSD300 and StairNet300 have behind them.
        boxes: default boxes of SSD300 and StairNet300 on VGG16: "paper": those that the paper's counts fit, six at
            each place of the first map; "voc" and "coco": SSD's four there, "coco" those of torchvision's weights.
        **options: of torchvision's class: min_size, max_size, image_mean, box_score_thresh, rpn_post_nms_top_n_train,
            ...

    Raises:
        CBAMError: an unknown name or option; weights that do not fit; what `cbam.attach` raises.

    >>> import torch
    >>> model = build_detector("fasterrcnn_resnet18_fpn", 3, attention="cbam", min_size=64, max_size=64).eval()
    >>> sorted(model([torch.rand(3, 64, 64)])[0])
    ['boxes', 'labels', 'scores']
    """
    parsed = parse_name(name)
    if not isinstance(classes, int) or classes < 1:
        raise CBAMError(f"classes is their number without the background, at least 1, given {classes!r}.")
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    _check_options(parsed, options)
    if boxes != "paper" and (parsed.kind not in SSD_KINDS or parsed.backbone != "vgg16"):
        raise CBAMError(f"boxes={boxes!r} is for SSD300 and StairNet300 on VGG16, not for {name}.")
    is_ssd, pretrained = parsed.kind in SSD_KINDS, weights is not None or weights_backbone is not None
    chosen = DetectorAttention(
        attention,
        ("head" if is_ssd else "backbone") if sites is None else sites,
        init or ("identity" if pretrained else "paper"),
        attention_options or {},
    )
    frozen = norm == "frozen" or (norm == "auto" and pretrained and not is_ssd)
    network = build_classifier(parsed.backbone, width)
    trained = count_trainable(parsed.backbone, trainable_layers, pretrained)
    if chosen.in_backbone:
        attach_to_backbone(network, parsed.backbone, chosen)
    fresh = weights_backbone is None or bool(load_classifier(network, weights_backbone).kept)
    if frozen:
        freeze_norms(network)
    if is_ssd:
        model: nn.Module = build_ssd(
            parsed.kind == "stairnet300", network, classes + 1, boxes, width, options
        )
    else:
        model = build_on_classifier(parsed, network, classes + 1, options)
    if chosen.in_detector:
        attach_to_detector(model, chosen)
        if frozen:
            freeze_gate_norms(model)
    if weights is not None:
        fresh = bool(load_detector(model, weights).kept)
    freeze_first(network, parsed.backbone, trained, fresh)
    return model


_OURS = ("self", "backbone", "num_classes", "kwargs", "anchor_generator", "head", "size")


def _check_options(parsed: Detector, options: Mapping[str, Any]) -> None:
    """Refuse options that torchvision's class does not have: it would hand them to its transform, which fails late."""
    if parsed.kind in SSD_KINDS:
        classes: list[Any] = [SSD]
    else:
        classes = [CLASSES[parsed.kind], GeneralizedRCNNTransform]
    if parsed.kind == "maskrcnn":
        classes.append(FasterRCNN)
    known = {name for each in classes for name in inspect.signature(each.__init__).parameters} - {*_OURS}
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {parsed.kind}", option, sorted(known))
