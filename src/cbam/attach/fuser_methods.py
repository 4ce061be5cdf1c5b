"""What `torch.ao.quantization.fuse_modules` does with a convolution and a batch norm that carries attention.

Its table of fuser methods goes by types, and `WithAttention` is in none of its entries. With ours the attention moves
behind the fused convolution.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from cbam.attach.wrapper import WithAttention
from cbam.errors import CBAMError

try:  # deprecated in torch, and private
    from torch.ao.quantization.fuser_method_mappings import _DEFAULT_OP_LIST_TO_FUSER_METHOD as _METHODS
    from torch.ao.quantization.fuser_method_mappings import fuse_conv_bn
except ImportError:
    _METHODS = {}


def register() -> None:
    """Add our entries to torch's table."""
    _METHODS[(nn.Conv2d, WithAttention)] = _fuse
    _METHODS[(nn.Conv2d, WithAttention, nn.ReLU)] = _refuse


def _fuse(is_qat: bool, conv: nn.Conv2d, norm: WithAttention) -> WithAttention:
    if norm.position != "output" or not isinstance(norm.host, nn.BatchNorm2d):
        raise CBAMError(
            f"fuse_modules joins a convolution with the batch norm behind it, got attention at a"
            f" {type(norm.host).__name__}. Leave it out of the list."
        )
    return WithAttention(fuse_conv_bn(is_qat, conv, norm.host), norm.cbam)


def _refuse(is_qat: bool, *modules: Any) -> None:
    raise CBAMError(
        "fuse_modules cannot join a convolution, a batch norm and a ReLU where attention is between the last two."
        " Give it the convolution and the batch norm only: ['conv', 'bn']."
    )
