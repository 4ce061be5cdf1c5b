"""The compiled CPU operator: find its library, load it at the first use, and remember why it is not there."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BelowAutograd = torch._C._AutoDispatchBelowAutograd

# What the Python code below was written for; a library built from other sources has other arguments.
_ARGUMENTS = {"forward": 24, "backward": 26}
_SETS = {0: "plain", 1: "avx2", 2: "avx512"}
INSTALL = "pip install --no-build-isolation torch-cbam"


def library_file() -> Path:
    """Return where the library is expected: beside the package, or where CBAM_CPP_LIBRARY says."""
    named = os.environ.get("CBAM_CPP_LIBRARY")
    if named:
        return Path(named)
    suffix = ".pyd" if sys.platform == "win32" else ".abi3.so"
    return Path(__file__).resolve().parent.parent / f"_cpp{suffix}"


@cache
def unavailable_reason() -> str | None:
    """Load the library if that has not been tried yet; return None, or the reason why it is not there.

    >>> unavailable_reason() is None or "reinstall" in unavailable_reason()
    True
    """
    file = library_file()
    if not hasattr(torch.ops.cbam, "isa"):
        # Defined by `schema.py`; to define an operator twice crashes torch.
        if hasattr(torch.ops.cbam, "forward"):
            return f"{file.name} was not there when the operator was first used; start Python again"
        if not file.exists():
            return f"the C++ operator is not built (no {file.name}); reinstall with a C++ compiler: {INSTALL}"
        try:
            torch.ops.load_library(str(file))
        except OSError as error:  # made for another torch, or for another machine
            return (
                f"{file.name} does not load with torch {torch.__version__} ({_one_line(error)});"
                f" reinstall with a C++ compiler: {INSTALL}"
            )
    for name, expected in _ARGUMENTS.items():
        packet = getattr(torch.ops.cbam, name, None)
        if packet is None or len(packet.default._schema.arguments) != expected:
            return f"{file.name} was built from other sources; reinstall with a C++ compiler: {INSTALL}"
    from cbam.ops import registration  # needs the operator's schema, which came with the library

    registration.register()
    return None


def available() -> bool:
    """Return whether the C++ operator can be called; loads its library at the first call."""
    return unavailable_reason() is None


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Call `cbam::forward` below autograd."""
    with _BelowAutograd():
        return torch.ops.cbam.forward.default(*arguments)


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Call `cbam::backward` below autograd."""
    with _BelowAutograd():
        return torch.ops.cbam.backward.default(*arguments)


# torch.compile runs it once and keeps the answer: it cannot trace the loading of a library. The mark is what
# torch.compiler.assume_constant_result sets, which would import the compiler together with this package.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def instruction_set() -> str | None:
    """Return which of the operator's kernels this CPU gets ("plain", "avx2", "avx512"), None without a library."""
    return _SETS.get(torch.ops.cbam.isa()) if available() else None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "..."
