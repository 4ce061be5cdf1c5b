"""The language in which users name sites: paths, globs, regular expressions, types, predicates."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

from cbam.attach.sites.table import KINDS
from cbam.errors import CBAMError, nearest

Predicate: TypeAlias = Callable[[str, nn.Module], bool]
Selector: TypeAlias = "str | type[nn.Module] | nn.Module | Predicate"
Selectors: TypeAlias = "Selector | Sequence[Selector]"
Sites: TypeAlias = (
    "Selectors | Mapping[Any, Mapping[str, Any]]"  # keys: selectors; a union's keys do not vary
)


def as_list(selectors: Selectors) -> list[Selector]:
    """Return one selector or several as a list.

    >>> as_list("layer4")
    ['layer4']
    """
    if isinstance(selectors, (list, tuple)):
        return list(selectors)
    return [selectors]  # type: ignore[list-item]


def split_sites(typed: Iterable[str]) -> list[str]:
    """Return the sites that were typed on a command line, with spaces or commas between them.

    A regular expression stays whole: it may hold commas of its own.

    >>> split_sites(["layer3,layer4", "re:layer[12]{1,2}"])
    ['layer3', 'layer4', 're:layer[12]{1,2}']
    """
    words = [[word] if word.startswith("re:") else word.split(",") for word in typed]
    return [name.strip() for group in words for name in group if name.strip()]


def matcher(selector: Selector) -> Predicate:
    """Return the predicate (name, module) -> bool that `selector` stands for.

    Args:
        selector: "layer4.0.bn2" (a path), "layer4.*.bn2" (a glob: `*` stays inside one part of the path, `**` does
            not), "re:layer[34]\\..*bn2" (a regular expression for the whole path), a module type, one of the model's
            own modules, or a predicate.

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
    if isinstance(selector, nn.Module):  # callable as well
        return lambda name, module: module is selector
    if callable(selector):
        _check_arguments(selector)
        return selector
    kinds = ", ".join(map(repr, KINDS))
    raise CBAMError(
        f"sites expects {kinds}, a path or glob, 're:...', a module type or module,"
        f" a predicate (name, module) -> bool, a list of these, or a dict {{one: options}}; got {selector!r}."
    )


def _check_arguments(predicate: Predicate) -> None:
    try:
        signature = inspect.signature(predicate)
    except ValueError:  # builtins need not say
        return
    try:
        signature.bind("", None)
    except TypeError:
        name = getattr(predicate, "__name__", repr(predicate))
        raise CBAMError(
            f"a predicate takes (name, module), but {name} takes {signature}. Write: lambda name, module: ..."
        ) from None


def select(selectors: Iterable[Selector], modules: dict[str, nn.Module], what: str = "sites") -> list[str]:
    """Return the names that the selectors match, in the order of `modules`.

    Raises:
        CBAMError: a selector that matches nothing; the message names the nearest modules.
    """
    chosen = set()
    for selector in selectors:
        matches = matcher(selector)
        found = [name for name, module in modules.items() if matches(name, module)]
        found = found or [name for name, module in modules.items() if type(module).__name__ == selector]
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
        typed = selector.removeprefix("re:")
        classes = sorted({type(module).__name__ for module in modules.values()})
        close = nearest(typed, [*(KINDS if what == "sites" else ()), *modules]) or nearest(typed, classes)
        hint = f" Closest: {', '.join(map(repr, close))}." if close else ""
        syntax = "" if selector.startswith("re:") else " A regular expression is written 're:...'."
        return CBAMError(f"{what}: {selector!r} matches none of {len(modules)} modules.{hint}{syntax}")
    if isinstance(selector, nn.Module):
        return CBAMError(f"{what}: the given {type(selector).__name__} is not a part of this model.")
    name = getattr(selector, "__name__", repr(selector))
    types = sorted({type(module).__name__ for module in modules.values()})
    return CBAMError(
        f"{what}: {name} matches none of {len(modules)} modules. Types here: {', '.join(types)}."
    )
