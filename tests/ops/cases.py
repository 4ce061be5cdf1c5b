"""Maps and modules for the operator's tests, and the same computation in plain torch beside it."""

import copy

import torch
from torch import nn

from cbam import CBAM, set_backend
from cbam.ops import dispatch, fused
from cbam.ops.signature import NormBefore
from tests.nn import conformance

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# H or W of 1, odd, prime; one channel, fewer than the ratio, no multiple of any vector's length; batches of 0 and 1.
SHAPES = [
    (2, 32, 7, 9), (1, 64, 56, 56), (1, 5, 1, 1), (3, 1, 4, 1), (2, 17, 1, 6), (0, 8, 3, 3), (2, 3, 13, 11),
    (1, 1, 1, 1), (1, 100, 2, 31), (5, 16, 8, 8), (2, 33, 17, 3), (1, 257, 5, 5), (9, 7, 3, 3), (1, 2048, 7, 7),
]  # fmt: skip
# What one call, or two, of the operator compute; the other dialects run in plain torch.
DIALECTS = [
    name for name in conformance.NAMES if name not in ("conv descriptor", "parallel", "parallel official")
]
WITH_NORM = ["official", "timm"]
MODES = [
    (name, training) for name in DIALECTS for training in ([False, True] if name in WITH_NORM else [False])
]


def block_of(name, channels, dtype=torch.float32, training=False):
    """A module with random weights, in float32 unless the map is float64."""
    own = torch.float64 if dtype == torch.float64 else torch.float32
    return conformance.build(name, channels, dtype=own).train(training)


class WithResidual(nn.Module):
    """relu(attention(norm(x)) + residual): one call of the operator, or its steps where the backend is plain torch.

    The residual is a parameter here, so that what looks at gradients of parameters looks at its gradient too.
    """

    def __init__(self, attention, residual, relu=True, norm=None):
        super().__init__()
        self.attention, self.relu, self.norm = attention, relu, norm
        self.residual = nn.Parameter(residual)

    def forward(self, x):
        return self.in_steps(x) if dispatch.backend() == "eager" else self.in_one_call(x)

    def in_steps(self, x):
        y = self.attention(x if self.norm is None else self.norm(x)) + self.residual
        return y.relu() if self.relu else y

    def in_two_steps(self, x):
        """The operator, with the norm if there is one, and the end of the block by itself."""
        y = self._attend(x, None, False) + self.residual
        return y.relu() if self.relu else y

    def in_one_call(self, x):
        return self._attend(x, self.residual, self.relu)

    def _attend(self, x, residual, relu):
        before, numbers = NormBefore(), {}
        if self.norm is not None:
            n, own = self.norm, self.norm.weight.dtype
            if n.training:
                var, mean = torch.var_mean(x.detach().to(own), (0, 2, 3), correction=0)
            else:
                mean, var = n.running_mean, n.running_var
            before = NormBefore(n.weight, n.bias, mean, var)
            numbers = {"pre_training": n.training, "pre_eps": n.eps}
        weights = self.attention.operator_weights(x)
        settings = self.attention.operator_config()._replace(relu=relu, **numbers)
        y, stats = fused.attend(x, weights, settings, before, residual)
        self.attention.after_operator(x, stats)
        return y


def norm_of(channels, dtype=torch.float32, training=False):
    """A batch norm with random numbers, in float32 unless the map is float64; its running statistics stay."""
    generator = torch.Generator().manual_seed(2)
    own = torch.float64 if dtype == torch.float64 else torch.float32
    norm = nn.BatchNorm2d(channels, momentum=0.0, dtype=own).train(training)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(channels, generator=generator) + 0.5)
    return norm


def maps(shape, dtype, layout, seed=0):
    """A random map and a random gradient for it."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return x.contiguous(memory_format=layout), grad


def clear_maps(block, shape, dtype, layout):
    """A random map whose largest channels differ by more than rounding: which of two equals wins is no error."""
    for seed in range(20):
        x, grad = maps(shape, dtype, layout, seed)
        if dtype != torch.float32 or min(shape[:2]) < 1 or shape[1] == 1:
            return x, grad
        gated = x.double()
        if isinstance(block, CBAM) and block.arrangement == "channel-spatial":
            with torch.no_grad():
                gated = gated * copy.deepcopy(block).double().channel_attention.gate(gated)
        first, second = gated.topk(2, 1).values.unbind(1)
        if (first - second).min() > 1e-5:
            break
    return x, grad


def single_value(name, shape, training):
    """Whether a batch norm would see one value or none, which plain torch refuses or does not define."""
    return training and name in WITH_NORM and shape[0] * shape[2] * shape[3] <= 1


def outcome(block, x, grad, backend):
    """Output, gradients of the map and of all parameters, and buffers, from a copy of the module."""
    block, leaf = copy.deepcopy(block), x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with set_backend(backend):
        y = block(leaf)
        y.backward(grad.to(y.dtype))
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    buffers = {name: buffer for name, buffer in block.named_buffers() if buffer.is_floating_point()}
    return {"y": y.detach(), "x": leaf.grad, **gradients, **buffers}


def truth(block, x, grad):
    """The same in float64 and plain torch."""
    return outcome(copy.deepcopy(block).double(), x.double(), grad.double(), "eager")


def error(got, expected):
    """The largest deviation of a tensor; where both are the same infinity or NaN there is none."""
    got, expected = got.double(), expected.double()
    same = (got == expected) | (got.isnan() & expected.isnan())
    deviation = torch.where(same, torch.zeros_like(got), (got - expected).abs()).nan_to_num(torch.inf)
    return deviation.amax().item() if got.numel() else 0.0


def saved_bytes(block, x):
    """Bytes kept for backward, beyond parameters and buffers, each storage once."""
    found = {}
    own = {t.untyped_storage().data_ptr() for t in [*block.parameters(), *block.buffers()]}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = block(x)
    assert y.requires_grad
    return sum(storage.nbytes() for storage in found.values())


# Beyond what plain torch's error allows, as a share of the largest value.
SLACK = {torch.float32: 3e-5, torch.float64: 1e-10, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def assert_as_good_as_eager(block, x, grad, backend="cpp"):
    """Judge the operator by plain torch in the same precision, both against float64.

    On one map the larger error may be luck, so four times is let pass; over many maps it must be less than twice
    (`test_the_error_over_many_maps_is_no_larger_than_plain_torch_s`).
    """
    got, eager, exact = (
        outcome(block, x, grad, backend),
        outcome(block, x, grad, "eager"),
        truth(block, x, grad),
    )
    for name, expected in exact.items():
        scale = 1e-3 + (expected.abs().nan_to_num(0, 0, 0).amax().item() if expected.numel() else 0.0)
        # A single number may be a small difference of large sums, and plain torch's may be right by luck.
        factor = 10 if expected.numel() == 1 else 1
        if x.dtype == torch.float64 and "hardsigmoid" in repr(block):
            factor = 1e5  # its derivative in plain torch is float32's 1/6, in float64 too
        slack = SLACK[x.dtype] * scale * factor
        found, allowed = error(got[name], expected), 4 * error(eager[name], expected) + slack
        assert found <= allowed, f"{name}: {found:.3g} > {allowed:.3g}, values up to {scale:.3g}"
    return got, eager
