"""The presets of CBAM, and the switches that modify them.

"CBAM" means different networks in popular code. A preset names one of them; a switch changes one of its parts,
which is how every ablation of the paper is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from cbam.errors import CBAMError, unknown_name
from cbam.nn.keywords import checked_keywords
from cbam.ops.reference import ACTIVATIONS, CHANNEL_POOLINGS, DESCRIPTOR_ORDERS, SPATIAL_DESCRIPTORS

ARRANGEMENTS = ("channel-spatial", "spatial-channel", "parallel", "channel", "spatial")
WEIGHT_INITS = ("default", "official")


@checked_keywords()
@dataclass(frozen=True)
class Preset:
    """One form of CBAM; its fields are the switches that `CBAM` takes by name.

    Args:
        channel_pooling: what the channel gate reads of each channel: "both" (paper), "avg", "max".
        mlp_bias: biases in the shared two-layer MLP.
        arrangement: "channel-spatial" (paper), "spatial-channel", "parallel" (logits added, then one sigmoid),
            "channel" (that gate alone) or "spatial".
        spatial_descriptor: what the spatial gate reads of each position: "both" (paper), "avg", "max", or "conv",
            a learned 1x1 convolution.
        descriptor_order: order of the two maps: "avg-max" (paper), "max-avg" (the authors' code).
        spatial_norm: a batch norm on the one-channel map after the k x k convolution.
        norm_momentum: momentum of that batch norm.
        norm_weight: its initial weight; with 0 the spatial gate starts at exactly one half.
        gate: "sigmoid" (paper) or "hardsigmoid".
        weight_init: "default" (PyTorch's), or "official" (the authors': Kaiming, fan out, for the spatial convolution
            and zero biases in the MLP, whose weights keep PyTorch's default).
    """

    channel_pooling: str = "both"
    mlp_bias: bool = False
    arrangement: str = "channel-spatial"
    spatial_descriptor: str = "both"
    descriptor_order: str = "avg-max"
    spatial_norm: bool = False
    norm_momentum: float = 0.1
    norm_weight: float = 1.0
    gate: str = "sigmoid"
    weight_init: str = "default"

    def __post_init__(self) -> None:
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise unknown_name(name, getattr(self, name), valid)
        for name in ("mlp_bias", "spatial_norm"):
            if not isinstance(getattr(self, name), bool):
                raise CBAMError(f"{name} expects True or False, got {getattr(self, name)!r}.")
        if not 0.0 <= self.norm_momentum <= 1.0:
            raise CBAMError(f"norm_momentum expects a number between 0 and 1, got {self.norm_momentum!r}.")


CHOICES: dict[str, tuple[str, ...]] = {
    "channel_pooling": CHANNEL_POOLINGS,
    "arrangement": ARRANGEMENTS,
    "spatial_descriptor": SPATIAL_DESCRIPTORS,
    "descriptor_order": DESCRIPTOR_ORDERS,
    "gate": tuple(ACTIVATIONS),
    "weight_init": WEIGHT_INITS,
}

PRESETS: dict[str, Preset] = {
    # The equations of the paper, section 3; also the module as it is widely rewritten.
    "paper": Preset(),
    # The authors' released code: the only preset whose parameter counts equal the paper's Table 4.
    "official": Preset(
        mlp_bias=True,
        descriptor_order="max-avg",
        spatial_norm=True,
        norm_momentum=0.01,
        norm_weight=0.0,
        weight_init="official",
    ),
    # timm.layers.cbam.CbamModule with its default arguments.
    "timm": Preset(spatial_norm=True),
}


DEFAULT_PRESET = "paper"
"""The preset wherever none is named: in the modules, in `cbam.attach` and in every command."""


def resolve_preset(preset: str | Preset, switches: Mapping[str, Any]) -> Preset:
    """Return `preset` with `switches` applied to it.

    Args:
        preset: a name from `PRESETS`, or a `Preset`.
        switches: field names of `Preset` with new values.

    Raises:
        CBAMError: an unknown preset, switch or value; the message names the nearest valid one.

    >>> resolve_preset("paper", {"arrangement": "parallel"}).arrangement
    'parallel'
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise unknown_name("preset", preset, PRESETS)
        preset = PRESETS[preset]
    elif not isinstance(preset, Preset):
        raise CBAMError(f"preset expects a name or a cbam.nn.Preset, got {type(preset).__name__}.")
    known = [field.name for field in fields(Preset)]
    for name in switches:
        if name not in known:
            raise unknown_name("switch", name, known)
    return replace(preset, **switches)
