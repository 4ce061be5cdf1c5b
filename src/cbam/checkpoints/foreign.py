"""Weights of other people's modules at a site: they are loaded by name, whatever checkpoint they look like."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from cbam.checkpoints.recognise import Found, recognise
from cbam.checkpoints.sites import sites_of
from cbam.checkpoints.unpacking import Unpacked
from cbam.nn.foreign import ForeignAttention


def recognise_for(model: nn.Module, packed: Unpacked, format: str) -> Found:
    """Find the attention blocks of a state dict, those left out that belong to other modules of the model.

    timm's CBAM inside `timm:cbam` is one: its names are those of a checkpoint that could be converted, and must not be.

    Args:
        model: that takes the weights.
        packed: the file.
        format: as for `recognise`.

    Raises:
        CBAMError: as `recognise`.
    """
    sites = tuple(prefix for prefix, site in sites_of(model).items() if isinstance(site, ForeignAttention))
    own = model.state_dict()
    by_name = {key: value for key, value in packed.shapes.items() if key in own and key.startswith(sites)}
    found = recognise({k: v for k, v in packed.shapes.items() if k not in by_name}, packed.name, format)
    return replace(found, rest={**found.rest, **by_name})
