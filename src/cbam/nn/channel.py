"""The channel gate ("what"), and squeeze-and-excitation, the same with average pooling only."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from cbam.errors import unknown_name
from cbam.nn.base import CONVOLUTIONS, Convolution, Gate, is_plain, positive_int, tensor_of, weight_is_all
from cbam.nn.keywords import checked_keywords
from cbam.ops import reference
from cbam.ops.signature import ACTIVATIONS, POOLINGS, OperatorConfig, Weights


@checked_keywords()
class ChannelAttention(Gate):
    """Scale each channel by a gate computed from its average and its maximum over the map.

    Mc(F) = sigmoid(W1 relu(W0 avg(F)) + W1 relu(W0 max(F))) and F' = Mc(F) * F; equations (1) and (2) of
    Woo et al., ECCV 2018. The hidden width is max(1, C // r). Differs from the authors' code, which gives an
    empty hidden layer, and so a constant gate, for C < r; and from the widespread textbook class, whose forward
    returns the gate: here that is `gate(x)`.

    Args:
        in_channels: C.
        reduction_ratio: r.
        channel_pooling: "both" (paper), "avg" or "max".
        mlp_bias: biases in both layers (the authors' code has them, the equations do not).
        gate: "sigmoid" or "hardsigmoid".
        gate_scale: factor on the gate; 2 makes zero weights the identity.
        dims: 1 for maps (N, C, L), 2 for (N, C, H, W), 3 for (N, C, D, H, W).
        device, dtype: of the weights.

    Shape: (N, C, H, W) or (C, H, W) in, or with `dims` sizes; the same out.

    Raises:
        CBAMError: C or r below 1, an unknown pooling or gate, a map that does not fit.

    >>> ChannelAttention(64)(torch.rand(2, 64, 7, 7)).shape
    torch.Size([2, 64, 7, 7])
    >>> ChannelAttention(64, dims=1)(torch.rand(2, 64, 100)).shape
    torch.Size([2, 64, 100])
    """

    narrow = 4  # with fewer hidden units all of them may be off for every input
    in_channels: int
    _own_weight = "mlp.0.weight"

    def __init__(
        self,
        in_channels: int,
        reduction_ratio: int = 16,
        *,
        channel_pooling: str = "both",
        mlp_bias: bool = False,
        gate: str = "sigmoid",
        gate_scale: float = 1.0,
        dims: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        if channel_pooling not in reference.CHANNEL_POOLINGS:
            raise unknown_name("channel_pooling", channel_pooling, reference.CHANNEL_POOLINGS)
        if gate not in reference.ACTIVATIONS:
            raise unknown_name("gate", gate, reference.ACTIVATIONS)
        in_channels = positive_int("in_channels", in_channels)
        hidden = max(1, in_channels // positive_int("reduction_ratio", reduction_ratio))
        super().__init__(gate, gate_scale, dims)
        self.in_channels = in_channels
        self.channel_pooling = channel_pooling
        factory = {"bias": mlp_bias, "device": device, "dtype": dtype}
        self.mlp = nn.Sequential(
            CONVOLUTIONS[dims](in_channels, hidden, 1, **factory),
            nn.ReLU(),
            CONVOLUTIONS[dims](hidden, in_channels, 1, **factory),
        )

    @property
    def switches(self) -> dict[str, str]:
        """The activation, and what is read of each channel."""
        return {**super().switches, "channel_pooling": self.channel_pooling}

    @property
    def layers(self) -> tuple[Convolution, Convolution]:
        """The two layers of the MLP: C to C/r, and back."""
        return cast("Convolution", self.mlp[0]), cast("Convolution", self.mlp[2])

    def logits(self, x: Tensor) -> Tensor:
        """Return the gate before its activation, (N, C, 1, 1) or with `dims` ones, in float32 or float64."""
        if not isinstance(x, torch.fx.Proxy) and not self._is_plain():
            return self._logits_of_layers(x)
        first, last = self.layers
        return reference.channel_logits(
            x, first.weight, first.bias, last.weight, last.bias, self.channel_pooling, self.dims
        )

    def _is_plain(self) -> bool:
        """Return whether the MLP is as it was built, so that its weights define it."""
        mlp: Any = self._modules["mlp"]
        if not is_plain(mlp, nn.Sequential) or len(mlp._modules) != 3:
            return False
        first, relu, last = mlp._modules.values()
        kind = CONVOLUTIONS[self.dims]
        return is_plain(relu, nn.ReLU) and weight_is_all(first, kind) and weight_is_all(last, kind)

    def _logits_of_layers(self, x: Tensor) -> Tensor:
        """Return the logits by calling the layers, of which one is hooked, wrapped or replaced."""
        pooled = reference.channel_descriptors(x, self.channel_pooling, self.dims)
        dtype = next((p.dtype for p in self.mlp.parameters() if p.is_floating_point()), pooled[0].dtype)
        with reference.full_precision(x):
            logits = [self.mlp(reference.over_positions(p.to(dtype), self.dims)).to(p.dtype) for p in pooled]
        return sum(logits[1:], logits[0])

    def operator_weights(self, x: Tensor | None = None) -> Weights | str:
        """Return the tensors for the fused operator, or why it cannot compute this gate."""
        tensors = self.operator_tensors(x)
        return tensors if isinstance(tensors, str) else Weights(*tensors)

    def operator_tensors(self, x: Tensor | None = None) -> tuple[Tensor | None, ...] | str:
        """Return weights, biases and scale in the operator's order, or why it cannot compute this gate."""
        if not self._is_plain():
            return "a layer of the MLP has hooks or was replaced"
        if self.has_own_gate(ChannelAttention):
            return f"{type(self).__name__} overrides the gate"
        mlp: Any = self._modules["mlp"]
        first, _, last = mlp._modules.values()
        return (
            tensor_of(first, "weight"), tensor_of(first, "bias"),
            tensor_of(last, "weight"), tensor_of(last, "bias"), self._buffers["gate_scale"],
        )  # fmt: skip

    def operator_config(self) -> OperatorConfig:
        """Return the operator's numbers for this gate."""
        return OperatorConfig(POOLINGS[self.channel_pooling], activation=ACTIVATIONS[self.activation])

    def keep_alive(self) -> None:
        """Take the signs off the first of fewer than 4 hidden units, and give its weights w the factor |w|_2 / |w|_1.

        With random signs, one unit is off for every input in up to half of the seeds, and then no weight of the gate
        ever gets a gradient. Without, it is on wherever the descriptor is above 0, as behind a ReLU or of maxima; the
        average of maps below 0 can still turn it off. The paper's narrowest layer has 4 units. The factor keeps the
        unit, and with it the last layer's first steps, as large as random signs make it on average.
        """
        first = self.layers[0]
        if first.out_channels < self.narrow:
            with torch.no_grad():
                row = first.weight[0].abs_()
                row.mul_(row.norm() / row.sum())
                if first.bias is not None:
                    first.bias[0].abs_()

    def set_identity(self) -> None:
        """Zero the last layer and double the gate: 2 * sigmoid(0) = 1."""
        self.keep_alive()
        last = self.layers[1]
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        self.set_gate_scale(2.0)

    def extra_repr(self) -> str:
        """Show the options that the sub-modules do not show."""
        scale = "" if self.gate_scale is None else f", gate_scale={self.gate_scale.item():g}"
        return f"channel_pooling={self.channel_pooling!r}, gate={self.activation!r}{scale}"


@checked_keywords()
class SqueezeExcitation(ChannelAttention):
    """Scale each channel by a gate computed from its average over the map.

    s = sigmoid(W1 relu(W0 avg(F) + b0) + b1), Hu et al., CVPR 2018: the baseline of CBAM's tables, whose
    parameter counts fit only with the biases.

    Args:
        in_channels: C.
        reduction_ratio: r; the hidden width is max(1, C // r).
        mlp_bias: biases in both layers.
        gate: "sigmoid" or "hardsigmoid".
        gate_scale: factor on the gate; 2 makes zero weights the identity.
        dims: as for `ChannelAttention`.
        device, dtype: of the weights.

    Raises:
        CBAMError: as `ChannelAttention`.

    >>> sum(p.numel() for p in SqueezeExcitation(64).parameters())
    580
    """

    def __init__(
        self,
        in_channels: int,
        reduction_ratio: int = 16,
        *,
        mlp_bias: bool = True,
        gate: str = "sigmoid",
        gate_scale: float = 1.0,
        dims: int = 2,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            in_channels,
            reduction_ratio,
            channel_pooling="avg",
            mlp_bias=mlp_bias,
            gate=gate,
            gate_scale=gate_scale,
            dims=dims,
            device=device,
            dtype=dtype,
        )
