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
except ImportError:
    _METHODS = {}

# What a site may be the last of; in the place of the others nothing can be joined.
_FRONTS = ((nn.Conv2d,), (nn.BatchNorm2d,), (nn.Conv2d, nn.BatchNorm2d))
_BETWEEN = (
    (nn.Conv2d, WithAttention, nn.ReLU),
    (WithAttention, nn.BatchNorm2d),
    (WithAttention, nn.ReLU),
    (WithAttention, nn.BatchNorm2d, nn.ReLU),
)


def register() -> None:
    """Add our entries to torch's table."""
    for front in _FRONTS:
        kinds: Any = (*front, WithAttention)
        _METHODS[kinds] = _fuse
    for kinds in _BETWEEN:
        _METHODS[kinds] = _refuse


def _fuse(is_qat: bool, *modules: Any) -> WithAttention:
    *front, last = modules
    method = _METHODS.get((*map(type, front), type(last.host)))
    if last.position != "output" or method is None:
        kinds = ", ".join(type(module).__name__ for module in (*front, last.host))
        raise CBAMError(f"fuse_modules cannot join {kinds} with attention behind. Leave it out of the list.")
    return WithAttention(method(is_qat, *front, last.host), last.cbam)


def _refuse(is_qat: bool, *modules: Any) -> None:
    kinds = " and ".join(
        "attention" if isinstance(module, WithAttention) else type(module).__name__ for module in modules
    )
    raise CBAMError(
        f"fuse_modules cannot join modules where attention is between them: {kinds}."
        " Give it the modules in front of the attention only, such as ['conv', 'bn']."
    )
