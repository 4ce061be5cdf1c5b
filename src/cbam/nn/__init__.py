"""The attention modules."""

from cbam.nn import kinds as kinds
from cbam.nn import timm_attention as timm_attention
from cbam.nn.base import AttentionModule
from cbam.nn.cbam import CBAM
from cbam.nn.channel import ChannelAttention, SqueezeExcitation
from cbam.nn.eca import ECA as ECA
from cbam.nn.parameters import param_groups
from cbam.nn.presets import PRESETS, Preset
from cbam.nn.registry import register_attention
from cbam.nn.spatial import SpatialAttention

__all__ = [
    "CBAM",
    "PRESETS",
    "AttentionModule",
    "ChannelAttention",
    "Preset",
    "SpatialAttention",
    "SqueezeExcitation",
    "param_groups",
    "register_attention",
]
