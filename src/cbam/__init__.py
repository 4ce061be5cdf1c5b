"""CBAM attention for any CNN: attach it, count it, compare it, see what it attends to."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cbam import functional
from cbam.attach import Attachment, Plan, attach, attention_maps, detach, disabled, fold_gate_scale, plan
from cbam.checkpoints import WeightsReport, load_weights
from cbam.errors import CBAMError, MissingExtra
from cbam.evaluate import Cost, cost
from cbam.nn import (
    CBAM,
    ChannelAttention,
    SpatialAttention,
    SqueezeExcitation,
    param_groups,
    register_attention,
)
from cbam.ops.dispatch import set_backend
from cbam.pretrained import from_pretrained, push_to_hub, save_pretrained
from cbam.version import __version__

if TYPE_CHECKING:
    from cbam.explain.explaining import explain as explain
    from cbam.export.exporting import export as export

__all__ = [
    "CBAM",
    "Attachment",
    "CBAMError",
    "ChannelAttention",
    "Cost",
    "Plan",
    "SpatialAttention",
    "SqueezeExcitation",
    "WeightsReport",
    "__version__",
    "attach",
    "attention_maps",
    "cost",
    "detach",
    "disabled",
    "fold_gate_scale",
    "from_pretrained",
    "functional",
    "load_weights",
    "param_groups",
    "plan",
    "push_to_hub",
    "register_attention",
    "save_pretrained",
    "set_backend",
]


def __getattr__(name: str) -> Any:
    # `cbam.explain` needs torchcam and matplotlib, which `import cbam` does not load.
    if name == "export":  # brings in torch's exporter
        return importlib.import_module("cbam.export")
    if name == "explain":
        try:
            return importlib.import_module("cbam.explain")
        except ModuleNotFoundError as error:
            raise MissingExtra("cbam.explain", "explain", str(error.name)) from error
    if name == "testing":
        return importlib.import_module("cbam.testing")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
