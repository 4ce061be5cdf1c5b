"""Our own backbones by name: how each is built, for which images, and the sites of its attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from cbam.errors import MissingExtra
from cbam.models.cifar import CifarResNet
from cbam.models.mobilenet import MobileNetV1
from cbam.models.preactivation import PreActivationResNet
from cbam.nn.registry import attention_kind, kind_names

# The paper's networks, name_SUFFIX, which timm's factory knows too; `build_model` takes every kind of attention.
SUFFIXES = ("se", "cbam")
# For timm's factory, where a dot starts the tag of weights; torchvision's networks are there with a suffix only.
_WITHOUT_DOT = {"wrn18_1.5": "wrn18_150", "wrn18_2.0": "wrn18_200", "mobilenet_v1_0.7": "mobilenet_v1_070"}
_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200", "vgg16")


@dataclass(frozen=True)
class Own:
    """One of our backbones.

    Args:
        build: (num_classes, in_channels) -> network.
        image: height and width of the images it is designed for.
        classes: number of classes it is designed for.
        sites: of attention, for `cbam.attach`.
        stem: path of the first convolution.
        stride: height of the image over height of the last map.
    """

    build: Callable[[int, int], nn.Module]
    image: int = 224
    classes: int = 1000
    sites: str = "auto"
    stem: str = "conv1"
    stride: int = 32


def _paper_resnet(num_classes: int, in_channels: int, *, depth: int, **form: float) -> nn.Module:
    try:
        from cbam.models.paper_resnet import PaperResNet
    except ImportError:
        raise MissingExtra("building a backbone", "train", "torchvision") from None
    return PaperResNet(depth, num_classes, in_channels, **form)  # type: ignore[arg-type]


def _small(network: Callable[..., nn.Module], depth: int) -> Own:
    return Own(partial(network, depth), image=32, classes=10, stride=4)


def _mobilenet(width: float) -> Own:
    return Own(partial(MobileNetV1, width), sites="conv", stem="stem.conv")


OWN: dict[str, Own] = {
    **{f"resnet{depth}": _small(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}": _small(PreActivationResNet, depth) for depth in (164, 1001)},
    **{
        f"paper_resnet{depth}": Own(partial(_paper_resnet, depth=depth))
        for depth in (18, 34, 50, 101, 152, 200)
    },
    **{
        f"wrn18_{widening}": Own(partial(_paper_resnet, depth=18, widening=widening))
        for widening in (1.5, 2.0)
    },
    **{
        f"paper_resnext{depth}_32x4d": Own(partial(_paper_resnet, depth=depth, groups=32, group_width=4))
        for depth in (50, 101)
    },
    "mobilenet_v1": _mobilenet(1.0),
    "mobilenet_v1_0.7": _mobilenet(0.7),
}


def split_attention(name: str) -> tuple[str, str | None]:
    """Split the attention off a model's name: `build_model("NAME_KIND")` attaches that kind, to none of your own.

    >>> split_attention("paper_resnet50_cbam"), split_attention("resnet20")
    (('paper_resnet50', 'cbam'), ('resnet20', None))
    """
    kinds = (
        []
        if ":" in name
        else [kind for kind in kind_names() if name.endswith(f"_{kind}") and name != f"_{kind}"]
    )
    if not kinds:
        return name, None
    kind = max(kinds, key=len)
    return name.removesuffix(f"_{kind}"), kind


def as_variant(kind: str) -> str:
    """Return the `--attention` that attaches what `build_model("NAME_KIND")` does: the preset of the authors' code.

    >>> as_variant("cbam"), as_variant("se")
    ('cbam:official', 'se')
    """
    return f"{kind}:official" if "preset" in attention_kind(kind).options else kind


def timm_names() -> dict[str, str]:
    """Return {name in timm's factory: name for `build_model`} of all networks that `timm_registry` registers.

    >>> timm_names()["wrn18_150_cbam"]
    'wrn18_1.5_cbam'
    """
    names = {}
    for backbone in (*OWN, *_TORCHVISION):
        theirs = _WITHOUT_DOT.get(backbone, backbone)
        suffixes = [f"_{suffix}" for suffix in SUFFIXES] + ([""] if backbone in OWN else [])
        names.update({theirs + suffix: backbone + suffix for suffix in suffixes})
    return names


def made_for(name: str) -> tuple[int, tuple[int, int, int]]:
    """Return the number of classes and the images (C, H, W) that a model is designed for, 1000 and 224 x 224 for most.

    >>> made_for("resnet20_cbam"), made_for("resnet50")
    ((10, (3, 32, 32)), (1000, (3, 224, 224)))
    """
    own = OWN.get(name) or OWN.get(split_attention(name)[0])
    return (1000, (3, 224, 224)) if own is None else (own.classes, (3, own.image, own.image))
