"""CBAM: the channel gate and the spatial gate in one module."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from cbam.nn.base import AttentionModule, is_hooked, positive_int
from cbam.nn.channel import ChannelAttention
from cbam.nn.keywords import checked_keywords
from cbam.nn.presets import DEFAULT_PRESET, Preset, resolve_preset
from cbam.nn.spatial import SpatialAttention
from cbam.ops import gates, reference
from cbam.ops.dims import check_dims
from cbam.ops.signature import NO_CHANNEL_GATE, POOLINGS, OperatorConfig, Weights


@checked_keywords(*(switch.name for switch in fields(Preset)))
class CBAM(AttentionModule):
    """Convolutional Block Attention Module: gate the channels of a map ("what"), then its positions ("where").

    F' = Mc(F) * F, F'' = Ms(F') * F'; equation (1) of Woo et al., ECCV 2018. The state dict's keys are
    `channel_attention.mlp.0.weight` (C/r, C, 1, 1), `channel_attention.mlp.2.weight` (C, C/r, 1, 1) and
    `spatial_attention.conv.weight` (1, 2, k, k), so weights of the widespread textbook module load as they are;
    switches add biases, `spatial_attention.norm.*` and `spatial_attention.descriptor.weight`. With `dims` other than 2
    there are as many ones, or k, in these shapes.

    Args:
        in_channels: C.
        reduction_ratio: r; the hidden width is max(1, C // r).
        kernel_size: k of the spatial convolution, odd.
        preset: "paper" (the equations), "official" (the authors' code: biases, batch norm in the spatial gate,
            maximum before mean), "timm", or a `cbam.nn.Preset`.
        gate_scale: factor on each gate; 2 makes zero weights the identity (see `set_identity`).
        dims: 1 for signals (N, C, L), 2 for images, 3 for volumes and video (N, C, D, H, W).
        device, dtype: of the weights.
        **switches: fields of `cbam.nn.Preset`, such as `arrangement="parallel"`, `channel_pooling="avg"`,
            `spatial_descriptor="conv"`, `mlp_bias=True`, `spatial_norm=True`, `gate="hardsigmoid"`.

    Shape: (N, C, H, W) or (C, H, W) in, or with `dims` sizes; the same out.

    Raises:
        CBAMError: C, r or k below 1, an even kernel, an unknown preset or switch, a map that does not fit.

    >>> block = CBAM(64)
    >>> block(torch.rand(2, 64, 56, 56)).shape
    torch.Size([2, 64, 56, 56])
    >>> sum(p.numel() for p in block.parameters())  # 2 C^2 / r + 2 k^2
    610
    >>> CBAM(64, dims=3)(torch.rand(2, 64, 4, 14, 14)).shape
    torch.Size([2, 64, 4, 14, 14])
    """

    in_channels: int

    def __init__(
        self,
        in_channels: int,
        reduction_ratio: int = 16,
        kernel_size: int = 7,
        *,
        preset: str | Preset = DEFAULT_PRESET,
        gate_scale: float = 1.0,
        dims: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **switches: Any,
    ):
        settings = resolve_preset(preset, switches)
        in_channels = positive_int("in_channels", in_channels)
        super().__init__()
        self.in_channels = in_channels
        self.dims = check_dims(dims)
        self.preset = preset if isinstance(preset, str) and not switches else "custom"
        self.arrangement = settings.arrangement
        common: dict[str, Any] = {
            "gate": settings.gate, "gate_scale": gate_scale, "dims": dims, "device": device, "dtype": dtype,
        }  # fmt: skip
        self.channel_attention: ChannelAttention | None = None
        self.spatial_attention: SpatialAttention | None = None
        if settings.arrangement != "spatial":
            self.channel_attention = ChannelAttention(
                in_channels,
                reduction_ratio,
                channel_pooling=settings.channel_pooling,
                mlp_bias=settings.mlp_bias,
                **common,
            )
        if settings.arrangement != "channel":
            self.spatial_attention = SpatialAttention(
                kernel_size,
                spatial_descriptor=settings.spatial_descriptor,
                descriptor_order=settings.descriptor_order,
                spatial_norm=settings.spatial_norm,
                norm_momentum=settings.norm_momentum,
                norm_weight=settings.norm_weight,
                in_channels=in_channels,
                **common,
            )
        if settings.weight_init == "official":
            _initialise_as_authors(self)

    @property
    def gates(self) -> list[ChannelAttention | SpatialAttention]:
        """The gates that this arrangement has, in the order in which they act."""
        both = [self.channel_attention, self.spatial_attention]
        ordered = both[::-1] if self.arrangement == "spatial-channel" else both
        return [gate for gate in ordered if gate is not None]

    @property
    def switches(self) -> dict[str, str]:
        """The arrangement; the gates have switches of their own."""
        return {"arrangement": self.arrangement}

    def attend_eagerly(self, x: Tensor) -> Tensor:
        """Return the map after both gates, each by the operator where it can compute it, otherwise in plain torch."""
        if self.arrangement == "parallel":
            channel, spatial = self.channel_attention, self.spatial_attention
            assert channel is not None
            assert spatial is not None
            parts = channel.logits(x), spatial.logits(x)
            if self.listeners:  # of each part what would be its gate if the other part were 0
                first, second = (reference.gate(p, channel.activation, channel.gate_scale) for p in parts)
                gates.hand_on(self.listeners, x, first, second, self.dims)
            logits = parts[0] + parts[1]  # (N, C, H, W): one gate per element
            return reference.apply_gate(x, reference.gate(logits, channel.activation, channel.gate_scale))
        for gate in self.gates:
            as_module = isinstance(x, torch.fx.Proxy) or is_hooked(gate) or not gate.enabled
            x = gate(x) if as_module else gate.attend(x)
        return x

    @property
    def needs_two_calls(self) -> bool:  # type: ignore[override]
        """Whether it takes two calls: the operator computes the channel gate first, and no convolution of volumes."""
        return self.arrangement == "spatial-channel" or (
            self.dims == 3 and self.arrangement == "channel-spatial"
        )

    def operator_weights(self, x: Tensor | None = None) -> Weights | str:
        """Return the tensors for the fused operator, or why one call of it cannot compute this arrangement."""
        if self.arrangement in ("parallel", "spatial-channel"):
            return f"one call does not compute arrangement {self.arrangement!r}"
        channel, spatial = self._pair()
        tensors: tuple[Tensor | None, ...] = NO_CHANNEL_GATE
        if channel is not None:
            found = _operator_tensors(channel, x)
            if isinstance(found, str):
                return found
            tensors = found
        if spatial is None:
            return Weights(*tensors)
        found = _operator_tensors(spatial, x)
        if isinstance(found, str):
            return found
        if channel is not None and channel.activation != spatial.activation:
            return "the gates have different activations"
        return Weights(*tensors, *found)

    def operator_config(self) -> OperatorConfig:
        """Return the operator's numbers for this module."""
        channel, spatial = self._pair()
        if spatial is None:
            return channel.operator_config()
        config = spatial.operator_config()
        return config if channel is None else config._replace(pooling=POOLINGS[channel.channel_pooling])

    def _pair(self) -> tuple[Any, Any]:
        modules = self._modules  # faster than attributes
        return modules.get("channel_attention"), modules.get("spatial_attention")

    def after_operator(self, x: Tensor, stats: Tensor) -> None:
        """Update the running statistics of the spatial norm."""
        _, spatial = self._pair()
        if spatial is not None:
            spatial.after_operator(x, stats)

    def set_identity(self) -> None:
        """Make the module return its input bit for bit: zero logits, and 2 * sigmoid(0) = 1 for every gate.

        Two doubled gates are the paper's form behind a map that is 4 times as large, so the network can still
        represent every function that it could with the paper's gates.

        >>> block, x = CBAM(8), torch.randn(2, 8, 5, 5)
        >>> block.set_identity()
        >>> torch.equal(block(x), x)
        True
        """
        for gate in self.gates:
            gate.set_identity()

    def extra_repr(self) -> str:
        """Name the channels, the preset and the arrangement."""
        dims = "" if self.dims == 2 else f", dims={self.dims}"
        return f"{self.in_channels}, preset={self.preset!r}, arrangement={self.arrangement!r}{dims}"


def _operator_tensors(gate: Any, x: Tensor | None) -> tuple[Tensor | None, ...] | str:
    if is_hooked(gate):
        return f"{type(gate).__name__} has hooks"
    if not gate.enabled:
        return f"{type(gate).__name__} is switched off"
    if type(gate).attend is not AttentionModule.attend or "attend" in vars(gate):
        return f"{type(gate).__name__} overrides attend"
    return gate.operator_tensors(x)


def _initialise_as_authors(block: CBAM) -> None:
    """Apply the authors' initial values: Kaiming (fan out) for the spatial convolution, zero biases in the MLP.

    The batch norm's weight of 0 comes with the preset; the MLP's weights keep PyTorch's default, as in their code.
    """
    if block.spatial_attention is not None:
        nn.init.kaiming_normal_(block.spatial_attention.conv.weight, mode="fan_out")
    if block.channel_attention is not None:
        for layer in block.channel_attention.layers:
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
