"""What goes in at a site: which attention, with which options and which first weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from cbam.attach.sites.select import Selector, Selectors, as_list
from cbam.errors import CBAMError, unknown_name
from cbam.nn.base import AttentionModule
from cbam.nn.kind import AttentionKind, Builder
from cbam.nn.registry import attention_kind, check_options

Attention: TypeAlias = "str | Builder"

INITS: tuple[str, ...] = ("identity", "paper")
AS_BUILT = "as built"
"""The first weights of attention that cannot start as the identity, where that was asked for."""


@dataclass(frozen=True)
class SiteConfig:
    """What goes in at a site.

    Args:
        kind: of the attention.
        init: "identity" or "paper".
        options: of that kind.
    """

    kind: AttentionKind
    init: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """The attention in short, such as "cbam (preset paper, r=16, k=7)"."""
        return self.kind.description(self.options)

    def build(
        self, channels: int, dims: int = 2, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> AttentionModule:
        """Return a new module with its first weights.

        Args:
            channels: of the map.
            dims: how many sizes follow them.
            device, dtype: of the weights.
        """
        options = self.options if dims == 2 else {**self.options, "dims": dims}
        block = self.kind.build(channels, options, device=device, dtype=dtype)
        if self.init == "identity":
            self.kind.set_identity(block)
        return block


_OF_THE_CALL = (
    "attention",
    "sites",
    "init",
    "exclude",
    "input_size",
    "example_input",
    "fuse_epilogue",
    "replace",
)
"""Parameters of `attach` itself, which a misspelt option may mean."""


@dataclass(frozen=True)
class AttentionConfig:
    """What the call says for all sites; `at` changes it for some of them.

    Raises:
        CBAMError: an unknown attention, init, preset or option.

    >>> AttentionConfig("cbam", "identity", {"preset": "official"}).at({"reduction_ratio": 8}).description
    'cbam (preset official, r=8, k=7)'
    """

    attention: Attention
    init: str
    options: Mapping[str, Any]

    def at(self, own: Mapping[str, Any]) -> SiteConfig:
        """Return what goes in at sites with options of their own.

        Args:
            own: options of `attach`, and `attention` and `init`. Another attention takes those options of the call
                that it knows.
        """
        also = ("attention", "init") if own else _OF_THE_CALL
        own = dict(own)
        attention, init = own.pop("attention", self.attention), own.pop("init", self.init)
        if init not in INITS:
            raise unknown_name("init", init, INITS)
        kind, inherited = attention_kind(attention), dict(self.options)
        if attention != self.attention:
            inherited = {name: value for name, value in inherited.items() if kind.takes(name)}
        options = {**inherited, **own}
        check_options(kind, options, also)
        return SiteConfig(kind, init, options)


def by_selector(sites: Any, config: AttentionConfig) -> list[tuple[Selector, SiteConfig]]:
    """Return each selector with what goes in at its sites.

    Args:
        sites: selectors, or a mapping {selector: options}.
        config: what the call says for all.

    Raises:
        CBAMError: options that are not a mapping or that the attention does not have; the message names the selector.
    """
    if not isinstance(sites, Mapping):
        chosen: Selectors = sites
        everywhere = config.at({})
        return [(selector, everywhere) for selector in as_list(chosen)]
    found = []
    for selector, own in sites.items():
        shown = repr(selector) if isinstance(selector, str) else getattr(selector, "__name__", str(selector))
        if not isinstance(own, Mapping) or not all(isinstance(name, str) for name in own):
            raise CBAMError(
                f"sites[{shown}] expects a dict of options, such as {{'reduction_ratio': 8}}, or {{}}; got {own!r}."
            )
        try:
            found.append((selector, config.at(own)))
        except CBAMError as error:
            raise CBAMError(f"sites[{shown}]: {error}") from None
    return found
