"""CBAM as functions of tensors, for callers that hold the weights themselves.

Maps are (N, C, H, W), or (N, C, L) and (N, C, D, H, W) where the spatial kernel has as many dimensions or `dims` says
so; or single maps (C, H, W) where the weights tell C. See `cbam.ops.reference` for the numerics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cbam.errors import CBAMError, unknown_name
from cbam.nn.presets import ARRANGEMENTS
from cbam.ops import checks, dispatch, reference
from cbam.ops import dims as maps
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
    dims: int = 2,
) -> Tensor:
    """Return the channel gate before its sigmoid, W1 relu(W0 avg(x)) + W1 relu(W0 max(x)).

    Args:
        x: map (N, C, H, W).
        w0: first layer, (h, C) or (h, C, 1, 1).
        w1: second layer, (C, h) or (C, h, 1, 1).
        b0, b1: biases (h,) and (C,).
        pooling: "both", "avg" or "max".
        dims: how many sizes follow C: 1 for maps (N, C, L), 3 for (N, C, D, H, W).

    Returns:
        (N, C, 1, 1), or with `dims` ones, in float32, or float64 for a float64 map.

    Raises:
        CBAMError: a map that does not fit the weights, an unknown pooling.

    >>> import torch
    >>> channel_logits(torch.rand(2, 8, 5, 5), torch.rand(1, 8), torch.rand(8, 1)).shape
    torch.Size([2, 8, 1, 1])
    """
    checks.check_feature_map(x, "channel_logits", w0.shape[1], maps.check_dims(dims))
    if pooling not in reference.CHANNEL_POOLINGS:
        raise unknown_name("pooling", pooling, reference.CHANNEL_POOLINGS)
    return reference.channel_logits(x, w0, b0, w1, b1, pooling, dims)


def spatial_logits(
    x: Tensor, kernel: Tensor, *, descriptor: str = "both", order: str = "avg-max", projection: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Return the spatial gate before its norm and sigmoid, f_kxk([mean_c(x); max_c(x)]).

    Args:
        x: map (N, C, H, W).
        kernel: (1, 2, k, k), or (1, 1, k, k) where the descriptor is a single map; (1, 2, k) for maps (N, C, L),
            (1, 2, k, k, k) for (N, C, D, H, W).
        descriptor: "both", "avg", "max" or "conv".
        order: "avg-max" (paper) or "max-avg" (the authors' code).
        projection: the learned 1x1 kernel (1, C, 1, 1) of descriptor "conv".

    Returns:
        (N, 1, H, W), or with the kernel's dimensions, in float32, or float64 for a float64 map.

    Raises:
        CBAMError: a map that does not fit, an unknown descriptor or order.

    >>> import torch
    >>> spatial_logits(torch.rand(2, 8, 5, 5), torch.rand(1, 2, 7, 7)).shape
    torch.Size([2, 1, 5, 5])
    """
    channels = None if projection is None else projection.shape[1]
    return _spatial_logits(x, kernel, descriptor, order, projection, channels)


def _spatial_logits(
    x: Tensor, kernel: Tensor, descriptor: str, order: str, projection: Tensor | None, channels: int | None
) -> Tensor:
    dims = _dims_of(kernel)
    checks.check_feature_map(x, "spatial_logits", channels, dims)
    if descriptor not in reference.SPATIAL_DESCRIPTORS:
        raise unknown_name("descriptor", descriptor, reference.SPATIAL_DESCRIPTORS)
    if order not in reference.DESCRIPTOR_ORDERS:
        raise unknown_name("order", order, reference.DESCRIPTOR_ORDERS)
    return reference.spatial_conv(
        reference.spatial_descriptor(x, descriptor, order, projection, dims), kernel
    )


def channel_attention(
    x: Tensor,
    w0: Tensor,
    w1: Tensor,
    b0: Tensor | None = None,
    b1: Tensor | None = None,
    *,
    pooling: str = "both",
    scale: float | None = None,
    dims: int = 2,
) -> Tensor:
    """Return x times its channel gate, scale * sigmoid(channel_logits(x)); arguments as `channel_logits`.

    >>> import torch
    >>> x = torch.rand(2, 8, 5, 5)
    >>> torch.equal(channel_attention(x, torch.rand(1, 8), torch.zeros(8, 1), scale=2.0), x)
    True
    """
    checks.check_feature_map(x, "channel_attention", w0.shape[1], maps.check_dims(dims))
    if pooling in reference.CHANNEL_POOLINGS and _layers_fit(w0, w1, b0, b1):
        weights = Weights(w0, b0, w1, b1, _tensor(scale))
        if dispatch.can_fuse(x, weights):
            return maps.attend(x, weights, OperatorConfig(POOLINGS[pooling]), dims)[0]
    logits = channel_logits(x, w0, w1, b0, b1, pooling=pooling, dims=dims)
    return reference.apply_gate(x, reference.gate(logits, scale=scale))


