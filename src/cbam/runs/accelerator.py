"""A GPU's name, size, versions and present state."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from contextlib import suppress
from typing import Any

import torch

# What nvidia-smi is asked for; one field at a time, since it refuses them all if it does not know one.
STATE = (
    "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.draw", "power.limit",
    "temperature.gpu", "pstate",
)  # fmt: skip


def describe_gpu() -> dict[str, Any]:
    """Describe the first GPU; without one, return only the versions.

    >>> "cuda" in describe_gpu()
    True
    """
    found: dict[str, Any] = {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": None,
    }
    with suppress(importlib.metadata.PackageNotFoundError):
        found["triton"] = importlib.metadata.version("triton")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_convolution": torch.backends.cudnn.allow_tf32,
            "state": gpu_state(),
        }
    return found


def gpu_state() -> dict[str, str]:
    """Return clocks, power and temperature as nvidia-smi gives them; empty where it is missing."""
    found: dict[str, str] = {}
    for field in STATE if shutil.which("nvidia-smi") else ():
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
