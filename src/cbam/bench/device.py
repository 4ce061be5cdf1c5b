"""The device of a run, and what is done differently on a GPU and on a CPU."""

from __future__ import annotations

import gc
import importlib.util
from functools import cache

import torch

from cbam.errors import CBAMError
from cbam.evaluate.timing import Clock, EventClock
from cbam.nn import CBAM
from cbam.ops.dispatch import set_backend

DEVICES = ("cpu", "cuda", "dry-run")
FLUSH_BYTES = 256 << 20
"""Larger than any second-level cache, so that reading it leaves nothing else there."""


class Device:
    """A device, and how things are done on it.

    Args:
        kind: "cpu", "cuda", or "dry-run": the steps of a GPU run, on the CPU, as a test.
    """

    def __init__(self, kind: str):
        self.kind, self.is_gpu, self.like_gpu = kind, kind == "cuda", kind != "cpu"
        self.torch = torch.device("cuda" if self.is_gpu else "cpu")
        self.backend = "triton" if self.is_gpu else "cpp"
        self.compiler = "eager" if kind == "dry-run" else "inductor"
        self._room: torch.Tensor | None = None

    def unavailable_reason(self) -> str | None:
        """Return why nothing can be measured on the device here, in a sentence; None if it can."""
        found = f"found torch {torch.__version__}"
        if not self.is_gpu:
            return None
        if torch.version.cuda is None:
            return f"{found}, built without CUDA"
        if not torch.cuda.is_available():
            return f"{found} for CUDA {torch.version.cuda}, but no GPU that it can use"
        if not importlib.util.find_spec("triton"):
            return f"{found} and a GPU, but not the package triton"
        return None

    def operator_missing(self) -> str | None:
        """Return why the fused operator cannot run here, in a sentence; None if it can."""
        try:
            with set_backend(self.backend), torch.inference_mode():
                CBAM(16).to(self.torch)(torch.zeros(1, 16, 4, 4, device=self.torch))
        except CBAMError as error:
            return str(error)
        return None

    def clock(self) -> Clock:
        """Return what calls are timed with."""
        return EventClock() if self.is_gpu else Clock()

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def flush(self) -> None:
        """Evict our data from a GPU's second-level cache, so that pending writes reach memory too."""
        if self._room is None:
            size = FLUSH_BYTES if self.is_gpu else 1 << 16
            self._room = torch.zeros(size // 8, dtype=torch.int64, device=self.torch)
        self._room.sum()

    def tidy(self) -> None:
        """Free what the last measurement held on a GPU."""
        if self.is_gpu:
            gc.collect()
            torch.cuda.empty_cache()


@cache
def device_of(kind: str) -> Device:
    """Return the device of this process, the same one each time."""
    return Device(kind)
