"""The operator's schema where the C++ library, which brings it along, is not there, and its entry for GPUs."""

from __future__ import annotations

from functools import cache

import torch

from cbam.ops import cpp, registration, triton

_GATES = (
    "Tensor? w0, Tensor? b0, Tensor? w1, Tensor? b1, Tensor? channel_scale, Tensor? kernel, Tensor? norm_weight,"
    " Tensor? norm_bias, Tensor? norm_mean, Tensor? norm_var, Tensor? spatial_scale, Tensor? pre_weight,"
    " Tensor? pre_bias, Tensor? pre_mean, Tensor? pre_invstd"
)
_NUMBERS = "int pooling, int descriptor, int activation, bool norm_training, float norm_eps"
FORWARD = (
    f"forward(Tensor x, {_GATES}, Tensor? residual, {_NUMBERS}, bool relu, bool keep)"
    " -> (Tensor y, Tensor saved, Tensor where, Tensor stats)"
)
BACKWARD = (
    f"backward(Tensor grad, Tensor x, {_GATES}, Tensor? out, Tensor saved, Tensor where, {_NUMBERS}, bool pre_training)"
    " -> (Tensor dx, Tensor dw0, Tensor db0, Tensor dw1, Tensor db1, Tensor dkernel, Tensor dnorm_weight,"
    " Tensor dnorm_bias, Tensor dpre_weight, Tensor dpre_bias, Tensor dresidual)"
)


@cache
def define() -> torch.library.Library:
    """Make `torch.ops.cbam` exist and let it run on GPUs; the answer has to be kept, or torch forgets all of it."""
    library = torch.library.Library("cbam", "FRAGMENT")
    # Without the C++ library the interpreter also stands in on the CPU.
    device = "CUDA"
    if cpp.unavailable_reason() is not None and not hasattr(torch.ops.cbam, "forward"):
        library.define(FORWARD)
        library.define(BACKWARD)
        registration.register()
        device = "CPU" if triton.INTERPRETED else "CUDA"
    library.impl("forward", triton.forward, device)
    library.impl("backward", triton.backward, device)
    return library
