"""Which weight learns at which rate and with which decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from cbam.nn.base import AttentionModule
from cbam.train.recipe import Recipe


def parameter_groups(model: nn.Module, config: Recipe) -> list[dict[str, Any]]:
    """Return the optimizer's groups: weights with decay, without, and the same for the attention's own.

    Biases and the weights of norms, which have one dimension, do not decay unless `config.decay_norms` says so.
    timm's schedules multiply a group's rate by its `lr_scale`.

    Args:
        model: Frozen parameters are left out.
        config: `weight_decay`, `decay_norms`, `gate_lr_scale` and `gate_weight_decay` matter.

    >>> from cbam import CBAM
    >>> from cbam.train.config import TrainConfig
    >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), CBAM(16))
    >>> groups = parameter_groups(net, TrainConfig(gate_lr_scale=10, gate_weight_decay=0))
    >>> [(len(group["params"]), group["weight_decay"], group["lr_scale"]) for group in groups]
    [(1, 0.0005, 1.0), (1, 0.0, 1.0), (3, 0, 10)]
    """
    gates = {
        parameter
        for module in model.modules()
        if isinstance(module, AttentionModule)
        for parameter in module.parameters()
    }
    decay_of_gates = config.weight_decay if config.gate_weight_decay is None else config.gate_weight_decay
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        gate = parameter in gates
        decays = parameter.ndim > 1 or config.decay_norms
        decay = (decay_of_gates if gate else config.weight_decay) if decays else 0.0
        groups.setdefault((decay, config.gate_lr_scale if gate else 1.0), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), members in groups.items()
    ]
