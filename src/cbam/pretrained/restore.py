"""Attached attention back into a network, from what config.json says of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cbam.attach.with_epilogue import find_blocks, with_epilogue
from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError, nearest
from cbam.nn.base import AttentionModule
from cbam.nn.registry import attention_kind
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
    modules = dict(model.named_modules())
    carrying = [name for name, module in modules.items() if isinstance(module, WithAttention)]
    if carrying:
        raise CBAMError(
            f"the model carries attention already, at {carrying[0]!r}. Type cbam.detach(model) first."
        )
    wrapped: dict[nn.Module, WithAttention] = {}
    behind = []
    for group in groups:
        for site in group.sites:
            if not site.path or site.path not in modules:
                close = nearest(site.path, modules)
                hint = f" Closest: {', '.join(map(repr, close))}." if close else ""
                raise CBAMError(f"the network has no module {site.path!r}, where attention was.{hint}")
            host = modules[site.path]
            block = build_block(group, site, like=_like(host, model)).train(host.training)
            wrapped[host] = WithAttention(host, block, site.position)
            behind += (
                [site.path] if site.position == "output" and attention_kind(group.kind).has_operator else []
            )
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    blocks = find_blocks(model, behind) if fuse_epilogue and not on_meta else {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in wrapped:
                parent._modules[name] = wrapped[child]
    for owner, _ in blocks.values():
        with_epilogue(owner)


def build_block(group: Attention, site: SavedSite, like: torch.Tensor) -> AttentionModule:
    """Return the attention of a site as it was when it was saved, but for its weights.

    Args:
        group, site: of the config.
        like: a tensor with the dtype and the device of the weights.

    Raises:
        CBAMError: a kind that is not registered here, or options that it does not have.
    """
    try:
        kind = attention_kind(group.kind)
    except CBAMError as error:
        raise CBAMError(
            f"config: {error} If it is attention of your own, import the module that registers it first"
            " (cbam.register_attention; on the command line --import my_package.my_gate)."
        ) from None
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in group.options.items()
    }
    if site.reduction_ratio is not None:
        options["reduction_ratio"] = site.reduction_ratio
    if "preset" in kind.options:
        options["preset"] = group.preset
    return kind.build_again(site.channels, options, device=like.device, dtype=like.dtype)


def _like(host: nn.Module, model: nn.Module) -> torch.Tensor:
    for module in (host, model):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter
    return torch.empty(0)
