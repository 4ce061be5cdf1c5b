"""Rebuild attached attention from config.json."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from cbam.attach.fusion.with_epilogue import find_blocks
from cbam.attach.insert import Insertion, check_unattached, insert
from cbam.errors import CBAMError, nearest
from cbam.nn.base import AttentionModule
from cbam.nn.kind import AttentionKind
from cbam.nn.registry import attention_kind, no_such_option
from cbam.ops.dims import batched
from cbam.pretrained.config import Attention, SavedSite

_LAYERS = {
    1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d),
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d),
}


def restore(model: nn.Module, groups: Iterable[Attention], fuse_epilogue: bool = True) -> None:
    """Attach attention at the sites of a config, in place; unlike `cbam.attach` this needs no forward pass.

    Args:
        model: without attached attention.
        groups: of the config.
        fuse_epilogue: as for `cbam.attach`.

    Raises:
        CBAMError: the model carries attention, lacks a site, or has maps of other dimensions there; it is then
            unchanged.
    """
    check_unattached(model)
    modules = dict(model.named_modules())
    insertions: dict[str, Insertion] = {}
    behind: list[str] = []
    for group in groups:
        for site in group.sites:
            if not site.path or site.path not in modules:
                close = nearest(site.path, modules)
                hint = f" Closest: {', '.join(map(repr, close))}." if close else ""
                raise CBAMError(f"the network has no module {site.path!r}, where attention was.{hint}")
            dims = group.options.get("dims", 2)
            _check_dims(modules[site.path], site.path, dims)
            insertions[site.path] = Insertion(site.position, partial(build_block, group, site))
            if site.position == "output" and dims == 2 and _kind(group).has_operator:
                behind.append(site.path)
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    blocks = find_blocks(model, behind) if fuse_epilogue and not on_meta else {}
    insert(model, insertions, [block for block, _ in blocks.values()])


def _check_dims(host: nn.Module, path: str, dims: int) -> None:
    """Raise if a host is a layer for maps of other dimensions than its attention is."""
    own = {n for m in host.modules() for n, kinds in _LAYERS.items() if isinstance(m, kinds)}
    if own and dims not in own:
        raise CBAMError(
            f"config: the attention at {path!r} is for maps {batched(dims)}, and the network's {type(host).__name__}"
            f" there is for {', '.join(map(batched, sorted(own)))}. Build the network of {dims} dimensions."
        )


def build_block(
    group: Attention, site: SavedSite, *, device: Any = None, dtype: Any = None
) -> AttentionModule:
    """Return the attention of a site as saved, without its weights.

    Args:
        group, site: of the config.
        device, dtype: of the weights.

    Raises:
        CBAMError: a kind that is not registered here, or options that it does not have.
    """
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in group.options.items()
    }
    if site.reduction_ratio is not None:
        options["reduction_ratio"] = site.reduction_ratio
    kind = _kind(group)
    if "preset" in kind.options:
        options["preset"] = group.preset
    for name in options:
        if name not in kind.options and name != "dims":
            raise no_such_option(kind, name)
    return kind.build_again(site.channels, options, device=device, dtype=dtype)


def _kind(group: Attention) -> AttentionKind:
    try:
        return attention_kind(group.kind)
    except CBAMError as error:
        raise CBAMError(
            f"config: {error} If it is attention of your own, import the module that registers it first"
            " (cbam.register_attention; on the command line --import my_package.my_gate)."
        ) from None
