"""CBAM as functions of tensors, for callers that hold the weights themselves.

Maps are (N, C, H, W) or (C, H, W); see `cbam.ops.reference` for the numerics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbam.errors import unknown_name
from cbam.nn.presets import ARRANGEMENTS
from cbam.ops import checks, dispatch, fused, reference
from cbam.ops.signature import DESCRIPTORS, POOLINGS, OperatorConfig, Weights

__all__ = [
    "cbam",
    "channel_attention",
    "channel_logits",
    "spatial_attention",
    "spatial_logits",
    "squeeze_excitation",
]


def channel_logits(
    x: Tensor,
    w0: Tensor,
    w1: Tensor,
    b0: Tensor | None = None,
    b1: Tensor | None = None,
    *,
    pooling: str = "both",
) -> Tensor:
    """Return the channel gate before its sigmoid, W1 relu(W0 avg(x)) + W1 relu(W0 max(x)).

    Args:
        x: map (N, C, H, W).
        w0: first layer, (h, C) or (h, C, 1, 1).
        w1: second layer, (C, h) or (C, h, 1, 1).
        b0, b1: biases (h,) and (C,).
        pooling: "both", "avg" or "max".

    Returns:
        (N, C, 1, 1) in float32, or float64 for a float64 map.

    Raises:
        CBAMError: a map that does not fit the weights, an unknown pooling.

    >>> import torch
    >>> channel_logits(torch.rand(2, 8, 5, 5), torch.rand(1, 8), torch.rand(8, 1)).shape
    torch.Size([2, 8, 1, 1])
    """
    checks.check_feature_map(x, "channel_logits", w0.shape[1])
    if pooling not in reference.CHANNEL_POOLINGS:
        raise unknown_name("pooling", pooling, reference.CHANNEL_POOLINGS)
    return reference.channel_logits(x, w0, b0, w1, b1, pooling)


def spatial_logits(
    x: Tensor, kernel: Tensor, *, descriptor: str = "both", order: str = "avg-max", projection: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Return the spatial gate before its norm and sigmoid, f_kxk([mean_c(x); max_c(x)]).

    Args:
        x: map (N, C, H, W).
        kernel: (1, 2, k, k), or (1, 1, k, k) where the descriptor is a single map.
        descriptor: "both", "avg", "max" or "conv".
        order: "avg-max" (paper) or "max-avg" (the authors' code).
        projection: the learned 1x1 kernel (1, C, 1, 1) of descriptor "conv".

    Returns:
        (N, 1, H, W) in float32, or float64 for a float64 map.

    Raises:
        CBAMError: a map that does not fit, an unknown descriptor or order.

    >>> import torch
    >>> spatial_logits(torch.rand(2, 8, 5, 5), torch.rand(1, 2, 7, 7)).shape
    torch.Size([2, 1, 5, 5])
    """
    checks.check_feature_map(x, "spatial_logits", None if projection is None else projection.shape[1])
    if descriptor not in reference.SPATIAL_DESCRIPTORS:
        raise unknown_name("descriptor", descriptor, reference.SPATIAL_DESCRIPTORS)
    if order not in reference.DESCRIPTOR_ORDERS:
        raise unknown_name("order", order, reference.DESCRIPTOR_ORDERS)
    return reference.spatial_conv(reference.spatial_descriptor(x, descriptor, order, projection), kernel)


def channel_attention(
    x: Tensor,
    w0: Tensor,
    w1: Tensor,
    b0: Tensor | None = None,
    b1: Tensor | None = None,
    *,
    pooling: str = "both",
    scale: float | None = None,
) -> Tensor:
    """Return x times its channel gate, scale * sigmoid(channel_logits(x)); arguments as `channel_logits`.

    >>> import torch
    >>> x = torch.rand(2, 8, 5, 5)
    >>> torch.equal(channel_attention(x, torch.rand(1, 8), torch.zeros(8, 1), scale=2.0), x)
    True
    """
    checks.check_feature_map(x, "channel_attention", w0.shape[1])
    if pooling in reference.CHANNEL_POOLINGS and _layers_fit(w0, w1, b0, b1):
        weights = Weights(w0, b0, w1, b1, _tensor(scale))
        if dispatch.can_fuse(x, weights):
            return fused.attend(x, weights, OperatorConfig(POOLINGS[pooling]))[0]
    logits = channel_logits(x, w0, w1, b0, b1, pooling=pooling)
    return reference.apply_gate(x, reference.gate(logits, scale=scale))


