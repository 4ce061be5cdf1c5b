"""The kinds of sites: one finder each, all with one signature, and `auto`, which chooses between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from cbam.attach.graph.paths import only_embeds
from cbam.attach.graph.probe import Probe
from cbam.attach.sites.block import find_blocks
from cbam.attach.sites.conv import find_convolutions
from cbam.attach.sites.head import find_heads
from cbam.attach.sites.location import Found
from cbam.attach.sites.residual import find_branch_ends
from cbam.attach.sites.stage import find_neck, find_stages

Finder: TypeAlias = Callable[[Probe], Found]

FINDERS: dict[str, Finder] = {
    "residual": find_branch_ends,
    "block": find_blocks,
    "stage": find_stages,
    "neck": find_neck,
    "conv": find_convolutions,
    "head": find_heads,
}
KINDS: tuple[str, ...] = ("auto", *FINDERS)

# What `auto` takes where no residual branch ends in a module.
_OTHERWISE = (("stage", "to the end of every stage"), ("conv", "behind every convolution"))


def find(kind: str, probe: Probe) -> Found:
    """Return the locations of a kind, and notes.

    Args:
        kind: one of `KINDS`.
        probe: of a forward with one image.
    """
    found = _auto(probe) if kind == "auto" else FINDERS[kind](probe)
    trained = [location for location in found.locations if location.name not in probe.eval_only]
    if len(trained) == len(found.locations):
        return found
    left = [location.name for location in found.locations if location.name in probe.eval_only]
    return Found(trained, [*found.notes, f"left out, as it runs in eval mode only: {', '.join(left)}"])


def patch_embedding(probe: Probe) -> str:
    """Return the module that embeds patches where that makes the network's only map, as in a transformer; else ""."""
    for kind, _ in _OTHERWISE:
        names = [location.name for location in FINDERS[kind](probe).locations]
        if len(names) == 1 and only_embeds(probe, names[0]):
            return names[0]
    return ""


def _auto(probe: Probe) -> Found:
    residual = FINDERS["residual"](probe)
    if residual.locations:
        return residual
    why = "no residual branch ends in a module" if residual.notes else "no convolutional residual branches"
    for other, where in _OTHERWISE:
        found = FINDERS[other](probe)
        if found.locations and patch_embedding(probe):
            return Found([], residual.notes)
        if found.locations:
            return Found(found.locations, [f"{why}: attention goes {where}", *found.notes, *residual.notes])
    return residual
