"""Compile all kernels, as the launch path asks for them, for a GPU that is not there: `python FILE cuda 90 32`.

A stand-in for Triton's driver names the target and starts nothing; everything before it is what happens on a GPU:
the choice of blocks, the specialisation by types and divisibility, the compiler down to machine code. Prints one
line of JSON per kernel with its threads, shared memory, and the vector loads and local memory of its assembly.
"""

import json
import re
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver

from cbam.ops.signature import BackwardArguments, ForwardArguments, NormBefore, OperatorConfig, Weights, flat
from cbam.ops.triton import backward, forward


class Driver:
    def __init__(self, kind, architecture, warp):
        self.target = GPUTarget(kind, int(architecture) if kind == "cuda" else architecture, int(warp))
        self.utils = self

    def load_binary(self, name, kernel, shared, device):
        return 1, 2, 0, 0, 1024

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448 if self.target.backend == "cuda" else 65536}

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def launcher_cls(self, source, metadata):
        return lambda *arguments: None


def run(shape, dtype, channels_last, norm, epilogue, descriptor=3, spatial_norm=None):
    """Forward and backward as `fused.attend` would call them; the numbers in the tensors do not matter."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    channels, hidden = shape[1], max(1, shape[1] // 16)

    def new(*sizes):
        return torch.empty(*sizes, dtype=acc)

    statistics = (new(1), new(1)) if spatial_norm == "running" else (None, None)
    affine = (new(1), new(1)) if spatial_norm else (None, None)
    weights = Weights(new(hidden, channels), new(hidden), new(channels, hidden), new(channels), new(1),
                      new(1, 2, 7, 7), *affine, *statistics, new(1))  # fmt: skip
    before = NormBefore(*(new(channels) for _ in range(4))) if norm else NormBefore()
    config = OperatorConfig(3, descriptor, 0, spatial_norm == "batch", 1e-5, epilogue)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype).contiguous(memory_format=layout)
    call = ForwardArguments(x, weights, before, x if epilogue else None, config, keep=True)
    forward(*flat(call._replace(keep=False)))
    y, saved, argmax, _ = forward(*flat(call))
    out = y if epilogue else None
    backward(*flat(BackwardArguments(x, x, weights, before, out, saved, argmax, config, pre_training=norm)))


def describe(kernel):
    """What the compiler made of one kernel."""
    assembly = kernel.asm.get("ptx", "") or kernel.asm.get("amdgcn", "")
    return {
        "kernel": kernel.metadata.name,
        "warps": kernel.metadata.num_warps,
        "shared": kernel.metadata.shared,
        "vector_loads": len(
            re.findall(r"ld\.global[\w.:]*\.v[24]|global_load_dwordx4|buffer_load_dwordx4", assembly)
        ),
        "local": len(re.findall(r"(ld|st)\.local|scratch_(load|store)", assembly)),
        "atomics": len(re.findall(r"\batom\.|\bred\.|global_atomic|buffer_atomic", assembly)),
        "bytes": len(kernel.kernel),
    }


if __name__ == "__main__":
    driver.set_active(Driver(*sys.argv[1:]))
    compiled = {}
    load = CompiledKernel._init_handles
    CompiledKernel._init_handles = lambda self: (compiled.setdefault(id(self), self), load(self))[1]
    run((8, 256, 56, 56), torch.bfloat16, True, True, True, spatial_norm="batch")
    run((8, 256, 56, 56), torch.bfloat16, False, True, True, spatial_norm="running")
    run((4, 2048, 7, 7), torch.float16, False, False, False, descriptor=4)
    run((4, 512, 28, 28), torch.float32, True, False, False)
    run((2, 24, 9, 9), torch.float64, True, True, True, spatial_norm="batch")
    for kernel in compiled.values():
        sys.stdout.write(json.dumps(describe(kernel)) + "\n")
