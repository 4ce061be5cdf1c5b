"""Counts of correct and wrong predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from cbam.errors import CBAMError


def confusion_matrix(predictions: Tensor, labels: Tensor, n: int) -> Tensor:
    """Count how often each true class was predicted as each class.

    Args:
        predictions: predicted classes, integers (N,) in 0..n-1.
        labels: true classes, integers (N,) in 0..n-1.
        n: number of classes.

    Returns:
        int64 (n, n): row = true class, column = predicted class, on the labels' device.

    Raises:
        CBAMError: if the two differ in shape, are not integers, or hold a class outside 0..n-1.

    >>> import torch
    >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
    tensor([[1, 1],
            [0, 1]])
    """
    if n < 1:
        raise CBAMError(f"confusion_matrix needs at least one class, given n={n}.")
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise CBAMError(
            "confusion_matrix takes predictions and labels of the same shape (N,), given "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}. From logits: logits.argmax(dim=1)."
        )
    for kind, values in (("predictions", predictions), ("labels", labels)):
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise CBAMError(f"confusion_matrix takes integer {kind}, given {values.dtype}.")
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < n:
            raise CBAMError(
                f"{kind} must lie in 0..{n - 1} for n={n} classes, given {int(values.min())}..{int(values.max())}."
            )
    cells = labels.long() * n + predictions.to(labels.device).long()
    return torch.bincount(cells, minlength=n * n).reshape(n, n)
