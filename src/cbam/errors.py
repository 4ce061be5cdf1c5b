"""Errors: they say what was given, what was expected, the nearest valid name and what to type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST, _MOST = 200, 100  # letters of a name that is compared, and names that are listed


class CBAMError(ValueError):
    """Base class of the errors that this library raises; a `ValueError`, so `except ValueError` catches it."""


def nearest(given: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` names from `valid` that look like `given`, best first.

    >>> nearest("offical", ["paper", "official", "timm"])
    ['official']
    """
    by_folded_case = {name.casefold(): name for name in valid if len(name) <= _LONGEST}
    matches = difflib.get_close_matches(
        given[:_LONGEST].casefold(), list(by_folded_case), n=count, cutoff=0.5
    )
    return [by_folded_case[match] for match in matches]


def unknown_name(kind: str, given: object, valid: Iterable[str]) -> CBAMError:
    """Return the error for a name that is not in `valid`; its message lists them and suggests the nearest.

    >>> print(unknown_name("preset", "offical", ["paper", "official", "timm"]))
    unknown preset 'offical'. Did you mean 'official'? Valid: 'paper', 'official', 'timm'.
    """
    names = list(valid)
    close = nearest(given, names, count=1) if isinstance(given, str) else []
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(_shown(name) for name in names[:_MOST])
    more = f" and {len(names) - _MOST:,} more" if len(names) > _MOST else ""
    return CBAMError(f"unknown {kind} {_shown(given)}.{hint} Valid: {listed}{more}.")


def _shown(given: object) -> str:
    text = repr(given)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class MissingExtra(CBAMError, ImportError):
    """A feature needs a package that is not installed; the message says what to type."""

    def __init__(self, feature: str, extra: str, package: str):
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed."
            f" Type: pip install 'torch-cbam[{extra}]'"
        )
