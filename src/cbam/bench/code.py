"""What compiled code says without being run on a GPU: of the GPU kernels, their launches, and a compiled network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from cbam.attach import attach
from cbam.bench.cases import Case, Result
from cbam.bench.compiled import first_call
from cbam.bench.config import BenchConfig
from cbam.bench.device import Device
from cbam.bench.modules import first_line
from cbam.evaluate.dram import run_quietly
from cbam.models import build_model

ROOT = Path(__file__).resolve().parents[3]
COUNTERS = {"instructions": "tests.ops.triton.instructions", "host": "tests.ops.triton.host_time"}
"""Programs that print JSON; they are in the repository, with the kernels' tests."""
SECONDS = 600
IMAGE = 64


def measure(case: Case, config: BenchConfig, device: Device) -> Result:
    """Return in `extra` what the COUNTERS print, and as "copies" the maps that a compiled network copies."""
    extra: dict[str, Any] = {}
    notes = []
    for name, program in COUNTERS.items():
        quick = ["--quick"] if config.small and name == "instructions" else []
        try:
            extra[name] = _printed(program, quick)
        except ValueError as error:
            notes.append(f"{name}: {error}")
    try:
        extra["copies"] = copies_in(config)
    except Exception as error:  # whatever a compiler may raise
        notes.append(f"copies: {first_line(error)}")
    return Result(case, notes=notes, extra=extra)


def copies_in(config: BenchConfig) -> int:
    """Compile a training step of the network with CBAM, and count the maps that are copied for the operator."""
    network = build_model(config.model, 10)
    attach(network, "cbam", input_size=(3, IMAGE, IMAGE))
    image = torch.randn(2, 3, IMAGE, IMAGE)
    return copied_maps(*training_code(network.train(), image))


def training_code(network: nn.Module, image: Tensor) -> tuple[str, str]:
    """Return Inductor's code of a network's forward and backward pass, compiled anew.

    Raises:
        NothingCompiled: torch.compile ran the network as it is.
    """
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.utils import run_fw_bw_and_get_code

    torch._dynamo.reset()
    step = torch.compile(network, fullgraph=True)
    # The code is read and not used, so its C++ need not be compiled; code kept on disk would not be written again.
    unused = mock.patch.object(AsyncCompile, "cpp_pybinding", return_value=lambda *_: None)
    with torch._inductor.config.patch(force_disable_caches=True), unused:
        _, (forward, backward) = first_call(lambda: run_fw_bw_and_get_code(lambda: step(image).sum()))
    torch._dynamo.reset()
    return forward, backward


def copied_maps(forward: str, backward: str) -> int:
    """Count the maps that are copied or re-laid-out around the operator in the code of a training step.

    Args:
        forward, backward: Inductor's code of a network in which each operator follows a convolution.

    Returns:
        Operators whose map is not a convolution's own output; backward, whose map is not the one that was kept; and
        kernels that do nothing but copy a map that the operator or a convolution's derivative returns.

    Raises:
        ValueError: There is no operator in the code.
    """
    convolved = re.findall(
        r"(\w+) = (?:extern_kernels\.|torch\.ops\.)\w*convolution\w*(?:\.default)?\(", forward
    )
    read = re.findall(r"torch\.ops\.cbam\.forward\.default\((\w+)", forward)
    kept = re.findall(r"torch\.ops\.cbam\.backward\.default\(\w+, (\w+)", backward)
    if not read or len(read) != len(kept):
        raise ValueError(f"{len(read)} operators in the forward pass, {len(kept)} in the backward pass")
    only_copies = re.compile(r"^ +\w+_fused_(?:forward|backward|convolution_backward)_\d+\(", re.MULTILINE)
    moved = [name for name in read if name not in convolved]
    moved += [name for name in kept if name.startswith(("buf", "reinterpret_tensor"))]
    return len(moved) + sum(len(only_copies.findall(text)) for text in (forward, backward))


def _printed(program: str, options: list[str]) -> Any:
    """Return the JSON that a program of the repository prints.

    Raises:
        ValueError: It is missing or failed.
    """
    if not (ROOT / f"{program.replace('.', '/')}.py").exists() or not importlib.util.find_spec("triton"):
        raise ValueError(f"needs triton and the repository's {program}")
    # Triton's interpreter, in which tests run the kernels, compiles nothing.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    try:
        run = run_quietly([sys.executable, "-m", program, "--json", *options], SECONDS, ROOT, environment)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{program} took more than {SECONDS} s") from None
    if run.returncode:
        raise ValueError(f"{program} failed: {run.stderr[-300:]}")
    return json.loads(run.stdout)
