"""The operator under `torch.vmap`, which compiled code meets; in eager mode such maps run in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cbam.ops.signature import RESIDUAL, ForwardArguments

_MAPS = (0, RESIDUAL)  # the arguments of forward with a batch of their own


def forward(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    """Compute all maps in one call where no number is shared between images, otherwise one after the other.

    Args:
        info: of torch; holds the number of maps.
        in_dims: which dimension of each argument counts them; None for one that all maps share.
        arguments: of `cbam::forward`.
    """
    operator = torch.ops.cbam.forward.default
    call = ForwardArguments.parse(arguments)
    over_batch = call.config.norm_training or call.config.pre_training
    only_maps = all(d is None for i, d in enumerate(in_dims) if i not in _MAPS)
    if call.keep or over_batch or not only_maps:
        return _one_by_one(operator, info.batch_size, in_dims, arguments)
    given = list(arguments)
    for i in _MAPS:
        if given[i] is not None:
            stacked = _in_front(given[i], in_dims[i], info.batch_size)
            shape = stacked.shape
            given[i] = stacked.flatten(0, 1).contiguous()
    y, *rest = operator(*given)
    return (y.view(shape), *rest), (0, *[None] * len(rest))


def backward(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    """Compute the gradients of one map after the other; see `forward`."""
    return _one_by_one(torch.ops.cbam.backward.default, info.batch_size, in_dims, arguments)


def _one_by_one(
    operator: Callable[..., Any], count: int, in_dims: tuple[int | None, ...], arguments: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Stack what the operator returns for each map; every map in one memory format."""
    found = []
    for i in range(count):
        one = [a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims, strict=True)]
        found.append(operator(*(a.contiguous() if isinstance(a, Tensor) else a for a in one)))
    stacked = tuple(torch.stack(parts) for parts in zip(*found, strict=True))
    return stacked, (0,) * len(stacked)


def _in_front(x: Tensor, dim: int | None, count: int) -> Tensor:
    return x.expand(count, *x.shape) if dim is None else x.movedim(dim, 0)
