"""The detectors by name: which kind, on which backbone, with which maps."""

from __future__ import annotations

from typing import NamedTuple

from cbam.errors import CBAMError, nearest

RESNETS: tuple[str, ...] = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
    *(f"paper_resnet{depth}" for depth in (18, 34, 50, 101, 152, 200)),
    "paper_resnext50_32x4d", "paper_resnext101_32x4d", "wrn18_1.5", "wrn18_2.0",
)  # fmt: skip
MOBILENETS: tuple[str, ...] = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small")
SSD_KINDS: tuple[str, ...] = ("ssd300", "stairnet300")

# {kind: {neck: backbones}}; a neck is the end of the name.
_KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "fasterrcnn": {"fpn": RESNETS + MOBILENETS, "c4": RESNETS},
    "maskrcnn": {"fpn": RESNETS + MOBILENETS},
    "retinanet": {"fpn": RESNETS},
    "fcos": {"fpn": RESNETS},
}


class Detector(NamedTuple):
    """A detector's name in parts.

    Args:
        kind: "fasterrcnn", "maskrcnn", "retinanet", "fcos", "ssd300" or "stairnet300".
        backbone: name for `cbam.models.build_model`.
        neck: "fpn", "c4" or, in the last two, "".
    """

    kind: str
    backbone: str
    neck: str


def _all() -> dict[str, Detector]:
    found = {
        f"{kind}_{backbone}_{neck}": Detector(kind, backbone, neck)
        for kind, necks in _KINDS.items()
        for neck, backbones in necks.items()
        for backbone in backbones
    }
    for kind in SSD_KINDS:
        found[f"{kind}_vgg16"] = Detector(kind, "vgg16", "")
        found[f"{kind}_mobilenet"] = Detector(kind, "mobilenet_v1", "")
    return found


_DETECTORS = _all()


def detector_names() -> list[str]:
    """Return all names that `build_detector` knows.

    >>> [name for name in detector_names() if "300" in name]
    ['ssd300_vgg16', 'ssd300_mobilenet', 'stairnet300_vgg16', 'stairnet300_mobilenet']
    """
    return list(_DETECTORS)


def parse_name(name: str) -> Detector:
    """Return a detector's name in parts.

    Raises:
        CBAMError: for an unknown name; the message has the nearest.

    >>> parse_name("fasterrcnn_resnet50_c4")
    Detector(kind='fasterrcnn', backbone='resnet50', neck='c4')
    """
    if name in _DETECTORS:
        return _DETECTORS[name]
    close = nearest(name, _DETECTORS)
    hint = f" Did you mean {', '.join(map(repr, close))}?" if close else ""
    raise CBAMError(
        f"unknown detector {name!r}.{hint} Valid: fasterrcnn_, maskrcnn_, retinanet_ and fcos_BACKBONE_fpn,"
        f" fasterrcnn_BACKBONE_c4, with a ResNet such as resnet50;"
        " ssd300_ and stairnet300_vgg16 and _mobilenet. To list them:"
        " python -c 'import cbam.models.detection as d; print(d.detector_names())'"
    )
