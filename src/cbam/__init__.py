"""CBAM attention for any CNN: attach it, count it, compare it."""

from cbam import functional
from cbam.nn import CBAM, ChannelAttention, SpatialAttention, SqueezeExcitation

__version__ = "0.1.0"

__all__ = [
    "CBAM",
    "ChannelAttention",
    "SpatialAttention",
    "SqueezeExcitation",
    "functional",
]
