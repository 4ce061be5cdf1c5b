"""Where a loss stopped being finite: the first module, in the order of computation, whose output is not finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.preserve_state import preserve_buffers


class NonFiniteLoss(CBAMError):
    """The loss became infinite or not a number, so there is nothing left to train."""

    exit_code = 1


class _Found(Exception):
    """Ends the forward pass at the first module that is at fault."""


def first_nonfinite(model: nn.Module, *inputs: Any) -> str:
    """Say in one clause where the first number that is not finite appears when `model` sees `inputs`.

    The forward pass runs without gradients and in the mode the model is in. Running statistics of norms and the
    hooks are restored; random layers draw new numbers.

    Args:
        model: The model that gave the loss.
        inputs: The batch that gave it: images (N, C, H, W), or what else the network takes.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> _ = net[0].weight.data.fill_(float("inf"))
    >>> first_nonfinite(net, torch.ones(1, 2))
    "the first module whose output is not finite is '0' (Linear); its own weight is not finite"
    """
    if not all_finite(inputs):
        return "the images of this batch are not finite themselves: look at --data"
    names = {module: name or "the whole model" for name, module in model.named_modules()}
    culprit: list[nn.Module] = []

    def look(module: nn.Module, inputs: object, output: object) -> None:
        if not all_finite(output):
            culprit.append(module)
            raise _Found

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        with torch.no_grad(), preserve_buffers(model):
            model(*inputs)
    except _Found:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if not culprit:
        return "every module's output is finite, so the loss itself overflowed"
    module = culprit[0]
    clause = f"the first module whose output is not finite is {names[module]!r} ({type(module).__name__})"
    bad = [name for name, value in module.named_parameters(recurse=False) if not torch.isfinite(value).all()]
    return f"{clause}; its own {' and '.join(bad)} is not finite" if bad else clause


def all_finite(output: object) -> bool:
    """Whether every number in the tensors of `output`, a tensor or lists and dicts of them, is finite.

    >>> all_finite([torch.ones(2), {"loss": torch.tensor(float("nan"))}])
    False
    """
    return all(bool(torch.isfinite(tensor).all()) for tensor in _floats(output))


def _floats(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from _floats(part)
    elif isinstance(output, dict):
        yield from _floats(list(output.values()))
