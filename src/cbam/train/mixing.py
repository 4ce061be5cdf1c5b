"""Mixup and CutMix with randomness that depends only on the step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from cbam.train.seeding import forked_rng


class Mixing:
    """Blends images of a batch, and their labels with them: mixup, CutMix, or one of the two at random.

    Args:
        classes: Number of classes.
        mixup: Parameter of mixup's Beta distribution (Zhang et al., arXiv 1710.09412); 0 is off.
        cutmix: Parameter of CutMix's (Yun et al., arXiv 1905.04899); 0 is off.

    >>> images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    >>> mixed, shares = Mixing(3, mixup=0.2, cutmix=1.0)(images, labels, seed=5)
    >>> mixed.shape, shares.sum(1).tolist()
    (torch.Size([4, 3, 8, 8]), [1.0, 1.0, 1.0, 1.0])
    """

    def __init__(self, classes: int, *, mixup: float = 0.0, cutmix: float = 0.0):
        ways: list[nn.Module] = []
        if mixup:
            ways.append(v2.MixUp(alpha=mixup, num_classes=classes))
        if cutmix:
            ways.append(v2.CutMix(alpha=cutmix, num_classes=classes))
        self.ways = ways

    def __call__(self, images: Tensor, labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """Return the blended images (N, C, H, W) and the classes' shares (N, classes), or the arguments if off.

        Args:
            images: (N, C, H, W).
            labels: (N,) int64.
            seed: Of this step.
        """
        if not self.ways:
            return images, labels
        with forked_rng(seed):
            way = self.ways[int(torch.randint(len(self.ways), ()))]
            return way(images, labels)
