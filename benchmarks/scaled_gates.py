"""CBAM whose identity start leaves the spatial kernel's scale alone, for benchmarks/insertion.py.

The gate is the same function of another variable: sigmoid(conv(d, v) / a) with v = a w in place of w. A step of SGD
moves w by 1 / a^2 of what it moves at the same rate without the divisor a, 1 / 1,024 for 32; one of AdamW by 1 / a.
"""

from __future__ import annotations

import cbam


def _as_it_is(block: cbam.CBAM) -> None:
    block.set_identity()
    assert block.spatial_attention is not None
    block.spatial_attention.set_divisor(None)


@cbam.register_attention("cbam_unscaled", label="CBAM, spatial kernel as it is", identity=_as_it_is)
def unscaled(channels: int) -> cbam.CBAM:
    """Return CBAM whose identity start leaves the spatial kernel's scale alone, as it was before."""
    return cbam.CBAM(channels)
