"""Classes that name the nearest keyword when they are given one that they do not have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cbam.errors import unknown_name

Class = TypeVar("Class", bound=type)


def checked_keywords(*more: str) -> Callable[[Class], Class]:
    """Return a class decorator: an unknown keyword of the constructor is refused, and the nearest one named.

    Args:
        more: Keywords beside those in the signature, where that ends in `**switches`.

    >>> @checked_keywords()
    ... class Gate:
    ...     def __init__(self, kernel_size=7): ...
    >>> Gate(kernel=3)
    Traceback (most recent call last):
    cbam.errors.CBAMError: unknown option of Gate 'kernel'. Did you mean 'kernel_size'? Valid: 'kernel_size'.
    """

    def decorate(cls: Class) -> Class:
        init: Callable[..., None] = cls.__init__  # type: ignore[misc]
        known = (*_keywords(init), *more)

        @functools.wraps(init)
        def checked(self: Any, *args: Any, **given: Any) -> None:
            for name in given:
                if name not in known:
                    raise unknown_name(f"option of {cls.__name__}", name, known)
            init(self, *args, **given)

        cls.__init__ = checked  # type: ignore[misc]
        return cls

    return decorate


def _keywords(init: Callable[..., None]) -> Sequence[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name for name, parameter in inspect.signature(init).parameters.items() if parameter.kind in kinds
    ][1:]
