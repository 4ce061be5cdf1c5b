"""Hand the gates that a forward pass computes to whoever records them; see `cbam.attention_maps`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# Gets the map and its gates: (N, C) per channel, (N, 1, H, W) per location (with the sizes that the map has); None for
# what a module does not have.
Listener: TypeAlias = Callable[[Tensor, Tensor | None, Tensor | None], object]


def hand_on(
    listeners: tuple[Listener, ...],
    x: Tensor,
    channel: Tensor | None = None,
    spatial: Tensor | None = None,
    dims: int = 2,
) -> None:
    """Give listeners copies of the gates of a map x, as batches; nothing where x is being traced or transformed.

    Args:
        listeners: of the module.
        x: map (N, C, H, W) or (C, H, W).
        channel: (N, C), or the same with dimensions of size 1 behind.
        spatial: (N, 1, H, W) or (1, H, W).
        dims: how many sizes of x follow its channels.
    """
    if not isinstance(x, Tensor) or torch._C._are_functorch_transforms_active():
        return
    n, (c, *sizes) = 1 if x.dim() == dims + 1 else len(x), x.shape[-dims - 1 :]
    if channel is not None:
        channel = channel.detach().reshape(n, c).clone()
    if spatial is not None:
        spatial = spatial.detach().reshape(n, 1, *sizes).clone()
    for listener in listeners:
        listener(x, channel, spatial)


def of_map(listeners: tuple[Listener, ...], x: Tensor, dims: int) -> tuple[Listener, ...]:
    """Return listeners for the gates of x as an image of one row, which hand on those of x itself.

    Args:
        listeners: of the module.
        x: map with `dims` sizes.
        dims: how many sizes of x follow its channels.
    """
    if not listeners:
        return ()

    def listen(row: Tensor, channel: Tensor | None, spatial: Tensor | None) -> None:
        hand_on(listeners, x, channel, spatial, dims)

    return (listen,)


def gates_in(
    saved: Tensor, shape: Sequence[int], hidden: int, has_kernel: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return both gates out of the numbers that `cbam::forward` keeps for backward, see `Saved` in csrc/problem.h.

    Args:
        saved: all numbers.
        shape: (N, C, H, W) of the map.
        hidden: units of the channel gate's hidden layer, 0 without that gate.
        has_kernel: whether there is a spatial gate.
    """
    n, c, height, width = shape
    position = 3 * n * c + 2 * n * hidden if hidden else 0
    return (
        saved[: n * c] if hidden else None,
        saved[position : position + n * height * width] if has_kernel else None,
    )
