"""The language in which users name sites: paths, globs, regular expressions, types, predicates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from torch import nn

from cbam.errors import CBAMError, nearest

Predicate: TypeAlias = Callable[[str, nn.Module], bool]
Selector: TypeAlias = "str | type[nn.Module] | Predicate"
Selectors: TypeAlias = "Selector | Sequence[Selector]"

# Words that stand for places found in a forward pass.
KINDS: tuple[str, ...] = ("auto", "residual", "block", "stage", "conv")


def as_list(selectors: Selectors) -> list[Selector]:
    """Return one selector or several as a list.

    >>> as_list("layer4")
    ['layer4']
    """
    if isinstance(selectors, (list, tuple)):
        return list(selectors)
    return [selectors]  # type: ignore[list-item]


def matcher(selector: Selector) -> Predicate:
    """Return the predicate (name, module) -> bool that `selector` stands for.

    Args:
        selector: "layer4.0.bn2" (a path), "layer4.*.bn2" (a glob: `*` stays inside one part of the path, `**` does
            not), "re:layer[34]\\..*bn2" (a regular expression for the whole path), a module type, or a predicate.

    >>> matcher("layer4.*.bn2")("layer4.0.bn2", nn.BatchNorm2d(4))
    True
    """
    if isinstance(selector, str):
        try:
            pattern = re.compile(selector[3:] if selector.startswith("re:") else _glob(selector))
        except re.error as error:
            raise CBAMError(f"site {selector!r} is not a regular expression: {error}.") from error
        return lambda name, module: pattern.fullmatch(name) is not None
    if isinstance(selector, type):
        if not issubclass(selector, nn.Module):
            raise CBAMError(f"a site's type must be a torch.nn.Module, got {selector.__name__}.")
        return lambda name, module: isinstance(module, selector)
    if callable(selector):
        return selector
    raise CBAMError(
        "sites expects 'auto', 'residual', 'block', 'stage', 'conv', a path or glob, 're:...', a module type,"
        f" a predicate (name, module) -> bool, or a list of these; got {selector!r}."
    )


def select(selectors: Iterable[Selector], modules: dict[str, nn.Module], what: str = "sites") -> list[str]:
    """Return the names that the selectors match, in the order of `modules`.

    Raises:
        CBAMError: a selector that matches nothing; the message names the nearest modules.
    """
    chosen = set()
    for selector in selectors:
        matches = matcher(selector)
        found = [name for name, module in modules.items() if matches(name, module)]
        if not found:
            raise _no_match(selector, modules, what)
        chosen.update(found)
    return [name for name in modules if name in chosen]


def _glob(pattern: str) -> str:
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    meaning = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return "".join(meaning.get(part, re.escape(part)) for part in parts)


def _no_match(selector: Selector, modules: dict[str, nn.Module], what: str) -> CBAMError:
    if isinstance(selector, str):
        close = nearest(selector.removeprefix("re:"), [*(KINDS if what == "sites" else ()), *modules])
        hint = f" Closest: {', '.join(map(repr, close))}." if close else ""
        syntax = "" if selector.startswith("re:") else " A regular expression is written 're:...'."
        return CBAMError(f"{what}: {selector!r} matches none of {len(modules)} modules.{hint}{syntax}")
    name = getattr(selector, "__name__", repr(selector))
    types = sorted({type(module).__name__ for module in modules.values()})
    return CBAMError(
        f"{what}: {name} matches none of {len(modules)} modules. Types here: {', '.join(types)}."
    )
