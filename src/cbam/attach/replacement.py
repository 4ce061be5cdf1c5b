"""Attention in the place of another module, such as a squeeze-excitation; that one waits outside for `detach`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cbam.attach.wrapper import WithAttention
from cbam.errors import unknown_name
from cbam.nn.base import AttentionModule

REPLACEABLE: tuple[str, ...] = ("se",)


def check_replace(kind: str | None) -> None:
    """Refuse what attention cannot go in the place of.

    >>> check_replace("cbam")
    Traceback (most recent call last):
    cbam.errors.CBAMError: unknown replace 'cbam'. Valid: 'se'.
    """
    if kind is not None and kind not in REPLACEABLE:
        raise unknown_name("replace", kind, REPLACEABLE)


class Replacement(WithAttention):
    """Attention that runs instead of its host.

    The host is no part of the network: its parameters are not counted, not trained and not in the state dict. It goes
    along to other devices and dtypes, and takes its weights out of the state dicts of networks that still have it.

    Args:
        host: the module that was here.
        attention: what runs in its place.
    """

    def __init__(self, host: nn.Module, attention: AttentionModule):
        super().__init__(host, attention, "instead")
        self.__dict__["_replaced"] = [self._modules.pop("host")]  # in a list: not registered
        self.register_load_state_dict_pre_hook(_keep_the_host_s)

    @property
    def host(self) -> nn.Module:  # type: ignore[override]
        """The module that was here."""
        found: nn.Module = self.__dict__["_replaced"][0]
        return found

    def forward(self, x: Any) -> Any:  # type: ignore[override]
        """Return attention(x)."""
        return self.cbam(x)

    def train(self, mode: bool = True) -> Replacement:
        """Set the mode of both."""
        self.host.train(mode)
        super().train(mode)
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Replacement:
        self.host._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self


def _keep_the_host_s(module: nn.Module, state_dict: Any, prefix: str, *unused: Any) -> None:
    theirs = {}
    for key in list(state_dict):
        rest = key[len(prefix) :]
        if key.startswith(prefix) and not rest.startswith("cbam."):
            theirs[rest.removeprefix("host.")] = state_dict.pop(key)
    if theirs:
        assert isinstance(module, Replacement)
        with torch.no_grad():
            module.host.load_state_dict(theirs, strict=False)
