"""The FLOPs of one aten operation and the bytes it moves: the formulas of `cbam.cost`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_iter

from cbam.ops.plain import attention_multiply_adds
from cbam.ops.signature import POOLED_ROWS, ForwardArguments

PRODUCTS: dict[str, Callable[..., int]] = {
    "convolution": lambda args, out: _convolution(args, out),
    "mm": lambda args, out: args[0].numel() * args[1].shape[-1],
    "bmm": lambda args, out: args[0].numel() * args[1].shape[-1],
    "mv": lambda args, out: args[0].numel(),
    "dot": lambda args, out: args[0].numel(),
    "linear": lambda args, out: args[0].numel() * args[1].shape[0],  # whole on some accelerators
    "addmm": lambda args, out: args[1].numel() * args[2].shape[-1],
    "baddbmm": lambda args, out: args[1].numel() * args[2].shape[-1],
}
BATCH_NORMS = {
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
}
FIVE_PER_INPUT = {
    "native_layer_norm",
    "native_group_norm",
    "_fused_rms_norm",
    "_softmax",
    "_safe_softmax",
    "_log_softmax",
}
ONE_PER_INPUT = {
    "sum",
    "mean",
    "amax",
    "amin",
    "max",
    "min",
    "prod",
    "argmax",
    "argmin",
    "var",
    "var_mean",
    "std",
    "std_mean",
    "norm",
    "linalg_vector_norm",
    "logsumexp",
    "cumsum",
    "any",
    "all",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
}
# The statistics of a batch norm by themselves.
THREE_PER_INPUT = {"batch_norm_update_stats"}
WINDOWS = {"max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"}
# Element-wise, but without torch's tag `pointwise`, in place or at all.
ONE_PER_OUTPUT = {"hardswish", "gelu", "mish", "threshold", "rsub", "log_sigmoid_forward", "_prelu_kernel"}
MOVES = {
    "clone",
    "copy",
    "_to_copy",
    "contiguous",
    "cat",
    "stack",
    "fill",
    "zero",
    "zeros",
    "zeros_like",
    "new_zeros",
    "ones",
    "ones_like",
    "full",
    "full_like",
    "new_full",
    "arange",
    "scalar_tensor",
    "constant_pad_nd",
    "reflection_pad2d",
    "replication_pad2d",
    "roll",
    "flip",
    "index",
    "index_select",
    "gather",
    "embedding",
    "repeat",
    "_reshape_copy",
    "pixel_shuffle",
    "channel_shuffle",
    "native_channel_shuffle",
    "masked_fill",
    "where",
    "bernoulli",
    "lift_fresh",
}
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "as_strided"}


def base_name(op: OpOverload) -> str:
    """Return an operation's name without overload and without the underscore of its in-place form.

    >>> base_name(torch.ops.aten.relu_.default)
    'relu'
    """
    name = op.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def multiply_adds(op: OpOverload, args: tuple[Any, ...], out: Any) -> int:
    """Count the multiply-adds of convolutions and matrix products; 0 for every other operation.

    >>> multiply_adds(torch.ops.aten.mm.default, (torch.ones(2, 3), torch.ones(3, 4)), None)
    24
    """
    if _is_attention(op):
        return _attention_multiply_adds(args)
    name = base_name(op)
    if name in PRODUCTS:
        return PRODUCTS[name](args, out)
    if name.startswith("_scaled_dot_product"):
        query, key, value = args[:3]
        return math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return 0


def other_flops(op: OpOverload, args: tuple[Any, ...], out: Any) -> int | None:
    """Count the operations outside the matrix products; None for an operation without a formula.

    The docstring of `cbam.cost` lists the formulas.

    >>> other_flops(torch.ops.aten.relu.default, (torch.ones(2, 3),), torch.ones(2, 3))
    6
    """
    if _is_attention(op):
        return _attention_flops(args)
    name = base_name(op)
    if name in PRODUCTS or name.startswith("_scaled_dot_product") or name in MOVES or name in NOTHING:
        return 0
    if name in BATCH_NORMS:
        # Argument 5 is `training` wherever there is one: the other forms read the running statistics.
        with_batch_statistics = name not in ("_native_batch_norm_legit_no_training", "_batch_norm_no_update")
        return args[0].numel() * (5 if with_batch_statistics and args[5] is True else 2)
    if name in FIVE_PER_INPUT:
        return 5 * args[0].numel()
    if name in THREE_PER_INPUT:
        return 3 * args[0].numel()
    if name in WINDOWS:
        spatial_axes = int(name[name.index("pool") + 4])
        return _first(out).numel() * math.prod(_spread(args[1], spatial_axes))
    if name in ONE_PER_INPUT:
        return args[0].numel()
    if name in ONE_PER_OUTPUT or torch.Tag.pointwise in op.tags:
        return sum(tensor.numel() for tensor in _tensors(out))
    return None


def bytes_moved(op: OpOverload, inputs: Any, out: Any) -> int:
    """Count the bytes that an operation reads and writes: every input once, every output once; views move none.

    A broadcast (stride 0) axis is read once. Caches are not modelled. The fused
    attention reads its map once, and once more for each of its gates.

    >>> x = torch.ones(2, 3)
    >>> bytes_moved(torch.ops.aten.relu.default, (x,), torch.relu(x))
    48
    """
    read = {id(tensor): tensor for tensor in _tensors(inputs)}
    written = list(_tensors(out))
    if base_name(op) in NOTHING:
        return 0
    if not op._schema.is_mutable:
        storages = {_storage(tensor) for tensor in read.values()}
        if written and all(_storage(tensor) in storages for tensor in written):
            return 0
    again = 0
    if _is_attention(op):
        call = ForwardArguments.parse(inputs[0])
        again = ((call.weights.w0 is not None) + (call.weights.kernel is not None)) * _bytes(call.x)
    return again + sum(map(_bytes, read.values())) + sum(map(_bytes, written))


def _is_attention(op: OpOverload) -> bool:
    return op._schema.name == "cbam::forward"


def _attention_multiply_adds(args: tuple[Any, ...]) -> int:
    call = ForwardArguments.parse(args)
    w0, kernel = (w if w is None else w.shape for w in (call.weights.w0, call.weights.kernel))
    return attention_multiply_adds(call.x.shape, w0, kernel, call.config.pooling)


def _attention_flops(args: tuple[Any, ...]) -> int:
    """Count the operations of the same attention in plain torch, without its matrix products."""
    call = ForwardArguments.parse(args)
    weights, config = call.weights, call.config
    n, c, height, width = call.x.shape
    elements, positions = call.x.numel(), n * height * width
    count = 0 if call.before.mean is None else 2 * elements
    if weights.w0 is not None:
        pooled, scaled = len(POOLED_ROWS[config.pooling]), weights.channel_scale is not None
        # Pooling and ReLU per pooled vector; their sum, the gate, and the product with the map.
        count += pooled * (elements + n * weights.w0.shape[0]) + n * c * (pooled - 1 + 1 + scaled) + elements
    if weights.kernel is not None:
        maps, scaled = weights.kernel.shape[1], weights.spatial_scale is not None
        norm = 5 if config.norm_training else 0 if weights.norm_mean is None else 2
        if (
            weights.norm_var is not None and weights.norm_mean is None
        ):  # one root, and a product at each position
            norm, count = 1, count + 1
        count += maps * elements + positions * (norm + 1 + scaled) + elements
    return count + ((call.residual is not None) + config.relu) * elements


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    x, weight, transposed = args[0], args[1], args[6]
    positions = x if transposed else out
    return positions.numel() * math.prod(weight.shape[1:])


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def _first(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def _spread(kernel: Any, axes: int) -> list[int]:
    sizes = [kernel] if isinstance(kernel, int) else list(kernel)
    return sizes * axes if len(sizes) == 1 else sizes


def _storage(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    distinct = math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or size == 0
    )
    return distinct * tensor.element_size()
