"""CBAM attention for any CNN: attach it, count it, compare it."""

from cbam import functional
from cbam.attach import Attachment, Plan, attach, detach, disabled, fold_gate_scale, plan
from cbam.errors import CBAMError
from cbam.evaluate import Cost, cost
from cbam.nn import CBAM, ChannelAttention, SpatialAttention, SqueezeExcitation
from cbam.ops.dispatch import set_backend

__version__ = "0.1.0"

__all__ = [
    "CBAM",
    "Attachment",
    "CBAMError",
    "ChannelAttention",
    "Cost",
    "Plan",
    "SpatialAttention",
    "SqueezeExcitation",
    "attach",
    "cost",
    "detach",
    "disabled",
    "fold_gate_scale",
    "functional",
    "plan",
    "set_backend",
]
