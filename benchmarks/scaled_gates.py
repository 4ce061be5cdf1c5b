"""CBAM with and without the scaled spatial kernel, for benchmarks/insertion.py.

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


def _without(block: cbam.CBAM) -> None:
    block.set_identity()
    assert block.spatial_attention is not None
    block.spatial_attention.set_fan_in(False)


def _with(block: cbam.CBAM) -> None:
    _without(block)
    nn.init.zeros_(block.spatial_attention.conv.parametrizations.weight.original)  # type: ignore[union-attr]


@cbam.register_attention("cbam_unscaled", label="CBAM, spatial kernel as it is", identity=_without)
def unscaled(channels: int) -> cbam.CBAM:
    """Return CBAM whose identity start leaves the spatial kernel's scale alone, as it was before."""
    return cbam.CBAM(channels)


@cbam.register_attention("cbam_scaled", label="CBAM, spatial / √fan-in", identity=_with)
def scaled(channels: int) -> cbam.CBAM:
    """Return CBAM with a scaled spatial kernel, from before the identity start had it."""
    block = cbam.CBAM(channels)
    assert block.spatial_attention is not None
    parametrize.register_parametrization(block.spatial_attention.conv, "weight", OverRootOfFanIn())
    return block
