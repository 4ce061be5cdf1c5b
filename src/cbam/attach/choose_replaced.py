"""The sites of `attach(replace="se")`: the network's squeeze-excitations, or those of them that the user names."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from cbam.attach.config import SiteConfig
from cbam.attach.graph.probe import Probe
from cbam.attach.sites.select import Selector, select
from cbam.attach.sites.squeeze import find_squeezes
from cbam.attach.sites.table import KINDS
from cbam.errors import CBAMError
from cbam.formatting import counted


class Chosen(NamedTuple):
    """A chosen site: "output", "input" or "instead", and what goes in."""

    position: str
    config: SiteConfig


def choose_replaced(
    model: nn.Module,
    modules: dict[str, nn.Module],
    selectors: list[tuple[Selector, SiteConfig]],
    probe: Probe,
) -> tuple[dict[str, Chosen], list[str]]:
    """Return the chosen sites by name in the order of the forward pass, and notes; of two configs the last one.

    Raises:
        CBAMError: the network has no squeeze-excitation, or none of those that the selectors name.
    """
    found = find_squeezes(probe)
    if not found:
        raise CBAMError(
            f"replace='se' finds no squeeze-excitation in {type(model).__name__}: no module that returns its input"
            " times a gate of each channel. Where the gate is multiplied outside the module that makes it, there is"
            " nothing to replace."
        )
    chosen: dict[str, SiteConfig] = {}
    for selector, config in selectors:
        if isinstance(selector, str) and selector in KINDS:
            if selector != "auto":
                raise CBAMError(
                    f"sites={selector!r} does not go with replace='se', which decides where: leave it out, or name some"
                    f" of the {counted(len(found), 'squeeze-excitation')}, such as sites={found[0]!r}."
                )
            chosen.update(dict.fromkeys(found, config))
            continue
        named = [name for name in select([selector], modules) if name in found]
        if not named:
            raise CBAMError(
                f"sites={selector!r} names none of the {counted(len(found), 'squeeze-excitation')}:"
                f" {', '.join(map(repr, found[:4]))}{', ...' if len(found) > 4 else ''}."
            )
        chosen.update(dict.fromkeys(named, config))
    note = "the output changes: the new gates do not start as the squeeze-excitations that they replace"
    return {name: Chosen("instead", chosen[name]) for name in found if name in chosen}, [note]
