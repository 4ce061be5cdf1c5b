"""Attention right after a batch norm, in one call of the operator: the norm's output is never in memory.

A plain network keeps the input of each batch norm for backward. Attention computed on its own would keep the
norm's output as well, one more map per block; computed together with the norm, it keeps no map.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from cbam.nn.base import AttentionModule, has_global_hooks, is_like, is_plain
from cbam.nn.norms import counted_share, move_running, uses_batch
from cbam.nn.plan import Plan, plans_of
from cbam.ops import dispatch, fused
from cbam.ops.signature import NormBefore, OperatorConfig, Weights

_MAPS = (torch.float32, torch.bfloat16, torch.float16)


def attend(
    norm: nn.Module, attention: AttentionModule, u: Any, residual: Tensor | None = None, relu: bool = False
) -> Tensor | None:
    """Return attention(norm(u)) and update the norm as its forward pass does; None if one call cannot compute that.

    With a residual, return attention(norm(u)) + residual, then with a ReLU if asked for; None where these three must.
    The result equals norm(u) bit for bit where the gates are the identity. Under torch.compile it does not: the
    compiler's own batch norm does not have eager mode's bits either.
    """
    if type(norm) is not nn.BatchNorm2d or type(u) is not Tensor:
        return None
    compiling = torch.compiler.is_compiling()
    if not compiling:
        y = _as_planned(norm, attention, u, residual, relu)
        if y is not None:
            return y
    if residual is not None and not is_like(residual, u):
        return None
    weights = _weights(norm, attention, u)
    if isinstance(weights, str) or not dispatch.can_fuse(u, weights):
        return None
    if compiling:
        if dispatch.is_exporting() or (norm.training and norm.momentum is None):
            return None  # exporters get plain operations; a number of batches in Python breaks the graph
        before = _traced_statistics(norm, u)
    elif exact(u.dtype, not u.is_contiguous(), uses_batch(norm), u.device.type):
        _decide(norm, attention, weights)
        before = _statistics(norm, u)
    else:
        return None
    return attention.operate(u, weights, before, (uses_batch(norm), norm.eps), residual, relu)


def _decide(norm: nn.BatchNorm2d, attention: AttentionModule, weights: Weights) -> None:
    """Plan further calls of the two."""
    plans = plans_of(attention)
    known = plans.behind_norm
    if known is None or not known.holds(attention, norm):
        batch = uses_batch(norm)
        running = (None, None) if batch else (norm._buffers["running_mean"], norm._buffers["running_var"])
        before = (norm._parameters["weight"], norm._parameters["bias"], *running)
        config = attention.operator_config()._replace(pre_training=batch, pre_eps=norm.eps)
        plan = Plan(attention, norm, (*weights, *before), config)
        plans.behind_norm = plan if plan.complete else None


def _as_planned(
    norm: nn.BatchNorm2d, attention: AttentionModule, u: Tensor, residual: Tensor | None, relu: bool
) -> Tensor | None:
    """Return the result as decided by an earlier call, None if this call has to be decided anew."""
    plans = attention.__dict__.get("_plans")
    plan: Plan | None = None if plans is None else plans.behind_norm
    if plan is None or has_global_hooks() or not plan.holds(attention, norm):
        return None
    statistics = partial(_batch_statistics, norm) if plan.config.pre_training else None
    call = plan.call(u, residual, relu, partial(_takes, norm, attention), statistics)
    if call is None:
        return None
    y, stats = call.run(plans.listeners)
    if plan.config.norm_training:
        attention.after_operator(u, stats)
    return y


def _takes(norm: nn.BatchNorm2d, attention: AttentionModule, u: Tensor) -> bool:
    """Return whether one call computes the two for a map like u."""
    batch = uses_batch(norm)
    if u.dtype not in _MAPS or (
        u.numel() <= u.shape[1] and (batch or attention.operator_config().norm_training)
    ):
        return False
    if u.shape[1] != norm.num_features or attention.in_channels not in (None, u.shape[1]):
        return False
    return exact(u.dtype, not u.is_contiguous(), batch, u.device.type)


def unfused_reason(norm: nn.Module, attention: AttentionModule) -> str | None:
    """Return why one call cannot compute the two, whatever the map; None if it can."""
    if type(norm) is not nn.BatchNorm2d:
        return f"{type(norm).__name__} in front is not exactly nn.BatchNorm2d"
    if not is_plain(norm, nn.BatchNorm2d):
        return "the norm in front has hooks"
    if "_is_replica" in vars(norm):
        return "nn.DataParallel's replicas hold no parameters"
    if not isinstance(
        attention, AttentionModule
    ):  # pytorch-grad-cam's AblationCAM puts a layer of its own there
        return "another module was put in the attention's place"
    return attention.unfused_reason()


def _weights(norm: nn.BatchNorm2d, attention: AttentionModule, u: Tensor) -> Weights | str:
    """Return the operator's weights for a map u in front of the norm, or why one call cannot compute the two."""
    why = unfused_reason(norm, attention)
    if why is not None:
        return why
    # Before anything asks for a memory format.
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return "torch.func transforms work on plain operations"
    if u.dim() != 4 or u.dtype not in _MAPS or u.shape[1] != norm.num_features or not u.numel():
        return "a map that the norm does not take, or whose dtype or size has not been compared with it"
    if u.numel() <= u.shape[1] and uses_batch(norm):
        return "a norm cannot take the statistics of a single value"
    if attention.in_channels not in (None, u.shape[1]):
        return "a map that the attention does not take"
    if not u.is_contiguous() and not u.is_contiguous(memory_format=torch.channels_last):
        return "a map that is not dense"
    for tensor in (*norm._parameters.values(), norm._buffers["running_mean"], norm._buffers["running_var"]):
        if tensor is not None and (tensor.dtype is not torch.float32 or tensor.device != u.device):
            return "a norm that is not in float32 on the map's device"
    if type(norm._parameters["weight"]) not in (nn.Parameter, Tensor, type(None)):
        return "a norm whose parameters are not plain tensors"
    return attention.operator_weights(u)


