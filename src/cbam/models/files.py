"""Weights from a file into a backbone that may have another classifier or other input channels."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cbam.checkpoints.loading import load_unpacked
from cbam.checkpoints.reading import look_at
from cbam.checkpoints.report import WeightsReport
from cbam.checkpoints.unpacking import unpack
from cbam.errors import CBAMError
from cbam.models.classifier import last_layer

_log = logging.getLogger(__name__)


def load_backbone(model: nn.Module, path: str | Path) -> WeightsReport:
    """Load a file like `cbam.load_weights`, but into a model for other images or classes, and log what was loaded.

    A classifier of another width keeps its initial values, and the first convolution is adapted to other input
    channels; everything else must fit.

    Args:
        model: changed in place.
        path: a .safetensors, .pth, .pt or .bin file.

    Raises:
        CBAMError: as `cbam.load_weights`; the model is then unchanged.
    """
    own = model.state_dict()
    packed = unpack(look_at(path), wanted=own)
    state, notes = packed.tensors(), list[str]()
    first = first_convolution(model)
    if first is not None:
        key, conv = f"{first[0]}.weight", first[1]
        if key in state and state[key].ndim == 4 and _differs_in(1, state[key], conv.weight):
            state[key] = adapt_channels(state[key], conv.in_channels)
            notes.append(f"{first[0]} adapted to other input channels")
    last = last_layer(model)
    fresh = {
        key: own[key]
        for key in own
        if last
        and key.rpartition(".")[0] == last[0]
        and key in state
        and _differs_in(0, state[key], own[key])
    }
    if fresh:
        notes.append(f"the classifier is newly initialised ({', '.join(fresh)})")
    report = load_unpacked(model, packed.holding({**state, **fresh}))
    report = replace(
        report, loaded=tuple(n for n in report.loaded if n not in fresh), notes=(*report.notes, *notes)
    )
    _log.info("%s", report)
    return report


def first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return name and module of the first 2-d convolution, the one that sees the image.

    >>> first_convolution(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)))[0]
    '0'
    """
    named = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return next(named, None)


def widen_input(model: nn.Module, in_channels: int, *, keep: bool) -> None:
    """Replace the first convolution by one for `in_channels` channels, in place.

    Args:
        model: with a convolution that sees the image.
        in_channels: new number of image channels.
        keep: adapt the weights (see `adapt_channels`); else draw them with the standard deviation of the old ones.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> widen_input(net, 1, keep=True)
    >>> net
    Sequential(
      (0): Conv2d(1, 8, kernel_size=(3, 3), stride=(1, 1))
    )
    """
    found = first_convolution(model)
    if found is None or found[1].groups != 1:
        raise CBAMError(
            f"{type(model).__name__} has no plain first convolution to adapt to {in_channels} channels."
        )
    conv = found[1]
    with torch.no_grad():
        if keep:
            weight = adapt_channels(conv.weight, in_channels)
        else:
            shape = (conv.out_channels, in_channels, *conv.kernel_size)
            weight = torch.empty(shape, dtype=conv.weight.dtype, device=conv.weight.device)
            if not weight.is_meta:
                weight.normal_(std=float(conv.weight.std()))
    conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    conv.in_channels = in_channels
    if getattr(model, "transform_input", False):
        # GoogLeNet and Inception re-normalise channels 0 to 2, which grey images do not have.
        model.transform_input = False  # type: ignore[assignment]


def adapt_channels(weight: Tensor, in_channels: int) -> Tensor:
    """Adapt a convolution's (out, in, k, k) weights to other input channels.

    One channel: the sum over the old ones, so that a grey image gives what it gave as RGB. More: the old ones
    repeated and scaled by old / new, so that sums keep their size.

    >>> adapt_channels(torch.ones(8, 3, 7, 7), 1)[0, 0, 0, 0]
    tensor(3.)
    """
    old = weight.shape[1]
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, -(-in_channels // old), 1, 1)[:, :in_channels]
    return repeated * (old / in_channels)


def _differs_in(axis: int, a: Tensor, b: Tensor) -> bool:
    same_rank = a.ndim == b.ndim
    return same_rank and [i for i in range(a.ndim) if a.shape[i] != b.shape[i]] == [axis]
