"""ECA: a channel gate whose weights are one short convolution along the channels."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam.errors import CBAMError
from cbam.nn.base import Gate, positive_int
from cbam.nn.keywords import checked_keywords
from cbam.nn.registry import register_attention
from cbam.ops import reference

CITATION = """@inproceedings{wang2020eca,
  title = {ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks},
  author = {Wang, Qilong and Wu, Banggu and Zhu, Pengfei and Li, Peihua and Zuo, Wangmeng and Hu, Qinghua},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)}, year = {2020}}"""


@register_attention("eca", label="ECA", title="Efficient channel attention", citation=CITATION)
@checked_keywords()
class ECA(Gate):
    """Scale each channel by the sigmoid of a convolution over the averages of its k nearest channels, arXiv 1910.03151.

    k = |log2(C)/gamma + b/gamma|_odd: rounded down, then up to an odd number, as in the authors' code; timm: k >= 3.

    Args:
        in_channels: C.
        kernel_size: k, odd; None: from C, gamma and b.
        gamma, b: as above.
        dims: 1 for maps (N, C, L), 2 for (N, C, H, W), 3 for (N, C, D, H, W).
        device, dtype: of the weights.
    """

    _own_weight = "conv.weight"

    def __init__(
        self, in_channels: int, kernel_size: int | None = None, *, gamma: float = 2.0, b: float = 1.0,
        dims: int = 2, device: Any = None, dtype: torch.dtype | None = None,
    ):  # fmt: skip
        super().__init__("sigmoid", gate_scale=1.0, dims=dims)
        self.in_channels = positive_int("in_channels", in_channels)
        k = int(abs((math.log2(in_channels) + b) / gamma)) // 2 * 2 + 1
        k = k if kernel_size is None else positive_int("kernel_size", kernel_size)
        if k % 2 == 0:
            raise CBAMError(f"kernel_size of ECA must be odd, given {k}. Nearest: {k - 1} or {k + 1}.")
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False, device=device, dtype=dtype)

    def logits(self, x: Tensor) -> Tensor:
        """Return the gate before its sigmoid, (N, C, 1, 1) or with `dims` ones, in float32 or float64."""
        return eca_logits(x, self.conv.weight, self.dims)


@torch.fx.wrap
def eca_logits(x: Tensor, weight: Tensor, dims: int = 2) -> Tensor:
    """Return the convolution of the channels' averages with a weight (1, 1, k), as (N, C, 1, 1)."""
    average = reference.channel_descriptors(x, "avg", dims)[0].unsqueeze(-2)
    with reference.full_precision(x):
        z = F.conv1d(average, weight.to(average.dtype), padding=weight.shape[-1] // 2)
    return reference.over_positions(z.squeeze(-2), dims)
