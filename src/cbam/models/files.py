"""Weights from a file into a model that may have another classifier or other input channels."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cbam.checkpoints.reading import look_at
from cbam.checkpoints.unpacking import unpack
from cbam.errors import CBAMError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What came out of a weights file; `print` it."""

    path: Path
    """The file."""
    loaded: int
    """Tensors taken from it."""
    renewed: tuple[str, ...]
    """Classifier tensors that keep their fresh values, because the file has another number of classes."""
    adapted: str | None
    """The first convolution, if its weights were adapted to other input channels."""

    def __str__(self) -> str:
        text = f"{self.path}: {self.loaded} tensors loaded"
        if self.renewed:
            text += f"; the classifier starts anew ({', '.join(self.renewed)})"
        if self.adapted:
            text += f"; {self.adapted} adapted to other input channels"
        return text


def load_file(model: nn.Module, path: str | Path) -> LoadReport:
    """Load a state dict from disk, all or nothing, and log what was loaded.

    Every tensor of the model must be in the file and the other way round. Two exceptions: a classifier of
    another width is left at its fresh values, and the first convolution is adapted to other input channels.
    `.pth` files are read with `weights_only=True`; a dict that holds the weights as `state_dict`, `model` or
    `model_state_dict` is unpacked, and a `module.` or `_orig_mod.` in front of every key is dropped.

    Args:
        model: changed in place.
        path: a .safetensors, .pth, .pt or .bin file.

    Raises:
        CBAMError: if the file is missing, unreadable, or does not fit; the model is then unchanged.
    """
    path = Path(path)
    found = _read(path)
    own = model.state_dict()
    first = first_convolution(model)
    adapted = None
    if first is not None:
        key, conv = f"{first[0]}.weight", first[1]
        if key in found and found[key].ndim == 4 and _differs_in(1, found[key], conv.weight):
            found[key] = adapt_channels(found[key], conv.in_channels)
            adapted = first[0]
    classifier = _classifier(model)
    renewed = {
        key
        for key in own
        if key.rpartition(".")[0] == classifier and key in found and _differs_in(0, found[key], own[key])
    }
    taken = {key: value for key, value in found.items() if key not in renewed}
    _refuse_misfits(path, model, taken, renewed)
    model.load_state_dict(taken, strict=False)
    report = LoadReport(path, len(taken), tuple(sorted(renewed)), adapted)
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
        keep: adapt the weights (see `adapt_channels`); else draw them with the spread of the old ones.

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


def _classifier(model: nn.Module) -> str:
    heads = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return heads[-1] if heads else ""


def _differs_in(axis: int, a: Tensor, b: Tensor) -> bool:
    same_rank = a.ndim == b.ndim
    return same_rank and [i for i in range(a.ndim) if a.shape[i] != b.shape[i]] == [axis]


def _read(path: Path) -> dict[str, Tensor]:
    return unpack(look_at(path)).tensors()


def _refuse_misfits(path: Path, model: nn.Module, taken: dict[str, Tensor], renewed: set[str]) -> None:
    own = model.state_dict()
    shapes = [
        f"{key} is {tuple(taken[key].shape)}, needs {tuple(own[key].shape)}"
        for key in own
        if key in taken and taken[key].shape != own[key].shape
    ]
    missing: list[str] = []
    unexpected: list[str] = []
    if not shapes:
        # Tried on a copy, as modules may have a say in which of their keys are optional.
        verdict = copy.deepcopy(model).load_state_dict(taken, strict=False)
        # Older files lack the counters; a fresh one does no harm, as only norms without a momentum read it.
        optional = renewed | {key for key in own if key.endswith("num_batches_tracked")}
        missing = [key for key in verdict.missing_keys if key not in optional]
        unexpected = verdict.unexpected_keys
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        hint = "Is it the architecture that they were trained for?"
        if any(".cbam." in key for key in unexpected):
            hint = "They hold attention: attach the same attention to the model first, then load."
        raise CBAMError(f"the weights in {str(path)!r} do not fit this model: {'; '.join(problems)}. {hint}")
