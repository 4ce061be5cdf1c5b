"""The batch norms whose arithmetic runs in the fused operator, and their running statistics."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cbam.nn.base import is_plain

BATCH_NORMS: dict[int, type[_BatchNorm]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def uses_batch(norm: _BatchNorm) -> bool:
    """Return whether a forward pass uses the statistics of its batch, not the running ones."""
    return norm.training or norm._buffers["running_mean"] is None


def counted_share(norm: _BatchNorm) -> float:
    """Count one batch in training and return the weight of its statistics in the running ones.

    >>> norm = nn.BatchNorm2d(3, momentum=0.2)
    >>> counted_share(norm), norm.num_batches_tracked
    (0.2, tensor(1))
    """
    momentum = norm.momentum
    if norm.training and norm.track_running_stats:
        counted = norm._buffers["num_batches_tracked"]  # faster than the attribute
        if counted is not None:
            counted.add_(1)
            if momentum is None:  # a plain average over all batches
                return 1.0 / float(counted)
    return 0.0 if momentum is None else momentum


def move_running(norm: _BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
    """Update the running statistics with those of a batch, as the norm's forward pass does in training.

    Args:
        norm: in training mode.
        mean, var: of the batch, the variance divided by `count`.
        count: values per channel.
    """
    share = counted_share(norm)
    if norm.running_mean is None or norm.running_var is None or not norm.track_running_stats:
        return
    norm.running_mean.mul_(1 - share).add_(mean * share)
    norm.running_var.mul_(1 - share).add_(var * (share * (count / (count - 1))))


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


class BatchNorm2dOfAny(nn.BatchNorm2d):
    """A batch norm that also takes a single value of each channel in training: one image, and a map of one pixel.

    A single value has no variance, and `nn.BatchNorm2d` raises. This one then normalises with its running statistics,
    as in evaluation mode.

    >>> import torch
    >>> BatchNorm2dOfAny(4)(torch.ones(1, 4, 1, 1)).shape
    torch.Size([1, 4, 1, 1])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)


def is_known(norm: nn.Module, dims: int = 2) -> bool:
    """Return whether a norm is one whose arithmetic the operator has, without hooks.

    Args:
        norm: of the spatial gate.
        dims: of its maps.

    >>> is_known(FixedBatchNorm2d(1)), is_known(nn.BatchNorm2d(1), 3), is_known(nn.GroupNorm(1, 1))
    (True, False, False)
    """
    own = (FixedBatchNorm2d, BatchNorm2dOfAny) if dims == 2 else ()
    return any(is_plain(norm, kind) for kind in (BATCH_NORMS[dims], *own))
