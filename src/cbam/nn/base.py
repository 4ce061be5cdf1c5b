"""What every attention module here shares: argument checks, the off switch, the gate scale in the state dict."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.ops import checks


def positive_int(name: str, value: Any) -> int:
    """Return `value` if it is an integer of at least 1, otherwise raise with the argument's name."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise CBAMError(f"{name} expects an integer, got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise CBAMError(f"{name} must be at least 1, got {value}.")
    return value


class AttentionModule(nn.Module):
    """Base of the attention modules: a map goes in, the gated map of the same shape, dtype and memory format comes out.

    `enabled = False` turns the module into the identity; `cbam.disabled(model)` sets it for a while.
    """

    enabled: bool = True
    in_channels: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        checks.check_feature_map(x, type(self).__name__, self.in_channels)
        return self.attend(x) if self.enabled else x

    def attend(self, x: Tensor) -> Tensor:
        """Return the gated map of a checked input."""
        raise NotImplementedError

    def set_identity(self) -> None:
        """Make the module return its input bit for bit, with every gate at the steepest point of its sigmoid."""
        raise NotImplementedError


class Gate(AttentionModule):
    """An attention module with one gate of its own, scale * activation(logits).

    A scale other than 1 is a buffer, `gate_scale`, so a state dict always says which function it holds. Weights
    that come without it are in the paper's form: the module then drops its scale.
    """

    _own_weight: str  # a weight that is in the state dict whenever this gate is
    gate_scale: Tensor | None

    def __init__(self, activation: str, gate_scale: float):
        super().__init__()
        self.activation = activation
        self.register_buffer("gate_scale", None)
        self.set_gate_scale(gate_scale)

    @property
    def reading_weight(self) -> Tensor:
        """The weight that reads the pooled map: the logits are linear in it up to the first ReLU."""
        return self.get_parameter(self._own_weight)

    def set_gate_scale(self, scale: float) -> None:
        """Set the factor on the gate."""
        device = next((p.device for p in self.parameters()), None)
        self.gate_scale = None if scale == 1.0 else torch.tensor(float(scale), device=device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if prefix + self._own_weight in state_dict:
            self.set_gate_scale(float(state_dict.get(prefix + "gate_scale", 1.0)))
        super()._load_from_state_dict(state_dict, prefix, *args)
