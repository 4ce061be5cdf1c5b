"""Which modules run in evaluation mode only, such as those that turn a detector's predictions into boxes.

Attention there would never be trained: its weights get no gradient, and DistributedDataParallel refuses that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cbam.preserve_state import preserve_state

_TRIES = 2  # a layer may be passed over by chance


def eval_only(
    model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], ran: Iterable[str]
) -> frozenset[str]:
    """Return the names of those modules that do not run in training mode; none where that needs other inputs.

    The norms stay in evaluation mode; training flags, buffers and random state are restored.

    Args:
        model: any module.
        inputs, keywords: of its forward.
        ran: names of the modules that run in evaluation mode.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.features, self.decode = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
    ...     def forward(self, x):
    ...         return self.features(x) if self.training else self.decode(self.features(x))
    >>> sorted(eval_only(Net(), (torch.rand(1, 3, 8, 8),), {}, ["features", "decode"]))
    ['decode']
    """
    if not any(_chooses_by_mode(type(module)) for module in model.modules() if module._modules):
        return frozenset()
    missing = set(ran)
    for _ in range(_TRIES):
        found = _ran_in_training(model, inputs, keywords)
        missing -= missing if found is None else found
        if not missing:
            break
    return frozenset(missing)


def _chooses_by_mode(kind: type) -> bool:
    """Return whether a class has code of its own that reads `training`."""
    own = (c for c in kind.__mro__ if not f"{c.__module__}.".startswith(("torch.nn.", "builtins.")))
    codes = (getattr(f, "__code__", None) for c in own for f in vars(c).values())
    return any("training" in code.co_names for code in codes if code is not None)


def _ran_in_training(model: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> set[str] | None:
    found: set[str] = set()
    handles = []
    with preserve_state(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gradient checkpointing
        try:
            for name, module in model.named_modules():
                module.training = "running_var" not in module._buffers
                handles.append(module.register_forward_hook(lambda *_, name=name: found.add(name)))
            model(*inputs, **keywords)
        except Exception:  # a detector asks for targets
            return None
        finally:
            for handle in handles:
                handle.remove()
    return found
