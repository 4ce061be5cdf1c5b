"""Compile kernels, as the launch path asks for them, for a GPU that is not there.

`python FILE cuda 90 32` compiles them for several maps, `python FILE cuda 90 32 1x8x1x1 ...` for maps of these shapes.
Prints one line of JSON per kernel: its warps, its shared memory, and vector loads and local memory of its assembly.
"""

import json
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
from cbam.ops.signature import BackwardArguments, ForwardArguments, NormBefore, OperatorConfig, Weights, flat
from cbam.ops.triton import backward, forward
from tests.ops.triton.stand_in import Driver, recorded


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
    backward(
        *flat(
            BackwardArguments(
                x, x, weights, before, out, saved, argmax, config._replace(pre_training=norm)
            )
        )
    )


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
        "atomic_sums": len(
            re.findall(r"\b(atom|red)\.[\w.:]*\.b?f\d+|(global|buffer)_atomic\w*_f\d+", assembly)
        ),
        "bytes": len(kernel.kernel),
    }


def several_maps():
    """Both memory formats, all dtypes, with and without norms and epilogue."""
    run((8, 256, 56, 56), torch.bfloat16, True, True, True, spatial_norm="batch")
    run((8, 256, 56, 56), torch.bfloat16, False, True, True, spatial_norm="running")
    run((1, 64, 9, 9), torch.bfloat16, True, False, False)
    run((4, 2048, 7, 7), torch.float16, False, False, False, descriptor=4)
    run((4, 512, 28, 28), torch.float32, True, False, False)
    run((2, 24, 9, 9), torch.float64, True, True, True, spatial_norm="batch")


if __name__ == "__main__":
    with recorded(Driver(*sys.argv[1:4])) as launches:
        if len(sys.argv) == 4:
            several_maps()
        for shape in sys.argv[4:]:
            for spatial_norm, layout in (("batch", True), (None, False)):
                sizes = [int(size) for size in shape.split("x")]
                run(sizes, torch.bfloat16, layout, True, True, spatial_norm=spatial_norm)
    for kernel in {id(launch.compiled): launch.compiled for launch in launches}.values():
        sys.stdout.write(json.dumps(describe(kernel)) + "\n")
