"""The running statistics of a batch norm whose arithmetic runs in the fused operator."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
