"""Attached attention back into a network, from what config.json says of it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from cbam.attach.fusion.with_epilogue import find_blocks
from cbam.attach.insert import Insertion, check_unattached, insert
from cbam.errors import CBAMError, nearest
from cbam.nn import CBAM, SqueezeExcitation
from cbam.nn.base import AttentionModule
from cbam.pretrained.config import Attention, SavedSite


def restore(model: nn.Module, groups: Iterable[Attention], fuse_epilogue: bool = True) -> None:
    """Put attention where a config says, in place; unlike `cbam.attach` this needs no forward pass.

    Args:
        model: without attached attention.
        groups: of the config.
        fuse_epilogue: as for `cbam.attach`.

    Raises:
        CBAMError: the model carries attention, or lacks a site; it is then unchanged.
    """
    check_unattached(model)
    modules = dict(model.named_modules())
    insertions: dict[str, Insertion] = {}
    for group in groups:
        for site in group.sites:
            if not site.path or site.path not in modules:
                close = nearest(site.path, modules)
                hint = f" Closest: {', '.join(map(repr, close))}." if close else ""
                raise CBAMError(f"the network has no module {site.path!r}, where attention was.{hint}")
            insertions[site.path] = Insertion(site.position, partial(_block, group, site))
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    behind = [path for path, insertion in insertions.items() if insertion.position == "output"]
    blocks = find_blocks(model, behind) if fuse_epilogue and not on_meta else {}
    insert(model, insertions, [block for block, _ in blocks.values()])


def _block(group: Attention, site: SavedSite, **factory: Any) -> AttentionModule:
    cls: Any = CBAM if group.kind == "cbam" else SqueezeExcitation
    try:
        block = cls(site.channels, site.reduction_ratio, **group.options, **factory)
    except TypeError as error:
        raise CBAMError(f"config: options that {cls.__name__} does not have: {error}") from error
    if group.kind == "cbam":
        block.preset = group.preset
    return block
