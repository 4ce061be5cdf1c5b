"""Machine and software of a run, to judge or repeat it."""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch-cbam",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "numpy",
    "scipy",
    "pillow",
    "torchcam",
)


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601.

    >>> len(now())
    25
    """
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")


def describe_environment(command: list[str], accelerator: str, processes: int = 1) -> dict[str, Any]:
    """Return the content of `env.json`.

    Args:
        command: What was typed.
        accelerator: The device that computes, e.g. "cpu" or "cuda".
        processes: How many work together.

    >>> describe_environment(["cbam", "compare"], "cpu")["machine"]["accelerator"] is None
    True
    """
    return {
        "command": command,
        "started": now(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "machine": {
            "cpu": _cpu(),
            "cores": _cores(),
            "threads": torch.get_num_threads(),
            "accelerator": _accelerator(accelerator),
            "processes": processes,
        },
        "git": _git(),
    }


def with_session(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `env.json` for a resumed run: the first session unchanged, then the later ones.

    A later session holds what differs from the first: numbers made on two machines must not look like those of one.

    Args:
        before: What `env.json` holds; None in a new run.
        now: Of `describe_environment`.

    >>> with_session({"started": "a", "python": "3.11", "git": "1"}, {"started": "b", "python": "3.12", "git": "1"})
    {'started': 'a', 'python': '3.11', 'git': '1', 'continued': [{'started': 'b', 'python': '3.12'}]}
    """
    if not before:
        return now
    session = {key: value for key, value in now.items() if before.get(key) != value}
    return {**before, "continued": [*before.get("continued", []), session]}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cores() -> int:
    # What this process may use: a container or a batch system grants fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _accelerator(kind: str) -> str | None:
    if kind == "cpu":
        return None
    return torch.cuda.get_device_name() if kind == "cuda" else kind


def _git() -> str | None:
    """Return the commit of this code when it runs from its repository; a plus means that files were changed since."""
    source = Path(__file__).resolve().parent
    try:
        run = ["git", "-C", str(source)]
        top = subprocess.run(
            [*run, "rev-parse", "--show-toplevel"], capture_output=True, text=True, timeout=5, check=True
        )
        # Installed into a virtual environment inside another repository: not our commit.
        if not (Path(top.stdout.strip()) / "src" / "cbam").is_dir():
            return None
        commit = subprocess.run(
            [*run, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
        changed = subprocess.run(
            [*run, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def code_hash() -> str:
    """Return a hash of this package's source, which needs no git repository."""
    digest, source = hashlib.sha256(), Path(__file__).resolve().parents[1]
    for file in sorted(source.rglob("*.py")):
        digest.update(str(file.relative_to(source)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
