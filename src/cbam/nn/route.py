"""Whether a module's forward pass runs in the fused operator or in plain torch, and why. For `cbam doctor`."""

from __future__ import annotations

import torch
from torch import Tensor

from cbam.nn.base import AttentionModule
from cbam.nn.cbam import CBAM
from cbam.nn.channel import ChannelAttention
from cbam.ops import dispatch

_GATES = {True: "channel", False: "spatial"}


def route(module: AttentionModule, x: Tensor | None = None) -> tuple[str, str]:
    """Return (route, reason) for a forward pass of `module` in its present state.

    The route is "operator", "eager", "both" (one gate each), or "error" where the backend "cpp" or "triton" raises.

    Args:
        module: an attention module.
        x: the map; by default two samples of 8 x 8 in the dtype and on the device of the module's weights.

    >>> from cbam import set_backend
    >>> with set_backend("eager"):
    ...     route(CBAM(8))
    ('eager', "the backend is 'eager'")
    """
    backend = dispatch.backend()
    if backend == "eager":
        return "eager", "the backend is 'eager'"
    found, reason = _automatic(module, x)
    return ("error" if backend != "auto" and found != "operator" else found), reason


def _automatic(module: AttentionModule, x: Tensor | None) -> tuple[str, str]:
    """Return route and reason with the backend "auto"."""
    if x is None:
        like = next(module.parameters())
        x = torch.empty(2, module.in_channels or 8, 8, 8, dtype=like.dtype, device=like.device)
    weights = module.operator_weights(x)
    if not isinstance(weights, str):
        why = dispatch.unfused_reason(x, weights)
        return ("operator", "") if why is None else ("eager", why)
    if isinstance(module, CBAM) and module.arrangement != "parallel":
        routes = [(gate, *_automatic(gate, x)) for gate in module.gates]
        eager = [
            f"{_GATES[isinstance(gate, ChannelAttention)]} gate: {why}"
            for gate, found, why in routes
            if found == "eager"
        ]
        if not eager:
            return "operator", "one call for each gate"
        if len(eager) < len(routes):
            return "both", eager[0]
    return "eager", weights
