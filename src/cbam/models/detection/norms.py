"""Batch norms that keep their statistics: a detector sees too few images a step to take new ones."""

from __future__ import annotations

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from cbam.attach import WithAttention
from cbam.nn.norms import BatchNorm2dOfAny, FixedBatchNorm2d


def accept_single_values(gate: nn.Module) -> None:
    """Replace the batch norms in a site's attention by `BatchNorm2dOfAny`, in place."""
    if isinstance(gate, WithAttention):
        _replace(gate.cbam, BatchNorm2dOfAny)


def freeze_norms(model: nn.Module) -> None:
    """Replace the batch norms by `FrozenBatchNorm2d`, in place, and those of attached gates by `FixedBatchNorm2d`.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> freeze_norms(net)
    >>> net[1]
    FrozenBatchNorm2d(8, eps=1e-05)
    """
    freeze_gate_norms(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and not isinstance(child, FixedBatchNorm2d):
                parent.set_submodule(name, _frozen(child))


def freeze_gate_norms(model: nn.Module) -> None:
    """Replace the batch norms of attached gates by `FixedBatchNorm2d`, in place."""
    for module in list(model.modules()):
        if isinstance(module, WithAttention):
            _replace(module.cbam, FixedBatchNorm2d)


def _replace(module: nn.Module, kind: type[nn.BatchNorm2d]) -> None:
    """Replace the batch norms inside a module by those of another class, with the same weights and statistics."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                new = kind(child.num_features, child.eps, child.momentum)
                new._parameters.update(child._parameters)
                new._buffers.update(child._buffers)
                parent.set_submodule(name, new.train(child.training))


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    for name in ("weight", "bias", "running_mean", "running_var"):
        frozen.register_buffer(name, getattr(norm, name).detach().clone())
    return frozen
