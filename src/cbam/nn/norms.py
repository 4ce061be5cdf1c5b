"""The batch norms whose arithmetic runs in the fused operator, and their running statistics."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cbam.nn.base import is_plain


def uses_batch(norm: nn.BatchNorm2d) -> bool:
    """Return whether a forward pass uses the statistics of its batch, not the running ones."""
    return norm.training or norm._buffers["running_mean"] is None


def counted_share(norm: nn.BatchNorm2d) -> float:
    """Count one batch in training and return the weight of its statistics in the running ones.

    >>> norm = nn.BatchNorm2d(3, momentum=0.2)
    >>> counted_share(norm), norm.num_batches_tracked
    (0.2, tensor(1))
    """
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # a plain average over all batches
            return 1.0 / float(norm.num_batches_tracked)
    return 0.0 if norm.momentum is None else norm.momentum


def move_running(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
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


_KNOWN = (nn.BatchNorm2d, FixedBatchNorm2d, BatchNorm2dOfAny)


def is_known(norm: nn.Module) -> bool:
    """Return whether a norm is one whose arithmetic the operator has, without hooks.

    >>> is_known(FixedBatchNorm2d(1)), is_known(nn.GroupNorm(1, 1))
    (True, False)
    """
    return any(is_plain(norm, kind) for kind in _KNOWN)
