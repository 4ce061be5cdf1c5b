"""CBAM whose spatial kernel is divided by the square root of its fan-in, for benchmarks/insertion.py.

The gate is the same function of another variable: sigmoid(conv(d, v / sqrt(2 k^2))) with v in place of w. A step of SGD
moves w by 1 / (2 k^2) = 0.0102 of what it moves at the same rate without it (k = 7), one of AdamW by 0.101.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

import cbam


class OverRootOfFanIn(nn.Module):
    """Divide a kernel (1, maps, k, k) by sqrt(maps * k * k)."""

    def forward(self, v: Tensor) -> Tensor:
        """Return the kernel."""
        return v / v[0].numel() ** 0.5

    def right_inverse(self, w: Tensor) -> Tensor:
        """Return v of a kernel."""
        return w * w[0].numel() ** 0.5


def _start_at_identity(block: cbam.CBAM) -> None:
    block.set_identity()
    nn.init.zeros_(block.spatial_attention.conv.parametrizations.weight.original)  # type: ignore[union-attr]


@cbam.register_attention("cbam_scaled", label="CBAM, spatial / √fan-in", identity=_start_at_identity)
def scaled(channels: int) -> cbam.CBAM:
    """Return CBAM with a scaled spatial kernel."""
    block = cbam.CBAM(channels)
    parametrize.register_parametrization(block.spatial_attention.conv, "weight", OverRootOfFanIn())
    return block
