"""What the gates of every CBAM in a network do in one forward pass: their mean, and how many are saturated or dead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cbam.nn import CBAM

SATURATED = 0.05  # a sigmoid below this or above one minus this
DEAD = 0.01  # a gate that differs by less between all images of a batch


class GateReader:
    """Looks at all gates of CBAM in one forward pass; changes nothing, as there are no norms in them."""

    def __init__(self, network: nn.Module):
        self.found: list[dict[str, float]] = []
        blocks = [module for module in network.modules() if isinstance(module, CBAM)]
        self.hooks = [block.register_forward_pre_hook(self.look) for block in blocks]

    @torch.no_grad()
    def look(self, block: Any, inputs: tuple[Tensor, ...]) -> None:
        """Note what the two gates of a block do to its input."""
        x = inputs[0]
        gates = {
            "channel": block.channel_attention.logits(x),
            "spatial": block.spatial_attention.logits(x * block.channel_attention.gate(x)),
        }
        row: dict[str, float] = {}
        for name, logits in gates.items():
            row |= {f"{name} {key}": value for key, value in describe(logits.sigmoid()).items()}
        self.found.append(row)

    def take(self) -> list[dict[str, float]]:
        """Return a row for each block and stop looking."""
        for hook in self.hooks:
            hook.remove()
        return self.found


def describe(sigmoid: Tensor) -> dict[str, float]:
    """Return mean, saturated share and dead share of gates (N, ...) before their scale."""
    spread = sigmoid.amax(0) - sigmoid.amin(0)
    saturated = (sigmoid < SATURATED) | (sigmoid > 1 - SATURATED)
    return {
        "mean": float(sigmoid.mean()),
        "saturated": float(saturated.float().mean()),
        "dead": float((spread < DEAD).float().mean()),
        "spread": float(spread.mean()),
    }
