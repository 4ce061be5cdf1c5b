"""Attention in any CNN: find the sites, show the plan, attach, detach."""

from cbam.attach.attach import Attachment, attach, detach, disabled, plan
from cbam.attach.plan import Plan, Site
from cbam.attach.wrapper import WithAttention

__all__ = ["Attachment", "Plan", "Site", "WithAttention", "attach", "detach", "disabled", "plan"]
