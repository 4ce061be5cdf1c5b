"""Batch norms that keep their statistics: a detector sees too few images a step to take new ones."""

from __future__ import annotations

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from cbam.attach import WithAttention


class FixedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that normalises with its running statistics in training, too, and never changes them.

    Its weight and bias train, unlike those of torchvision's `FrozenBatchNorm2d`: the gates' norms are new where the
    backbone's are not, and with a weight fixed at its initial 0 a gate could not learn.

    >>> norm = FixedBatchNorm2d(1).train()
    >>> norm.training
    False
    """

    def train(self, mode: bool = True) -> FixedBatchNorm2d:
        """Stay in evaluation mode."""
        return super().train(False)


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
    gates = [module.cbam for module in model.modules() if isinstance(module, WithAttention)]
    for gate in gates:
        for parent in list(gate.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.BatchNorm2d:
                    parent.set_submodule(name, _fixed(child))


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    for name in ("weight", "bias", "running_mean", "running_var"):
        frozen.register_buffer(name, getattr(norm, name).detach().clone())
    return frozen


def _fixed(norm: nn.BatchNorm2d) -> FixedBatchNorm2d:
    fixed = FixedBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    fixed._parameters.update(norm._parameters)
    fixed._buffers.update(norm._buffers)
    return fixed.eval()
