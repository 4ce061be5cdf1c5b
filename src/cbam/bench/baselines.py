"""The ways in which CBAM is written today, each with the weights of one of this library's modules."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import cbam
from cbam.bench.device import Device
from cbam.ops.dispatch import set_backend

COPY, COPY_INTO = "copy", "copy into"
COMPILED = " compiled"
TEXTBOOK, CAREFUL = "textbook", "careful"
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
    """The same written with the fastest of PyTorch's reductions: `amax` for every maximum."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated map."""
        mlp, conv = self.channel_attention.mlp, self.spatial_attention.conv
        x = x * torch.sigmoid(mlp(x.mean((2, 3), keepdim=True)) + mlp(x.amax((2, 3), keepdim=True)))
        return x * torch.sigmoid(conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))


def timm_module(weights: Mapping[str, Tensor], channels: int) -> nn.Module:
    """Return timm's `CbamModule` with the weights of a `cbam.CBAM`.

    It has a batch norm in the spatial gate. In eval mode its statistics make it the identity, so the function is the
    same; in training it normalises by the batch, which is more work and another function.
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
class Baseline:
    """One way to write CBAM.

    Args:
        module: To be called with the map.
        backend: Of this library, see `cbam.set_backend`; None for other people's modules.
        same_in_training: Whether it computes the same function in train mode as well.
        compiled: Whether `module` is to be called in its compiled form.
    """

    module: nn.Module
    backend: str | None = None
    same_in_training: bool = True
    compiled: bool = False

    def select(self) -> None:
        """Choose the backend that this baseline runs on."""
        if self.backend is not None:
            set_backend(self.backend)

    def ready(self, device: Device) -> Callable[[Tensor], Tensor]:
        """Return what is called: the module, or torch.compile of it for static shapes."""
        if not self.compiled:
            return self.module
        return torch.compile(self.module, dynamic=False, backend=device.compiler)


def build_baselines(
    device: Device,
    channels: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    compiled: Collection[str] | None = None,
) -> dict[str, Baseline]:
    """Return all baselines with the same random weights, this library's modules at their head.

    Args:
        device: Where they are called.
        channels: C.
        dtype: Of the weights.
        memory_format: Of the weights.
        compiled: Which of "cbam", "textbook", "careful" and "timm" take part under torch.compile too; by default all.

    >>> list(build_baselines(Device("cpu"), 32, torch.float32, torch.contiguous_format, ()))[-3:]
    ['textbook', 'careful', 'timm']
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = _uncompiled(device, channels)
    for baseline in found.values():
        baseline.module.to(device.torch, dtype).to(memory_format=memory_format)
    # Of this library only the module that a user gets is compiled.
    ours = ours_of(found)
    for name in [ours, *(name for name in found if not name.startswith("cbam"))]:
        label = "cbam" if name == ours else name
        if compiled is None or label in compiled:
            base = found[name]
            copied = copy.deepcopy(base.module)
            found[label + COMPILED] = Baseline(copied, base.backend, base.same_in_training, compiled=True)
    return found


def _uncompiled(device: Device, channels: int) -> dict[str, Baseline]:
    ours = cbam.CBAM(channels)
    weights = ours.state_dict()
    found: dict[str, Baseline] = {}
    if device.operator_missing() is None:
        found[OPERATOR] = Baseline(ours, device.backend)
    found[EAGER] = Baseline(copy.deepcopy(ours), "eager")
    for name, module in ((TEXTBOOK, Textbook(channels)), (CAREFUL, Careful(channels))):
        module.load_state_dict(weights)
        found[name] = Baseline(module)
    if importlib.util.find_spec("timm"):
        found["timm"] = Baseline(timm_module(weights, channels), same_in_training=False)
    return found


def ours_of(names: Iterable[str]) -> str:
    """Return the name of this library's best uncompiled row among `names`.

    >>> ours_of(["cbam eager", "textbook"])
    'cbam eager'
    """
    return OPERATOR if OPERATOR in names else EAGER


def is_compiled_peer(name: str) -> bool:
    """Return whether `name` is another module than this library's, under torch.compile.

    >>> is_compiled_peer("careful compiled"), is_compiled_peer("cbam compiled"), is_compiled_peer("careful")
    (True, False, False)
    """
    return name.endswith(COMPILED) and not name.startswith("cbam")
