"""`cbam doctor`: versions and machine, whether the fused operator runs, and which modules it computes."""

from __future__ import annotations

import os
import platform
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

import cbam
from cbam.errors import CBAMError
from cbam.nn import CBAM, ChannelAttention, SpatialAttention, SqueezeExcitation, after_norm
from cbam.nn.base import AttentionModule
from cbam.nn.presets import ARRANGEMENTS, PRESETS
from cbam.nn.route import route
from cbam.ops import cpp, dispatch, triton
from cbam.ops.triton.mode import INTERPRETED
from cbam.runs.environment import describe_environment

USAGE = """usage: cbam doctor

Print versions, machine, whether the fused operator is available, and for each preset, arrangement, dtype and device
whether it computes the attention, or plain torch ("eager") and why. Exit code 1 if the C++ operator cannot run."""
WIDTH = 80
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def main(arguments: Sequence[str]) -> int:
    """Run the command with the `arguments` after it; return the exit code."""
    if set(arguments) & {"-h", "--help"}:
        print(USAGE)
        return 0
    if arguments:
        raise CBAMError(f"cbam doctor takes no arguments, given {' '.join(arguments)!r}.")
    dispatch.backend()  # an unknown name in CBAM_BACKEND ends here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report holds what they say
        for line in report():
            print(line)
    return 0 if cpp.available() else 1


def report() -> Iterator[str]:
    """Yield the report's lines, 80 columns wide at most."""
    yield from _machine()
    yield ""
    yield from _table("module", _modules())
    yield ""
    yield from _table("map", _maps())


def _machine() -> Iterator[str]:
    found = describe_environment(["cbam", "doctor"], "cpu")
    machine = found["machine"]
    yield from _entry(
        "versions", f"cbam {cbam.__version__}, torch {torch.__version__}, Python {found['python']}"
    )
    yield from _entry("system", found["system"])
    yield from _entry(
        "processor",
        f"{machine['cpu'] or platform.machine()}; {machine['cores']} cores, {machine['threads']} threads",
    )
    why = cpp.unavailable_reason()
    if why is None:
        yield from _entry("operator", f"available, with {cpp.instruction_set()} kernels")
    else:
        yield from _entry("operator", f"missing: {why}")
    why = triton.unavailable_reason()
    if why is None:
        on = "interpreted (TRITON_INTERPRET=1), slowly" if INTERPRETED else torch.cuda.get_device_name()
        yield from _entry("on a GPU", f"Triton kernels, {on}")
    else:
        yield from _entry("on a GPU", f"not available: {why}")
    origin = "set by CBAM_BACKEND" if os.environ.get("CBAM_BACKEND") else "the default"
    yield from _entry("backend", f"{dispatch.backend()} ({origin})")
    yield from _entry("norm + gates", _norm_before())
    yield from _entry("epilogue", _epilogue())


def _has_operator() -> bool:
    """Return whether the backend in force has an operator that runs on the CPU here."""
    operator = dispatch.operator_on("cpu")
    return operator is not None and operator.unavailable_reason() is None


def _norm_before() -> str:
    """Return whether a batch norm in front of attached attention runs in the operator."""
    if not _has_operator():
        return "separate, in plain torch"
    separate = [
        f"{_name(dtype)} {layout} {mode}"
        for dtype in DTYPES[:3]
        for layout in ("contiguous", "channels_last")
        for mode in ("training", "inference")
        if not after_norm.exact(dtype, layout == "channels_last", mode == "training")
    ]
    if not separate:
        return "a BatchNorm2d in front of attached attention runs in the operator, bit for bit"
    return "separate where the operator's norm would differ from torch's in the last bit: " + ", ".join(
        separate
    )


def _epilogue() -> str:
    """Return whether the addition and ReLU after attached attention run in the operator."""
    if not _has_operator():
        return "separate, in plain torch"
    return "the addition of the shortcut and a ReLU after attached attention run in the operator"


def _modules() -> Iterator[tuple[str, str, str, str]]:
    for preset in PRESETS:
        yield _row(f"preset {preset}", CBAM(16, preset=preset))
    for arrangement in ARRANGEMENTS[1:]:
        yield _row(f"arrangement {arrangement}", CBAM(16, arrangement=arrangement))
    yield _row("spatial descriptor conv", CBAM(16, spatial_descriptor="conv"))
    yield _row("gate hardsigmoid", CBAM(16, gate="hardsigmoid"))
    yield _row("ChannelAttention", ChannelAttention(16))
    yield _row("SpatialAttention", SpatialAttention())
    yield _row("SqueezeExcitation", SqueezeExcitation(16))


def _maps() -> Iterator[tuple[str, str, str, str]]:
    for dtype in DTYPES:
        yield _row(f"{_name(dtype)} on cpu", CBAM(16, dtype=dtype))
    yield _row("torch.compile, torch.export", CBAM(16), "one node, cbam::forward")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    yield _row(
        f"on {device or 'cuda'}",
        CBAM(16, device=device or "meta"),
        reason="" if device else "there is no GPU here",
    )


def _row(name: str, module: AttentionModule, note: str = "", reason: str = "") -> tuple[str, str, str, str]:
    (training, why), (inference, also) = route(module.train()), route(module.eval())
    found = reason or why or also or note
    if found and found == cpp.unavailable_reason():
        found = "no operator"  # the reason is further up in the report
    return name, training, inference, found


def _table(title: str, rows: Iterator[tuple[str, str, str, str]]) -> Iterator[str]:
    for name, training, inference, reason in ((title, "training", "inference", "why"), *rows):
        start = f"{name:<28}{training:<10}{inference:<11}"
        lines = textwrap.wrap(reason, WIDTH - len(start)) or [""]
        yield (start + lines[0]).rstrip()
        yield from (" " * len(start) + line for line in lines[1:])


def _entry(name: str, text: str) -> Iterator[str]:
    lines = textwrap.wrap(text, WIDTH - 14, break_on_hyphens=False)
    yield f"{name:<14}{lines[0]}"
    yield from (" " * 14 + line for line in lines[1:])


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
