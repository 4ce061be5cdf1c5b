"""Attention, the shortcut's addition and the ReLU in one call: as if one after the other, or not at all."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from cbam import CBAM, ChannelAttention, SpatialAttention, SqueezeExcitation, set_backend
from cbam.errors import CBAMError
from cbam.nn import after_norm
from cbam.ops import fused
from tests.nn.conformance import NAMES, build
from tests.ops.library import needs_operator, needs_same_bits

pytestmark = needs_operator

every_relu = pytest.mark.parametrize("relu", [True, False], ids=["relu", "no relu"])
every_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
every_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
EAGER = ("conv descriptor", "spatial first", "parallel", "parallel official")


def a_map(dtype=torch.float32, layout=torch.contiguous_format, shape=(3, 16, 9, 7)):
    return torch.randn(shape).to(dtype).contiguous(memory_format=layout)


def plainly(attended, residual, relu):
    y = attended + residual
    return F.relu(y) if relu else y


def compared(module, ways, x, residual):
    """What each way returns, and the gradients of everything."""
    found, grad = [], torch.randn(x.shape).to(x.dtype)
    for way in ways:
        twin = copy.deepcopy(module)
        leaves = [
            t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, residual)
        ]
        y = way(twin, *leaves)
        y.backward(grad)
        found.append([y.detach(), *(t.grad for t in leaves), *(p.grad for p in twin.parameters())])
        found[-1].extend(buffer for buffer in twin.buffers())
    return found


def same(found, tolerance):
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][0].stride() == found[1][0].stride()
    for got, expected in zip(*found, strict=True):
        scale = expected.abs().max().item() + 1e-6
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EAGER])
@every_relu
@every_layout
@every_mode
def test_as_one_after_the_other(name, relu, layout, training):
    module = build(name, 16).train(training)

    def together(module, x, residual):
        y = module.attend_epilogue(x, residual, relu)
        assert y.grad_fn.name() == "_AttendBackward"
        return y

    ways = (together, lambda module, x, residual: plainly(module(x), residual, relu))
    same(compared(module, ways, a_map(layout=layout), a_map(layout=layout)), 3e-5)


@pytest.mark.parametrize(
    "attention", [lambda: CBAM(16, 4), lambda: SqueezeExcitation(16), lambda: SpatialAttention()]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_relu
@every_layout
@every_mode
@needs_same_bits
def test_behind_a_norm(attention, dtype, relu, layout, training):
    torch.manual_seed(0)
    pair = nn.ModuleDict({"norm": nn.BatchNorm2d(16), "attention": attention()}).train(training)
    for parameter in pair.parameters():
        nn.init.normal_(parameter, std=0.5)
    ways = (
        lambda pair, u, residual: after_norm.attend(pair["norm"], pair["attention"], u, residual, relu),
        lambda pair, u, residual: plainly(pair["attention"](pair["norm"](u)), residual, relu),
    )
    tolerance = 3e-5 if dtype == torch.float32 else 3e-2
    same(compared(pair, ways, a_map(dtype, layout), a_map(dtype, layout)), tolerance)


@needs_same_bits
def test_only_the_norm_s_input_is_kept():
    pair, kept = (nn.BatchNorm2d(16), CBAM(16)), []
    u, residual = a_map(shape=(2, 16, 28, 28)).requires_grad_(), a_map(shape=(2, 16, 28, 28)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = after_norm.attend(*pair, u, residual, True)
    large = [t.data_ptr() for t in kept if t.numel() >= u.numel()]
    assert large == [u.data_ptr(), y.data_ptr()]  # as the plain network keeps the ReLU's output


@every_relu
def test_maps_without_a_batch(relu):
    module, x, residual = CBAM(16), a_map(shape=(16, 9, 7)), a_map(shape=(16, 9, 7))
    assert torch.equal(module.attend_epilogue(x, residual, relu), plainly(module(x), residual, relu))


def observing():
    def hook(*_):
        hook.calls += 1

    hook.calls, hook.observes_only = 0, True
    return hook


def test_those_who_only_observe_see_a_call():
    module, before, after = CBAM(16), observing(), observing()
    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
    assert module.attend_epilogue(a_map(), a_map(), True) is not None
    assert (before.calls, after.calls) == (1, 1)


REFUSED = {
    "a hook": lambda m: m.register_forward_hook(lambda *_: None),
    "a hook on a part": lambda m: m.spatial_attention.conv.register_forward_hook(lambda *_: None),
    "switched off": lambda m: setattr(m, "enabled", False),
    "half of it switched off": lambda m: setattr(m.channel_attention, "enabled", False),
    "a forward of its own": lambda m: setattr(m, "forward", m.forward),
    "a subclass": lambda m: setattr(m, "__class__", type("Mine", (CBAM,), {"attend": lambda self, x: x})),
    "another arrangement": lambda m: setattr(m, "arrangement", "parallel"),
    "two calls": lambda m: setattr(m, "arrangement", "spatial-channel"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_do_more(name):
    module, called = CBAM(16), []
    REFUSED[name](module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "attend", lambda *_: called.append(1))
        assert module.attend_epilogue(a_map(), a_map(), True) is None
        assert after_norm.attend(nn.BatchNorm2d(16), module, a_map(), a_map(), True) is None
    assert not called


@pytest.mark.parametrize(
    "residual",
    [
        torch.rand(16, 9, 7),
        torch.rand(3, 16, 9, 1),
        torch.rand(3, 16, 9, 7, dtype=torch.float64),
        torch.rand(3, 16, 9, 7, device="meta"),
        torch.rand(3, 16, 9, 7).as_subclass(type("Mine", (torch.Tensor,), {})),
        torch.rand(3, 16, 9, 7).contiguous(
            memory_format=torch.channels_last
        ),  # the sum's layout is torch's choice
        1.0,
    ],
    ids=["fewer axes", "broadcast", "type", "device", "subclass", "layout", "number"],
)
def test_shortcuts_that_are_not_like_the_map(residual):
    assert CBAM(16).attend_epilogue(a_map(), residual, True) is None
    assert after_norm.attend(nn.BatchNorm2d(16), CBAM(16), a_map(), residual, True) is None


def test_other_circumstances():
    module, x = CBAM(16), a_map()
    with set_backend("eager"):
        assert module.attend_epilogue(x, x, True) is None
    handle = register_module_forward_pre_hook(lambda *_: None)
    assert module.attend_epilogue(x, x, True) is None
    handle.remove()
    assert module.attend_epilogue(x.to("meta"), x.to("meta"), True) is None
    with pytest.raises(CBAMError, match="built for 16 channels"):
        module.attend_epilogue(a_map(shape=(3, 8, 4, 4)), a_map(shape=(3, 8, 4, 4)), True)
    assert module.attend_epilogue(x, x, True) is not None


def test_a_forced_backend_says_why_not():
    module = ChannelAttention(16)
    module.mlp[1] = nn.Tanh()
    with set_backend("cpp"), pytest.raises(CBAMError, match="was replaced"):
        module.attend_epilogue(a_map(), a_map(), True)
    with set_backend("cpp"):  # two calls are no failure
        assert CBAM(16, arrangement="spatial-channel").attend_epilogue(a_map(), a_map(), True) is None
