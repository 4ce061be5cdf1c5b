"""The machine: what is needed, what it is, and the few things that are done in another way on a GPU than on a CPU."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from cbam.bench.memory import peak_bytes
from cbam.bench.rivals import operator_missing
from cbam.errors import CBAMError
from cbam.ops.dispatch import set_backend

OPTIONAL = ("timm", "torchvision")
# Larger than any second-level cache, so that reading it leaves nothing else there.
FLUSH_BYTES = 256 << 20
# What is asked of nvidia-smi; one at a time, since it refuses them all if it does not know one.
STATE = (
    "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.draw", "power.limit",
    "temperature.gpu", "pstate",
)  # fmt: skip


def missing() -> str | None:
    """Return what keeps the measurement from running on a GPU here, in a sentence; None if nothing does."""
    found = f"found torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{found}, built without CUDA"
    if not torch.cuda.is_available():
        return f"{found} for CUDA {torch.version.cuda}, but no GPU that it can use"
    if not importlib.util.find_spec("triton"):
        return f"{found} and a GPU, but not the package triton"
    return None


class Machine:
    """A device, and how things are done on it.

    Args:
        kind: "cuda", or "cpu" for a dry run.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.is_gpu = kind == "cuda"
        self.device = torch.device(kind)
        # A dry run takes whatever this machine has: it shows that the script works, not how fast anything is.
        self.backend = "triton" if self.is_gpu else "cpp" if operator_missing() is None else "eager"
        self.compiler = "inductor" if self.is_gpu else "eager"
        self._room: torch.Tensor | None = None

    def operator_obstacle(self) -> str | None:
        """Return why this library's operator cannot run here; None if it can."""
        import cbam

        try:
            with set_backend(self.backend), torch.inference_mode():
                cbam.CBAM(16).to(self.device)(torch.zeros(1, 16, 4, 4, device=self.device))
        except CBAMError as error:
            return str(error)
        return None

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def flush(self) -> None:
        """Leave nothing of ours in the second-level cache, and nothing that is still to be written to memory."""
        if self._room is None:
            size = FLUSH_BYTES if self.is_gpu else 1 << 16
            self._room = torch.zeros(size // 8, dtype=torch.int64, device=self.device)
        self._room.sum()

    def peak_bytes(self, step: Callable[[], object]) -> int:
        """Return by how much the memory in use grows at most during one step."""
        if not self.is_gpu:
            return peak_bytes(step)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def free_bytes(self) -> int:
        """Return how much memory can still be had; nothing to speak of in a dry run."""
        return torch.cuda.mem_get_info()[0] if self.is_gpu else 0

    def tidy(self, collect: bool = True) -> None:
        """Give back what the last job held.

        Args:
            collect: Look for cycles, too.
        """
        if collect:
            gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()


def describe(machine: Machine) -> dict[str, Any]:
    """Return the header of the results: device and versions, and what is missing."""
    found: dict[str, Any] = {
        "device": "cpu (dry run)",
        "operator": machine.operator_obstacle() or "runs",
        "backend": machine.backend,
        "packages": {name: _version(name) for name in ("torch", "triton", "numpy", *OPTIONAL)},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "convolution": torch.backends.cudnn.allow_tf32,
        },
    }
    if machine.is_gpu:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
        }
    return found | {"state": state(machine)}


def state(machine: Machine) -> dict[str, str]:
    """Return clocks, power and temperature as nvidia-smi gives them; empty where it is missing."""
    if not machine.is_gpu or not shutil.which("nvidia-smi"):
        return {}
    found = {}
    for field in STATE:
        command = ["nvidia-smi", "-i", "0", f"--query-gpu={field}", "--format=csv,noheader"]
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired):
            break
        if answer.returncode == 0:
            found[field] = answer.stdout.strip()
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