def squeeze_excitation(
    x: Tensor, w0: Tensor, w1: Tensor, b0: Tensor | None = None, b1: Tensor | None = None, *,
    scale: float | None = None, dims: int = 2,
) -> Tensor:  # fmt: skip
    """Return x times its squeeze-and-excitation gate: `channel_attention` with the average only.

    >>> import torch
    >>> squeeze_excitation(torch.rand(2, 8, 5, 5), torch.rand(1, 8), torch.rand(8, 1)).shape
    torch.Size([2, 8, 5, 5])
    """
    return channel_attention(x, w0, w1, b0, b1, pooling="avg", scale=scale, dims=dims)


def spatial_attention(
    x: Tensor, kernel: Tensor, *, descriptor: str = "both", order: str = "avg-max", scale: float | None = None
) -> Tensor:
    """Return x times its spatial gate, scale * sigmoid(spatial_logits(x)); arguments as `spatial_logits`.

    >>> import torch
    >>> spatial_attention(torch.rand(2, 8, 5, 5), torch.rand(1, 2, 7, 7)).shape
    torch.Size([2, 8, 5, 5])
    """
    return _spatial_attention(x, kernel, descriptor, order, scale, None)


def _spatial_attention(
    x: Tensor, kernel: Tensor, descriptor: str, order: str, scale: float | None, channels: int | None
) -> Tensor:
    dims = _dims_of(kernel)
    checks.check_feature_map(x, "spatial_attention", channels, dims)
    number = DESCRIPTORS.get((descriptor, order))
    image = maps.as_image_kernel(kernel, dims) if _kernel_fits(kernel, descriptor) else None
    if number is not None and image is not None:
        weights = Weights(kernel=image, spatial_scale=_tensor(scale))
        if dispatch.can_fuse(x, weights):
            return maps.attend(x, weights, OperatorConfig(descriptor=number), dims)[0]
    logits = _spatial_logits(x, kernel, descriptor, order, None, channels)
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
        kernel: the spatial gate's kernel (1, 2, k, k); (1, 2, k) for maps (N, C, L), (1, 2, k, k, k) for
            (N, C, D, H, W).
        order: "avg-max" (paper) or "max-avg" (the authors' code).
        arrangement: "channel-spatial", "spatial-channel" or "parallel".
        scale: factor on each gate.

    Raises:
        CBAMError: a map that does not fit, an unknown order or arrangement.

    >>> import torch
    >>> cbam(torch.rand(2, 8, 5, 5), torch.rand(1, 8), torch.rand(8, 1), torch.rand(1, 2, 7, 7)).shape
    torch.Size([2, 8, 5, 5])
    """
    if arrangement not in ARRANGEMENTS[:3]:
        raise unknown_name("arrangement", arrangement, ARRANGEMENTS[:3])
    dims, channels = _dims_of(kernel), w0.shape[1]
    if arrangement == "parallel":
        dispatch.can_fuse(
            x, "one call does not compute arrangement 'parallel'"
        )  # raises if the operator is forced
        logits = channel_logits(x, w0, w1, b0, b1, dims=dims)
        logits = logits + _spatial_logits(x, kernel, "both", order, None, channels)
        return reference.apply_gate(x, reference.gate(logits, scale=scale))
    if arrangement == "channel-spatial":
        checks.check_feature_map(x, "cbam", channels, dims)
        number = DESCRIPTORS.get(("both", order))
        image = maps.as_image_kernel(kernel, dims) if _kernel_fits(kernel, "both") else None
        if number is not None and image is not None and _layers_fit(w0, w1, b0, b1):
            weights = Weights(w0, b0, w1, b1, _tensor(scale), image, spatial_scale=_tensor(scale))
            if dispatch.can_fuse(x, weights):
                return maps.attend(x, weights, OperatorConfig(POOLINGS["both"], number), dims)[0]
        x = channel_attention(x, w0, w1, b0, b1, scale=scale, dims=dims)
        return _spatial_attention(x, kernel, "both", order, scale, channels)
    x = _spatial_attention(x, kernel, "both", order, scale, channels)
    return channel_attention(x, w0, w1, b0, b1, scale=scale, dims=dims)


def _tensor(scale: float | None) -> Tensor | None:
    return None if scale is None else torch.tensor(float(scale), device="cpu")


def _layers_fit(w0: Tensor, w1: Tensor, b0: Tensor | None, b1: Tensor | None) -> bool:
    """Return whether the layers fit together; if not, torch raises the error."""
    hidden, channels = w0.shape[:2]
    expected = [(w0, hidden * channels), (b0, hidden), (b1, channels), (w1, hidden * channels)]
    sizes = all(tensor is None or tensor.numel() == size for tensor, size in expected)
    return sizes and tuple(w1.shape[:2]) == (channels, hidden)


def _kernel_fits(kernel: Tensor, descriptor: str) -> bool:
    size, dims = kernel.shape[-1], kernel.dim() - 2
    return size % 2 == 1 and tuple(kernel.shape) == (1, 2 if descriptor == "both" else 1, *[size] * dims)


def _dims_of(kernel: Tensor) -> int:
    dims = kernel.dim() - 2
    if dims not in maps.SIZES:
        raise CBAMError(
            f"kernel expects the shape (1, 2, k), (1, 2, k, k) or (1, 2, k, k, k), got {tuple(kernel.shape)}."
        )
    return dims
