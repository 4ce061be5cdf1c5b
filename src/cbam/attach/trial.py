"""Build the attention of a site once and look at what it does to a map there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cbam.attach.config import SiteConfig
from cbam.errors import CBAMError
from cbam.nn import ChannelAttention


class Trial(NamedTuple):
    """What a built module is like.

    Args:
        parameters: how many it has.
        is_identity: whether it returns its input bit for bit, in eval mode and with its first weights.
        hidden: units of its channel gate's hidden layer, 0 without such a gate.
    """

    parameters: int
    is_identity: bool
    hidden: int = 0


def try_attention(config: SiteConfig, shape: tuple[int, ...], like: Tensor) -> Trial:
    """Return what the attention for a site is like; nothing stays of it, the state of the random numbers included.

    What the operator computes keeps every map; other modules run on a random one.

    Args:
        config: of the site.
        shape: (C, H, W) of the map there, or with other dimensions.
        like: a tensor with the dtype and the device of the map.

    Raises:
        CBAMError: the module cannot be built, fails, or returns a map of another shape or dtype.

    >>> from cbam.nn.registry import attention_kind
    >>> try_attention(SiteConfig(attention_kind("eca"), "identity"), (64, 7, 7), torch.zeros(1))
    Trial(parameters=3, is_identity=True, hidden=0)
    """
    channels, dims = shape[0], len(shape) - 1
    if config.kind.has_operator:
        block = config.build(channels, dims, device="meta")
        hidden = [m.layers[0].out_channels for m in block.modules() if isinstance(m, ChannelAttention)]
        return Trial(
            sum(p.numel() for p in block.parameters()), config.init == "identity", min(hidden, default=0)
        )
    device = torch.device("cpu") if like.is_meta else like.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        block = config.build(channels, dims, device=device, dtype=like.dtype).eval()
        x = torch.randn(2, *shape, device=device, dtype=like.dtype)
        size = "x".join(map(str, shape))
        name = config.kind.name
        try:
            y = block(x.clone())
        except Exception as error:  # of whoever wrote the module
            raise CBAMError(
                f"attention {name!r} fails on a map of {size} ({type(error).__name__}: {error})."
                " Choose other sites, or other options of it."
            ) from error
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            given = f"{tuple(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise CBAMError(
                f"attention {name!r} does not keep the map: for {tuple(x.shape)}, {x.dtype} it returns {given}."
                " Return the gated map, x times the gate, in the shape and dtype of x."
            )
        return Trial(sum(p.numel() for p in block.parameters()), _is_same(x, y))


def _is_same(x: Tensor, y: Tensor) -> bool:
    # What follows rounds by the layout of its input, so another one changes the model's output as well.
    return torch.equal(x, y) and x.stride() == y.stride()
