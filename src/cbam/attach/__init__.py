"""Attention in any CNN: find the sites, show the plan, attach, detach."""

from cbam.attach.attach import Attachment, attach, detach, disabled, plan
from cbam.attach.fold import fold_gate_scale
from cbam.attach.fusion.with_epilogue import WithEpilogue
from cbam.attach.maps import AttentionMaps, Gates, attention_maps
from cbam.attach.plan import Plan, Site
from cbam.attach.wrapper import WithAttention

__all__ = [
    "Attachment",
    "AttentionMaps",
    "Gates",
    "Plan",
    "Site",
    "WithAttention",
    "WithEpilogue",
    "attach",
    "attention_maps",
    "detach",
    "disabled",
    "fold_gate_scale",
    "plan",
]
