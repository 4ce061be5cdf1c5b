"""Weights of a whole detector from a file: torchvision's, or those of a training here."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_Weights,
)
from torchvision.ops import FrozenBatchNorm2d

from cbam.checkpoints.loading import load_unpacked
from cbam.checkpoints.reading import look_at
from cbam.checkpoints.report import WeightsReport
from cbam.checkpoints.unpacking import unpack
from cbam.errors import CBAMError
from cbam.models.detection.vgg import VGGTrunk
from cbam.models.files import load_backbone

_log = logging.getLogger(__name__)

# What depends on the number of classes: its rows are those of the classes.
PREDICTORS = (
    "roi_heads.box_predictor.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
    "head.classification_head.cls_logits.",  # RetinaNet, FCOS
    "head.classification_head.module_list.",  # SSD
)
# torchvision trained these with norms of eps 0 and sets that itself when it downloads them.
_WITHOUT_EPS = {
    weights.COCO_V1.url.rpartition("/")[2]
    for weights in (
        FasterRCNN_ResNet50_FPN_Weights,
        MaskRCNN_ResNet50_FPN_Weights,
        RetinaNet_ResNet50_FPN_Weights,
    )
}


def load_classifier(network: nn.Module, path: str | Path) -> WeightsReport:
    """Load a classifier's file into the network that becomes a backbone, and log what was loaded.

    Args:
        network: changed in place. A `VGGTrunk` takes the convolutions of a VGG16.
        path: a .safetensors, .pth, .pt or .bin file.

    Raises:
        CBAMError: as `cbam.load_weights`; the network is then unchanged.
    """
    if not isinstance(network, VGGTrunk):
        return load_backbone(network, path)
    packed = unpack(look_at(path), wanted=network.state_dict())
    state = {key: value for key, value in packed.tensors().items() if not key.startswith("classifier.")}
    report = load_unpacked(network, packed.holding(state))
    _log.info("%s", report)
    return report


def load_detector(model: nn.Module, path: str | Path) -> WeightsReport:
    """Load a detector's file like `cbam.load_weights`, but for any number of classes, and log what was loaded.

    Predictors for another number of classes keep their initial values; everything else must fit. The attention of the
    model keeps its values if the file has none.

    Args:
        model: changed in place.
        path: a .safetensors, .pth, .pt or .bin file. Of torchvision's, those whose norms have eps 0 are known by name.

    Raises:
        CBAMError: as `cbam.load_weights`; the model is then unchanged.
    """
    own = model.state_dict()
    packed = unpack(look_at(path), wanted=own)
    state = {_today(key, own): value for key, value in packed.tensors().items()}
    state = {key: value for key, value in state.items() if key in own or not _is_counter(key)}
    fresh = {
        key: own[key]
        for key in own
        if key in state and key.startswith(PREDICTORS) and _has_other_rows(state[key], own[key])
    }
    _check_boxes(path, state, own)
    report = load_unpacked(model, packed.holding({**state, **fresh}))
    notes = []
    if fresh:
        layers = dict.fromkeys(key.rpartition(".")[0] for key in fresh)
        notes.append(f"another number of classes: newly initialised are {', '.join(layers)}")
    if Path(path).name in _WITHOUT_EPS:
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = 0.0
        notes.append("the frozen norms have eps 0, as torchvision trained these weights")
    report = replace(
        report, loaded=tuple(n for n in report.loaded if n not in fresh), notes=(*report.notes, *notes)
    )
    _log.info("%s", report)
    return report


# Names in files from before torchvision 0.13, such as those of its first weights, and those of today.
_RENAMED: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(\w+)"), r"\1.0.\2"),
    (re.compile(r"(rpn\.head\.conv)\.(\w+)"), r"\1.0.0.\2"),
    (re.compile(r"(mask_head)\.mask_fcn(\d+)\.(\w+)"), lambda m: f"{m[1]}.{int(m[2]) - 1}.0.{m[3]}"),
    (re.compile(r"(_head\.conv)\.(\d+)\.(\w+)"), lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}"),
)


def _today(key: str, own: Mapping[str, Tensor]) -> str:
    """Return the model's name for a name in a file."""
    if key not in own:
        for pattern, new in _RENAMED:
            renamed = pattern.sub(new, key)
            if renamed in own:
                return renamed
    return key


def _is_counter(key: str) -> bool:
    return key.endswith(".num_batches_tracked")  # frozen norms have none


def _has_other_rows(given: Tensor, own: Tensor) -> bool:
    return given.ndim == own.ndim and given.shape[0] != own.shape[0] and given.shape[1:] == own.shape[1:]


def _check_boxes(path: str | Path, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Refuse default boxes of another layout: with them the file's predictions mean other boxes."""
    key = "head.regression_head.module_list.0.bias"
    if key in state and key in own and state[key].shape != own[key].shape:
        theirs, ours = (len(s[key]) // 4 for s in (state, own))
        raise CBAMError(
            f"{str(path)!r} has {theirs} default boxes at each place of its first map, and this detector {ours}."
            " torchvision's weights want boxes='coco'; the paper's counts fit boxes='paper'."
        )
