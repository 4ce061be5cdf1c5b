"""CBAM with the identity start as it was before its first steps were shortened, for benchmarks/insertion.py.

Without a divisor a step of SGD moves a spatial kernel by 1,024 times of what it moves with 32; without the factor a
channel gate with fewer than 4 hidden units moves by up to C times as much.
"""

from __future__ import annotations

import torch

import cbam


def _as_it_was(block: cbam.CBAM) -> None:
    block.set_identity()
    channel, spatial = block.channel_attention, block.spatial_attention
    assert channel is not None
    assert spatial is not None
    spatial.set_divisor(None)
    first = channel.layers[0]
    if first.out_channels < channel.narrow:
        with torch.no_grad():  # |w| from |w| |w|_2 / |w|_1
            first.weight[0].mul_(first.weight[0].sum() / first.weight[0].norm())


@cbam.register_attention("cbam_unscaled", label="CBAM, long first steps", identity=_as_it_was)
def unscaled(channels: int) -> cbam.CBAM:
    """Return CBAM with the earlier identity start."""
    return cbam.CBAM(channels)
