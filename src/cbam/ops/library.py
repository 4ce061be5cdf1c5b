"""`torch.ops.cbam`: load the compiled library, or define the operator without it.

Nothing is loaded before the first use. The compiled library brings the schemas along, so it has to come first: torch
crashes where an operator is defined twice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cbam.ops.signature import SCHEMAS

INSTALL = "with a C++ compiler, in the checkout, type 'pip install --no-build-isolation --no-deps .'"


def library_file() -> Path:
    """Return where the compiled library is expected: beside the package, or where CBAM_CPP_LIBRARY says."""
    named = os.environ.get("CBAM_CPP_LIBRARY")
    if named:
        return Path(named)
    suffix = ".pyd" if sys.platform == "win32" else ".abi3.so"
    return Path(__file__).resolve().parent.parent / f"_cpp{suffix}"


@cache
def load() -> str | None:
    """Load the compiled library if that has not been tried yet; return None, or the reason why it is not there.

    >>> load() is None or "pip install" in load()
    True
    """
    file = library_file()
    if not hasattr(torch.ops.cbam, "isa"):
        if is_defined():
            return f"{file.name} was not there when the operator was first used; start Python again"
        if not file.exists():
            return f"the C++ operator is not built (no {file.name}); {INSTALL}"
        try:
            torch.ops.load_library(str(file))
        except OSError as error:  # made for another torch, or for another machine
            return f"{file.name} does not load with torch {torch.__version__} ({_one_line(error)}); {INSTALL}"
    if not all(map(_has_schema, SCHEMAS)):
        return f"{file.name} was built from other sources; {INSTALL}"
    _register()
    return None


def is_defined() -> bool:
    """Return whether `torch.ops.cbam` has the operator, compiled or not."""
    return hasattr(torch.ops.cbam, "forward")


def provide(
    forward: Callable[..., Any], backward: Callable[..., Any], *device_types: str
) -> torch.library.Library:
    """Let `torch.ops.cbam` run a backend's functions on kinds of devices; the answer has to be kept.

    On the CPU the compiled library goes first: functions for the CPU are taken only where it is not there.
    """
    library = torch.library.Library("cbam", "FRAGMENT")
    compiled = load() is None or is_defined()
    if not compiled:
        for schema in SCHEMAS.values():
            library.define(schema)
        _register()
    for device_type in device_types:
        if device_type != "cpu" or not compiled:
            library.impl("forward", forward, device_type.upper())
            library.impl("backward", backward, device_type.upper())
    return library


def _register() -> None:
    # It imports torch's decompositions and its FLOP counter, which take their time.
    from cbam.ops import registration

    registration.register()


def _has_schema(name: str) -> bool:
    packet = getattr(torch.ops.cbam, name, None)
    expected = torch._C.parse_schema(f"cbam::{SCHEMAS[name]}")
    return packet is not None and str(packet.default._schema) == str(expected)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "..."
