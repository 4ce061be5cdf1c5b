"""Attention in a detector: in its backbone, as in the paper's Table 6, or before its classifiers, as in Table 7."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cbam.attach import attach
from cbam.attach.config import Attention
from cbam.attach.sites.select import Sites
from cbam.models.detection.norms import accept_single_values
from cbam.models.registry import OWN

_PROBE = (3, 64, 64)  # enough to find the sites


@dataclass(frozen=True)
class DetectorAttention:
    """What attention a detector gets.

    Args:
        kind: for `cbam.attach`; "none" for a plain detector.
        sites: "backbone", or sites of the whole detector for `cbam.attach`: "head", paths, ...
        init: "identity" or "paper".
        options: of the attention.
    """

    kind: Attention
    sites: Sites
    init: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_backbone(self) -> bool:
        """Whether it goes into the classifier that becomes the backbone."""
        return self.kind != "none" and self.sites == "backbone"

    @property
    def in_detector(self) -> bool:
        """Whether its sites are named in the whole detector."""
        return self.kind != "none" and self.sites != "backbone"


def attach_to_backbone(network: nn.Module, name: str, attention: DetectorAttention) -> None:
    """Put attention into a classifier before it becomes a backbone: where its paper has it.

    It leaves the state of the random numbers, so that the detector around it starts with the same weights as without
    attention.

    Args:
        network: changed in place.
        name: of the classifier.
        attention: with sites "backbone".
    """
    sites = OWN[name].sites if name in OWN else "auto"
    with torch.random.fork_rng(devices=[]):
        attach(network, attention.kind, sites, init=attention.init, input_size=_PROBE, **attention.options)


def attach_to_detector(model: nn.Module, attention: DetectorAttention) -> None:
    """Put attention into a detector; the state of the random numbers is left as by `attach_to_backbone`.

    Args:
        model: changed in place.
        attention: with sites of the whole detector.
    """
    with torch.random.fork_rng(devices=[]):
        image = torch.rand(_PROBE)  # the detector enlarges it
        found = attach(
            model,
            attention.kind,
            attention.sites,
            init=attention.init,
            example_input=([image],),
            **attention.options,
        )
    for site in found.sites:
        if site.size == (1, 1):
            accept_single_values(model.get_submodule(site.name))
