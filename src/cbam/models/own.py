"""Networks of the user's own: `--model my_package.my_net:build`, a function or class in a module that Python finds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cbam.errors import CBAMError, nearest
from cbam.preserve_state import preserve_state, probe_input
from cbam.runs.imports import import_module


def is_own(name: str) -> bool:
    """Return whether a model's name is that of a callable in a module.

    >>> is_own("my_package.my_net:build"), is_own("timm/resnet50")
    (True, False)
    """
    return ":" in name


def build_own(name: str, num_classes: int | None = None, in_channels: int | None = None) -> nn.Module:
    """Return what the callable returns; it gets `num_classes` and `in_channels` where it takes them.

    Args:
        name: "my_package.my_net:build", or "my_net:Net" for a class in my_net.py in the current folder.
        num_classes, in_channels: for it; None: its own defaults.

    Raises:
        CBAMError: there is no such module or callable, it fails, or it returns something else than a module.

    >>> build_own("torch.nn:Identity")
    Identity()
    """
    module_name, _, path = name.partition(":")
    found: Any = import_module(module_name, f"--model {name}")
    for part in path.split("."):
        if not hasattr(found, part):
            close = nearest(part, [n for n in vars(found) if callable(getattr(found, n))])
            hint = f" Closest: {', '.join(map(repr, close))}." if close else ""
            raise CBAMError(f"--model {name}: {module_name} has no {part!r}.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise CBAMError(
            f"--model {name} names a {type(found).__name__}, which cannot be called. Name a function or class that"
            " returns the network."
        )
    arguments = _that_it_takes(found, {"num_classes": num_classes, "in_channels": in_channels})
    try:
        model = found(**arguments)
    except Exception as error:  # of the user's own code
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise CBAMError(
            f"--model {name}: {path}({given}) failed ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(model, nn.Module):
        raise CBAMError(f"--model {name} returns a {type(model).__name__}, not a torch.nn.Module.")
    return model


def check_classifier(model: nn.Module, name: str, num_classes: int, size: tuple[int, int, int]) -> None:
    """Refuse a network that does not classify these images into as many classes.

    Args:
        model: of the user's own; it runs once.
        name: as typed.
        num_classes: of the images.
        size: (C, H, W) of the images.

    Raises:
        CBAMError: its forward fails, or does not return one score for each class.
    """
    with preserve_state(model), torch.no_grad():
        image = probe_input(model, (2, *size))
        try:
            scores = model(image)
        except Exception as error:
            raise CBAMError(
                f"--model {name} fails on images of {size[0]}x{size[1]}x{size[2]}"
                f" ({type(error).__name__}: {error})."
            ) from error
    expected = (2, num_classes)
    if not isinstance(scores, torch.Tensor) or scores.shape != expected:
        given = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise CBAMError(
            f"--model {name} returns {given} for 2 images of {num_classes} classes, expected {expected}. Let it take"
            " num_classes, and return the logits."
        )


def _that_it_takes(build: Callable[..., Any], given: dict[str, int | None]) -> dict[str, int]:
    try:
        parameters = inspect.signature(build).parameters.values()
    except ValueError:  # builtins need not say
        return {}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in given.items() if value is not None and (takes_all or key in names)}
