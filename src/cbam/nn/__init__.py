"""The attention modules."""

from cbam.nn.base import AttentionModule
from cbam.nn.cbam import CBAM
from cbam.nn.channel import ChannelAttention, SqueezeExcitation
from cbam.nn.presets import PRESETS, Preset
from cbam.nn.spatial import SpatialAttention

__all__ = [
    "CBAM",
    "PRESETS",
    "AttentionModule",
    "ChannelAttention",
    "Preset",
    "SpatialAttention",
    "SqueezeExcitation",
]
