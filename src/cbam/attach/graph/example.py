"""An example input: one argument, several, or arguments by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


def split_example(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional arguments and keywords for `model`.

    Args:
        model: that takes them.
        example: a tuple: positional arguments; a dict: keywords, unless the model takes such a dict as its only
            argument; anything else: the only argument.

    >>> class Two(nn.Module):
    ...     def forward(self, image, *, mask): ...
    >>> split_example(Two(), {"image": 1, "mask": 2}), split_example(nn.ReLU(), 3)
    (((), {'image': 1, 'mask': 2}), ((3,), {}))
    """
    if isinstance(example, Mapping) and _takes(model, example):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def _takes(model: nn.Module, keywords: Mapping[Any, Any]) -> bool:
    if not all(isinstance(name, str) for name in keywords):
        return False
    try:
        inspect.signature(model.forward).bind(**keywords)
    except (TypeError, ValueError):
        return False
    return True