def squeeze_excitation(
    x: Tensor, w0: Tensor, w1: Tensor, b0: Tensor | None = None, b1: Tensor | None = None, *, scale: float | None = None
) -> Tensor:  # fmt: skip
    """Return x times its squeeze-and-excitation gate: `channel_attention` with the average only.

    >>> import torch
    >>> squeeze_excitation(torch.rand(2, 8, 5, 5), torch.rand(1, 8), torch.rand(8, 1)).shape
    torch.Size([2, 8, 5, 5])
    """
    return channel_attention(x, w0, w1, b0, b1, pooling="avg", scale=scale)


def spatial_attention(
    x: Tensor, kernel: Tensor, *, descriptor: str = "both", order: str = "avg-max", scale: float | None = None
) -> Tensor:
    """Return x times its spatial gate, scale * sigmoid(spatial_logits(x)); arguments as `spatial_logits`.

    >>> import torch
    >>> spatial_attention(torch.rand(2, 8, 5, 5), torch.rand(1, 2, 7, 7)).shape
    torch.Size([2, 8, 5, 5])
    """
    checks.check_feature_map(x, "spatial_attention")
    number = DESCRIPTORS.get((descriptor, order))
    if number is not None and _kernel_fits(kernel, descriptor):
        weights = Weights(kernel=kernel, spatial_scale=_tensor(scale))
        if dispatch.can_fuse(x, weights):
            return fused.attend(x, weights, OperatorConfig(descriptor=number))[0]
    logits = spatial_logits(x, kernel, descriptor=descriptor, order=order)
    return reference.apply_gate(x, reference.gate(logits, scale=scale))


def cbam(
    x: Tensor,
    w0: Tensor,
    w1: Tensor,
    kernel: Tensor,
    b0: Tensor | None = None,
    b1: Tensor | None = None,
    *,
    order: str = "avg-max",
    arrangement: str = "channel-spatial",
    scale: float | None = None,
) -> Tensor:
    """Return the map after both gates, F'' = Ms(Mc(F) F) Mc(F) F; equation (1) of Woo et al., ECCV 2018.

    Args:
        x: map (N, C, H, W).
        w0, w1, b0, b1: the channel gate's layers, as in `channel_logits`.
        kernel: the spatial gate's kernel (1, 2, k, k).
        order: "avg-max" (paper) or "max-avg" (the authors' code).
        arrangement: "channel-spatial", "spatial-channel" or "parallel".
        scale: factor on each gate.

    Raises:
        CBAMError: a map that does not fit, an unknown order or arrangement.

    >>> import torch
    >>> cbam(torch.rand(2, 8, 5, 5), torch.rand(1, 8), torch.rand(8, 1), torch.rand(1, 2, 7, 7)).shape
    torch.Size([2, 8, 5, 5])
    """
    if arrangement == "parallel":
        dispatch.can_fuse(
            x, "one call does not compute arrangement 'parallel'"
        )  # raises if the operator is forced
        logits = channel_logits(x, w0, w1, b0, b1) + spatial_logits(x, kernel, order=order)
        return reference.apply_gate(x, reference.gate(logits, scale=scale))
    if arrangement == "channel-spatial":
        checks.check_feature_map(x, "cbam", w0.shape[1])
        number = DESCRIPTORS.get(("both", order))
        if number is not None and _layers_fit(w0, w1, b0, b1) and _kernel_fits(kernel, "both"):
            weights = Weights(w0, b0, w1, b1, _tensor(scale), kernel, spatial_scale=_tensor(scale))
            if dispatch.can_fuse(x, weights):
                return fused.attend(x, weights, OperatorConfig(POOLINGS["both"], number))[0]
        x = channel_attention(x, w0, w1, b0, b1, scale=scale)
        return spatial_attention(x, kernel, order=order, scale=scale)
    if arrangement == "spatial-channel":
        x = spatial_attention(x, kernel, order=order, scale=scale)
        return channel_attention(x, w0, w1, b0, b1, scale=scale)
    raise unknown_name("arrangement", arrangement, ARRANGEMENTS[:3])


def _tensor(scale: float | None) -> Tensor | None:
    return None if scale is None else torch.tensor(float(scale), device="cpu")


def _layers_fit(w0: Tensor, w1: Tensor, b0: Tensor | None, b1: Tensor | None) -> bool:
    """Return whether the layers fit together; if not, torch raises the error."""
    hidden, channels = w0.shape[:2]
    expected = [(w0, hidden * channels), (b0, hidden), (b1, channels), (w1, hidden * channels)]
    sizes = all(tensor is None or tensor.numel() == size for tensor, size in expected)
    return sizes and tuple(w1.shape[:2]) == (channels, hidden)


def _kernel_fits(kernel: Tensor, descriptor: str) -> bool:
    size = kernel.shape[-1]
    return size % 2 == 1 and tuple(kernel.shape) == (1, 2 if descriptor == "both" else 1, size, size)
