"""The attention modules of a model, and which block of a file goes to which of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from cbam.errors import CBAMError, nearest
from cbam.nn.base import AttentionModule


def sites_of(model: nn.Module) -> dict[str, AttentionModule]:
    """Return {prefix in the state dict: attention module}, without the gates inside a CBAM.

    >>> from torchvision.models import resnet18
    >>> from cbam import attach
    >>> model = resnet18()
    >>> _ = attach(model)
    >>> list(sites_of(model))[0]
    'layer1.0.bn2.cbam.'
    """
    found: dict[str, AttentionModule] = {}
    for prefix, module in named_in_state(model):
        if isinstance(module, AttentionModule) and not any(prefix.startswith(outer) for outer in found):
            found[prefix] = module
    return found


def named_in_state(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module with the prefix of its names in the state dict, which does not show the wrappers' `host`.

    >>> [prefix for prefix, _ in named_in_state(nn.Sequential(nn.ReLU()))]
    ['', '0.']
    """
    for path, module in model.named_modules(remove_duplicate=False):
        yield path + "." if path else "", module


def assign(
    blocks: Iterable[str], sites: Mapping[str, Any], given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return {prefix of a block in the file: prefix of the site that takes it}.

    A block goes to the site of its own name, or to the only site inside the module that holds the block:
    `layer1.0.cbam` to `layer1.0.bn3.cbam`.

    Args:
        blocks: prefixes in the file.
        sites: prefixes in the model.
        given: {block: site} from the user, with or without a final ".cbam".

    Raises:
        CBAMError: a block without a site, with several sites to choose from, or two blocks for one.

    >>> assign(["layer1.0.cbam."], {"layer1.0.bn3.cbam.": None})
    {'layer1.0.cbam.': 'layer1.0.bn3.cbam.'}
    """
    said = {_dotted(block): _site(site, sites) for block, site in (given or {}).items()}
    blocks = list(blocks)
    unknown = [block for block in said if block not in blocks]
    if unknown:
        raise CBAMError(f"sites: the file has no block {unknown[0]!r}. It has {_listed(blocks)}.")
    assigned = {block: said.get(block) or _site_for(block, sites) for block in blocks}
    taken: dict[str, str] = {}
    for block, site in assigned.items():
        if site in taken:
            raise CBAMError(
                f"blocks {_path(taken[site])!r} and {_path(block)!r} of the file both fit the site {_path(site)!r}."
                f" {_advice(block, sites)}"
            )
        taken[site] = block
    return assigned


def _site_for(block: str, sites: Mapping[str, Any]) -> str:
    if block in sites:
        return block
    inside = [site for site in sites if site.startswith(block)]
    if not inside and block:
        parent = _path(block).rpartition(".")[0]
        inside = [site for site in sites if site.startswith(_dotted(parent))]
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise CBAMError(
            f"block {_path(block)!r} of the file could go to {len(inside)} sites: {_listed(inside)}."
            f" {_advice(block, inside)}"
        )
    raise CBAMError(
        f"block {_path(block)!r} of the file matches no site of the model, which has {_listed(list(sites))}."
        f" {_advice(block, sites)}"
    )


def _advice(block: str, sites: Iterable[str]) -> str:
    some = next(iter(sites), "")
    return f"Pass the right one: sites={{{_path(block)!r}: {_path(some)!r}, ...}}."


def _site(given: str, sites: Mapping[str, Any]) -> str:
    for prefix in (_dotted(given), f"{given}.cbam."):
        if prefix in sites:
            return prefix
    close = nearest(given, [_path(site) for site in sites])
    hint = f" Closest: {', '.join(map(repr, close))}." if close else ""
    raise CBAMError(f"sites: the model has no attention at {given!r}.{hint}")


def _listed(prefixes: list[str]) -> str:
    shown = ", ".join(repr(_path(prefix)) for prefix in prefixes[:4])
    return (shown + (", ..." if len(prefixes) > 4 else "")) or "none"


def _path(prefix: str) -> str:
    return prefix.removesuffix(".")


def _dotted(path: str) -> str:
    return f"{path}." if path and not path.endswith(".") else path
