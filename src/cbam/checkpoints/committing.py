"""Set the weights of a model: all of them or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cbam.errors import CBAMError


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile's and the data-parallel wrappers.

    >>> net = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(net)) is net
    True
    """
    while type(model).__name__ in ("OptimizedModule", "DistributedDataParallel", "DataParallel"):
        model = getattr(model, "_orig_mod", None) or model.module  # type: ignore[assignment]
    return model


def misfit(name: str, given: Tensor, own: Tensor) -> str | None:
    """Return why a tensor of a file cannot be loaded into one of the model; None if it can.

    >>> misfit("fc.bias", torch.zeros(3), torch.zeros(2))
    'fc.bias is (3,), needs (2,)'
    """
    if given.shape != own.shape:
        return f"{name} is {tuple(given.shape)}, needs {tuple(own.shape)}"
    if given.is_floating_point() != own.is_floating_point() or given.is_complex() != own.is_complex():
        return f"{name} is {_name(given.dtype)}, needs {_name(own.dtype)}"
    return None


def commit(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the model's tensors that `state` names; if that fails midway, all tensors are restored.

    Raises:
        CBAMError: a module refuses a tensor.
    """
    tensors: list[tuple[Any, str, Tensor, Tensor]] = [
        (tensors, name, tensor, tensor.detach().clone())
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None and not tensor.is_meta
    ]
    empty = [(m._buffers, name) for m in model.modules() for name, b in m._buffers.items() if b is None]
    try:
        model.load_state_dict(dict(state), strict=False)
    except BaseException as error:
        with torch.no_grad():
            for owner, name, tensor, before in tensors:
                owner[name] = tensor
                tensor.copy_(before)
        for owner, name in empty:
            owner[name] = None
        if isinstance(error, Exception):
            raise CBAMError(f"the model refused the weights and is unchanged: {error}") from error
        raise


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
