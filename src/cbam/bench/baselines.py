"""Other implementations of CBAM, each with the weights of one of this library's modules."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cbam.bench.device import Device
from cbam.evaluate import references
from cbam.nn import CBAM
from cbam.ops.dispatch import set_backend

COPY, COPY_INTO = "copy", "copy into"
COMPILED = " compiled"
TEXTBOOK, CAREFUL = "textbook", "careful"
OPERATOR, EAGER = "cbam operator", "cbam eager"


@dataclass(frozen=True)
class Baseline:
    """One implementation of CBAM.

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
    """Return all baselines with the same random weights, this library's modules first.

    `compiled` says which of "cbam", "textbook", "careful" and "timm" are also run under torch.compile; by default all.

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
    ours = CBAM(channels)
    weights = ours.state_dict()
    found: dict[str, Baseline] = {}
    if device.operator_missing() is None:
        found[OPERATOR] = Baseline(ours, device.backend)
    found[EAGER] = Baseline(copy.deepcopy(ours), "eager")
    for name, module in ((TEXTBOOK, references.Textbook(channels)), (CAREFUL, references.Careful(channels))):
        module.load_state_dict(weights)
        found[name] = Baseline(module)
    if importlib.util.find_spec("timm"):
        found["timm"] = Baseline(references.timm_module(weights, channels), same_in_training=False)
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
