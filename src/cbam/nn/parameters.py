"""Parameter groups for an optimizer: the attention's weights may learn at another rate and decay."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from cbam.errors import CBAMError
from cbam.nn.base import AttentionModule


def param_groups(
    model: nn.Module,
    lr: float,
    *,
    gate_lr: float | None = None,
    weight_decay: float = 0.0,
    gate_weight_decay: float | None = None,
    decay_norms: bool = False,
) -> list[dict[str, Any]]:
    """Return parameter groups for any torch optimizer: weights with decay, without, and those of the attention.

    Biases and the weights of norms, which have one dimension, do not decay unless `decay_norms` says so. `cbam train`
    makes its groups with this function.

    Args:
        model: frozen parameters are left out.
        lr: learning rate.
        gate_lr: that of the attention's parameters; by default `lr`.
        weight_decay: as the optimizer takes it.
        gate_weight_decay: that of the attention's parameters; by default `weight_decay`.
        decay_norms: let biases and norms decay, too.

    Raises:
        CBAMError: a rate or a decay that is negative or not finite; a model without a parameter to train.

    >>> import torch
    >>> from cbam import CBAM
    >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), CBAM(16))
    >>> groups = param_groups(net, lr=0.01, gate_lr=0.1, weight_decay=5e-4, gate_weight_decay=0.0)
    >>> [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups]
    [(1, 0.01, 0.0005), (1, 0.01, 0.0), (3, 0.1, 0.0)]
    >>> optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    """
    gate_lr = lr if gate_lr is None else gate_lr
    decay_of_gates = weight_decay if gate_weight_decay is None else gate_weight_decay
    named = {
        "lr": lr, "gate_lr": gate_lr, "weight_decay": weight_decay, "gate_weight_decay": decay_of_gates,
    }  # fmt: skip
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise CBAMError(f"{name} expects a number of at least 0, got {value!r}.")
    gates = {p for m in model.modules() if isinstance(m, AttentionModule) for p in m.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        gate = parameter in gates
        decays = parameter.ndim > 1 or decay_norms
        decay = (decay_of_gates if gate else weight_decay) if decays else 0.0
        groups.setdefault((decay, gate_lr if gate else lr), []).append(parameter)
    if not groups:
        raise CBAMError(
            f"{type(model).__name__} has no parameter that requires a gradient: nothing to train."
        )
    return [{"params": found, "weight_decay": decay, "lr": rate} for (decay, rate), found in groups.items()]