def _traced_statistics(norm: nn.BatchNorm2d, u: Tensor) -> NormBefore:
    """Return the norm in numbers, in operations that a compiler can join with their neighbours."""
    mean, var = norm.running_mean, norm.running_var
    with torch.no_grad():
        if uses_batch(norm):
            var, mean = torch.var_mean(u.detach().float(), (0, 2, 3), correction=0)
            if norm.training:
                move_running(norm, mean, var, u.numel() // u.shape[1])
        assert var is not None
        return NormBefore(norm.weight, norm.bias, mean, var)


def _statistics(norm: nn.BatchNorm2d, u: Tensor) -> NormBefore:
    """Return the norm in numbers with the bits of torch's own; counts and averages as it does."""
    mean, var = norm._buffers["running_mean"], norm._buffers["running_var"]
    if uses_batch(norm):
        with torch.no_grad():
            mean, var = _batch_statistics(norm, u)
    return NormBefore(norm.weight, norm.bias, mean, var)


def _batch_statistics(norm: nn.BatchNorm2d, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a batch as torch's own norm computes them, and count it; without gradients."""
    share, running = counted_share(norm), norm._buffers
    if norm.track_running_stats:
        return torch.batch_norm_update_stats(u, running["running_mean"], running["running_var"], share)
    return torch.batch_norm_update_stats(u, None, None, share)


def exact(dtype: torch.dtype, channels_last: bool, training: bool, device: str = "cpu") -> bool:
    """Return whether the operator's norm equals torch's bit for bit, found by trying it on small random maps.

    The last bit depends on whether a product and a sum are rounded together, which differs between builds of torch.

    Args:
        dtype, channels_last, device: of the map; the device's type.
        training: whether the norm uses the statistics of its batch.
    """
    operator = dispatch.operator_on(device)
    if operator is None or operator.unavailable_reason() is not None:
        return False
    return _tried(dtype, channels_last, training, device, operator.name)


@cache
def _tried(dtype: torch.dtype, channels_last: bool, training: bool, device: str, operator: str) -> bool:
    sizes = [(4, 48, 9, 7)] if training else [(4, 48, 9, 7), (2, 48, 1, 1)]
    generator = torch.Generator().manual_seed(0)
    with _disable_current_modes(), torch.no_grad():
        norm: Any = nn.BatchNorm2d(48, device=device, dtype=torch.float32).train(training)
        zeros = torch.zeros(48, device=device, dtype=torch.float32)
        identity = Weights(zeros, None, zeros, None, torch.full((), 2.0, device=device, dtype=torch.float32))
        config = OperatorConfig(pooling=1, pre_training=training, pre_eps=norm.eps)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(48, generator=generator, device="cpu", dtype=torch.float32) + 0.5)
        for size in sizes:
            u = torch.randn(size, generator=generator, device="cpu", dtype=torch.float32) * 3 + 1
            u = u.to(device, dtype)
            if channels_last:
                u = u.contiguous(memory_format=torch.channels_last)
            running = norm.running_mean.clone(), norm.running_var.clone()
            expected = F.batch_norm(u, *running, norm.weight, norm.bias, training, 0.1, norm.eps)
            y, _ = fused.attend(u, identity, config, _statistics(norm, u))
            if not torch.equal(y, expected) or not torch.equal(norm.running_var, running[1]):
                return False
    return True
