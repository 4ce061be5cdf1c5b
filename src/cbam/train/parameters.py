"""Which weight learns at which rate and with which decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from cbam.nn.parameters import param_groups
from cbam.train.recipe import Recipe


def parameter_groups(model: nn.Module, config: Recipe) -> list[dict[str, Any]]:
    """Return the groups of `cbam.param_groups` with factors on the rate, by which timm's schedules multiply it.

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
    groups = param_groups(
        model,
        1.0,
        gate_lr=config.gate_lr_scale,
        weight_decay=config.weight_decay,
        gate_weight_decay=config.gate_weight_decay,
        decay_norms=config.decay_norms,
    )
    for group in groups:
        group["lr_scale"] = group.pop("lr")
    return groups
