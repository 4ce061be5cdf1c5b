"""Put attention into a model in place: what `cbam.attach` and loading a saved model have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from cbam.attach import fuser_methods
from cbam.attach.fusion.with_epilogue import with_epilogue
from cbam.attach.watch import watch
from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError
from cbam.nn.base import AttentionModule


class Insertion(NamedTuple):
    """What goes in at a site.

    Args:
        position: "output" (attention after the module) or "input" (before it).
        build: function (device=, dtype=) -> the attention module.
    """

    position: str
    build: Callable[..., AttentionModule]


def insert(model: nn.Module, at: Mapping[str, Insertion], fused: Iterable[nn.Module] = ()) -> None:
    """Put attention in at every site, with the device, dtype and training mode of its host.

    All modules are built before the first one is placed, so a call that raises leaves the model as it was.

    Args:
        model: without attached attention, see `check_unattached`.
        at: what goes in, by the path of the host.
        fused: blocks whose epilogue runs together with the attention, see `find_blocks`.
    """
    fuser_methods.register()
    modules = dict(model.named_modules())
    wrapped: dict[nn.Module, nn.Module] = {}
    for path, (position, build) in at.items():
        host = modules[path]
        weight = like(host, model)
        attention = build(device=weight.device, dtype=weight.dtype).train(host.training)
        for part in attention.modules():
            if isinstance(part, AttentionModule):
                part.site = path
        wrapped[host] = WithAttention(host, attention, position)
    exchange(model, wrapped)
    for block in fused:
        with_epilogue(block)
    watch(model)


def check_unattached(model: nn.Module) -> None:
    """Raise if a model carries attached attention."""
    attached = [name for name, module in model.named_modules() if isinstance(module, WithAttention)]
    if attached:
        raise CBAMError(
            f"the model carries attention already, at {len(attached)} sites, the first {attached[0]!r}."
            " Type cbam.detach(model) first; to use several kinds of sites at once, give one call a list."
        )


def exchange(model: nn.Module, new: Mapping[Any, Any]) -> None:
    """Put new[m] wherever the model holds m: a module may be registered under several names."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                parent._modules[name] = new[child]


def like(host: nn.Module, model: nn.Module) -> torch.Tensor:
    """Return a floating-point parameter of the host, or of the model where the host has none."""
    for module in (host, model):
        for parameter in module.parameters():
            if parameter.is_floating_point():
                return parameter
    return torch.empty(0)
