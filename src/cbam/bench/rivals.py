"""The ways in which people have CBAM today, each with the weights of one of this library's modules."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import cbam
from cbam.errors import CBAMError
from cbam.ops.dispatch import set_backend

COPY, COPY_INTO = "copy", "copy into"
COMPILED = " compiled"
OPERATOR, EAGER = "cbam operator", "cbam eager"


class TextbookChannel(nn.Module):
    """The channel gate as in most repositories that have one: adaptive pooling modules and 1x1 convolutions."""

    def __init__(self, channels: int, ratio: int = 16):
        super().__init__()
        hidden = max(1, channels // ratio)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = nn.AdaptiveMaxPool2d(1)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate, (N, C, 1, 1)."""
        avg_out = self.mlp(self.avg_pool(x))
        max_out = self.mlp(self.max_pool(x))
        return self.sigmoid(avg_out + max_out)


class TextbookSpatial(nn.Module):
    """The spatial gate as in most repositories that have one: mean and max along the channels, concatenated."""

    def __init__(self, kernel_size: int = 7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate, (N, 1, H, W)."""
        avg_out = torch.mean(x, dim=1, keepdim=True)
        max_out = torch.max(x, dim=1, keepdim=True)[0]
        return self.sigmoid(self.conv(torch.cat([avg_out, max_out], dim=1)))


class Textbook(nn.Module):
    """CBAM as commonly written. Its keys are the widespread ones, which are `cbam.CBAM`'s as well."""

    def __init__(self, channels: int):
        super().__init__()
        self.channel_attention = TextbookChannel(channels)
        self.spatial_attention = TextbookSpatial()

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        x = self.channel_attention(x) * x
        return self.spatial_attention(x) * x


class Careful(Textbook):
    """The same as somebody writes it who knows which of PyTorch's reductions are fast: `amax` for every maximum."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        mlp, conv = self.channel_attention.mlp, self.spatial_attention.conv
        x = x * torch.sigmoid(mlp(x.mean((2, 3), keepdim=True)) + mlp(x.amax((2, 3), keepdim=True)))
        return x * torch.sigmoid(conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))


def timm_module(weights: Mapping[str, Tensor], channels: int) -> nn.Module:
    """Return timm's `CbamModule` with the weights of a `cbam.CBAM`.

    It has a batch norm in the spatial gate. In eval mode that is set to do nothing, so the function is the same;
    in training it normalises by the batch as it always does, which is more work, and another function.
    """
    from timm.layers.cbam import CbamModule

    module = CbamModule(channels, rd_ratio=1 / 16)
    names = {
        "channel.fc1.weight": "channel_attention.mlp.0.weight",
        "channel.fc2.weight": "channel_attention.mlp.2.weight",
        "spatial.conv.conv.weight": "spatial_attention.conv.weight",
    }
    module.load_state_dict({theirs: weights[ours] for theirs, ours in names.items()}, strict=False)
    norm = module.get_submodule("spatial.conv.bn")
    norm.get_buffer("running_var").fill_(1 - norm.eps)  # type: ignore[operator]
    return module


@dataclass(frozen=True)
class Rival:
    """One way to have CBAM.

    Args:
        module: To be called with the map.
        backend: Of this library, see `cbam.set_backend`; None for modules of others.
        same_in_training: Whether it computes the same function in train mode as well.
        compiled: Whether `module` stands for its compiled form.
    """

    module: nn.Module
    backend: str | None = None
    same_in_training: bool = True
    compiled: bool = False

    def select(self) -> None:
        """Choose the backend that this rival runs on."""
        if self.backend is not None:
            set_backend(self.backend)

    def ready(self) -> Callable[[Tensor], Tensor]:
        """Return what is called: the module, or torch.compile of it for static shapes."""
        return torch.compile(self.module, dynamic=False) if self.compiled else self.module


def build_rivals(
    channels: int, dtype: torch.dtype, memory_format: torch.memory_format, compiled: bool = True
) -> dict[str, Rival]:
    """Return all rivals, with the same random weights.

    Args:
        channels: C.
        dtype: Of the weights.
        memory_format: Of the weights.
        compiled: Include the compiled ones.

    >>> list(build_rivals(32, torch.float32, torch.contiguous_format, compiled=False))[-3:]
    ['textbook', 'careful', 'timm']
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rivals = _uncompiled(channels)
    for rival in rivals.values():
        rival.module.to(dtype).to(memory_format=memory_format)
    if compiled:
        # Of this library in its compiled form only the one that a user gets.
        for name in [ours_of(rivals), *(name for name in rivals if not name.startswith("cbam"))]:
            rival = rivals[name]
            label = "cbam" + COMPILED if name.startswith("cbam") else name + COMPILED
            rivals[label] = Rival(
                copy.deepcopy(rival.module), rival.backend, rival.same_in_training, compiled=True
            )
    return rivals


def _uncompiled(channels: int) -> dict[str, Rival]:
    ours = cbam.CBAM(channels)
    weights = ours.state_dict()
    rivals: dict[str, Rival] = {}
    if operator_missing() is None:
        rivals[OPERATOR] = Rival(ours, "cpp")
    rivals[EAGER] = Rival(copy.deepcopy(ours), "eager")
    for name, module in (("textbook", Textbook(channels)), ("careful", Careful(channels))):
        module.load_state_dict(weights)
        rivals[name] = Rival(module)
    if importlib.util.find_spec("timm"):
        rivals["timm"] = Rival(timm_module(weights, channels), same_in_training=False)
    return rivals


def ours_of(names: Any) -> str:
    """Return the name under which this library's best eager call is among `names`.

    >>> ours_of(["cbam eager", "textbook"])
    'cbam eager'
    """
    return OPERATOR if OPERATOR in names else EAGER


def is_compiled_peer(name: str) -> bool:
    """Tell whether `name` is somebody else's module under torch.compile.

    >>> is_compiled_peer("careful compiled"), is_compiled_peer("cbam compiled"), is_compiled_peer("careful")
    (True, False, False)
    """
    return name.endswith(COMPILED) and not name.startswith("cbam")


def operator_missing() -> str | None:
    """Return why the fused operator cannot run here, in a sentence; None if it can."""
    try:
        with set_backend("cpp"):
            cbam.CBAM(16)(torch.zeros(1, 16, 4, 4))
    except CBAMError as error:
        return str(error)
    return None
