"""Attention in one call with the batch norm in front of it: the result of two calls, bit for bit at the identity."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import cbam
from cbam import CBAM, ChannelAttention, SpatialAttention, SqueezeExcitation, set_backend
from cbam.attach.wrapper import WithAttention
from cbam.nn import after_norm
from tests.ops.library import needs_operator, needs_same_bits

pytestmark = [needs_operator, needs_same_bits]

BLOCKS = {
    "paper": lambda: CBAM(16, 4),
    "official": lambda: CBAM(16, 4, preset="official"),
    "channel": lambda: ChannelAttention(16, 4),
    "se": lambda: SqueezeExcitation(16, 4),
    "spatial": lambda: SpatialAttention(),
    "spatial only": lambda: CBAM(16, arrangement="spatial"),
}
every_block = pytest.mark.parametrize("name", BLOCKS)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
every_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
LOW = [torch.bfloat16, torch.float16]


@pytest.fixture
def together(monkeypatch):
    """How often norm and attention ran together."""
    ran = []
    original = after_norm.attend

    def counted(*arguments):
        result = original(*arguments)
        if result is not None:
            ran.append(1)
        return result

    monkeypatch.setattr(after_norm, "attend", counted)
    return ran


def site(name="paper", training=True, **norm):
    torch.manual_seed(0)
    module = WithAttention(nn.BatchNorm2d(16, **norm), BLOCKS[name]())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        if module.host.running_mean is not None:
            module.host.running_mean.normal_()
            module.host.running_var.uniform_(0.5, 2.0)
    return module.train(training)


def separately(module, u):
    return module.cbam(module.host(u))


def a_map(dtype=torch.float32, layout=torch.contiguous_format, shape=(3, 16, 9, 7)):
    return (torch.randn(shape) * 2 + 1).to(dtype).contiguous(memory_format=layout)


def compared(module, u):
    """Output, gradients and buffers of both ways."""
    grad, found = torch.randn(u.shape).to(u.dtype), []
    for run in (lambda m, x: m(x), separately):
        twin, leaf = copy.deepcopy(module), u.clone(memory_format=torch.preserve_format).requires_grad_()
        y = run(twin, leaf)
        y.backward(grad)
        gradients = {name: p.grad for name, p in twin.named_parameters() if p.requires_grad}
        buffers = {name: b for name, b in twin.named_buffers() if name.startswith("host")}
        found.append({"y": y.detach(), "u": leaf.grad, **gradients, "buffers": buffers})
    return found


@every_mode
@every_layout
class TestSameAsSeparately:
    @pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
    @every_block
    def test_values_gradients_and_running_statistics(self, name, training, layout, dtype, together):
        got, expected = compared(site(name, training), a_map(dtype, layout))
        assert len(together) == 1
        assert torch.equal(got["y"], expected["y"])
        assert got["y"].stride() == expected["y"].stride()
        for key, buffer in expected.pop("buffers").items():
            assert torch.equal(got["buffers"][key], buffer), key
        for key, gradient in expected.items():
            scale = gradient.abs().max().item() + 1e-6
            tolerance = 3e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(got[key], gradient, rtol=0, atol=tolerance * scale, msg=key)

    @pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
    @every_block
    def test_identity_gives_the_norm_bit_for_bit(self, name, training, layout, dtype, together):
        module = site(name, training)
        module.cbam.set_identity()
        for shape in ((3, 16, 9, 7), (2, 16, 56, 56), (1, 16, 1, 2), (5, 16, 3, 1)):
            u = a_map(dtype, layout, shape)
            alone = copy.deepcopy(module.host)
            assert torch.equal(module(u), alone(u))
            assert torch.equal(module.host.running_var, alone.running_var)
        assert len(together) == 4

    @pytest.mark.parametrize(
        "norm",
        [
            {"affine": False},
            {"momentum": None},
            {"momentum": 1.0},
            {"track_running_stats": False},
            {"eps": 0.1},
        ],
        ids=str,
    )
    def test_settings_of_the_norm(self, norm, training, layout, together):
        module = site("paper", training, **norm)
        for _ in range(3):
            u = a_map(layout=layout)
            twin = copy.deepcopy(module)
            assert torch.equal(module(u), separately(twin, u))
            for got, expected in zip(module.buffers(), twin.buffers(), strict=True):
                assert torch.equal(got, expected)
        assert len(together) == 3

    def test_a_norm_that_stopped_tracking(self, training, layout, together):
        module = site("paper", training)
        module.host.track_running_stats = False
        u, twin = a_map(layout=layout), copy.deepcopy(module)
        assert torch.equal(module(u), separately(twin, u))
        for got, expected in zip(module.buffers(), twin.buffers(), strict=True):
            assert torch.equal(got, expected)
        assert together

    def test_frozen_parameters(self, training, layout, together):
        module = site("paper", training)
        module.host.requires_grad_(False)
        got, expected = compared(module, a_map(layout=layout))
        torch.testing.assert_close(got["u"], expected["u"], rtol=1e-4, atol=1e-5)
        module.cbam.requires_grad_(False)
        got, expected = compared(module, a_map(layout=layout))
        torch.testing.assert_close(got["u"], expected["u"], rtol=1e-4, atol=1e-5)
        assert len(together) == 2

    def test_nothing_but_the_norm_s_input_is_kept(self, training, layout):
        u, kept = a_map(layout=layout, shape=(2, 16, 28, 28)).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            site("paper", training)(u)
        assert [t.numel() for t in kept if t.numel() >= u.numel()] == [u.numel()]


class TestSecondDerivative:
    @every_mode
    def test_gradgrad(self, training):
        """By way of plain torch, also through the batch's statistics."""
        module, start = site("official", training), a_map(shape=(3, 16, 4, 4))
        found = []
        for run in (lambda x: module(x), lambda x: separately(module, x)):
            u = start.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(run(u).square().sum(), u, create_graph=True)
            found.append(torch.autograd.grad(gradient.square().sum(), [u, *module.parameters()]))
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item())


def subclass(module):
    class Mine(nn.BatchNorm2d):
        pass

    module.host.__class__ = Mine


def attention_subclass(module):
    class Mine(CBAM):
        def attend(self, x):
            return x

    module.cbam.__class__ = Mine


class TestApartWhereItMust:
    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.host.register_forward_hook(lambda *_: None),
            lambda m: m.host.register_forward_pre_hook(lambda *_: None),
            lambda m: m.host.register_full_backward_hook(lambda *_: None),
            lambda m: m.cbam.register_forward_hook(lambda *_: None),
            lambda m: setattr(m.cbam, "enabled", False),
            lambda m: setattr(m.host, "forward", m.host.forward),
            lambda m: m.host.double().float().to(torch.bfloat16),
            subclass,
            attention_subclass,
            lambda m: setattr(m.cbam, "attend", m.cbam.attend),
            lambda m: setattr(m, "host", nn.SyncBatchNorm(16)),
            lambda m: setattr(m, "host", nn.GroupNorm(4, 16)),
            lambda m: setattr(m, "cbam", CBAM(16, arrangement="parallel")),
            lambda m: setattr(m, "cbam", CBAM(16, arrangement="spatial-channel")),
            lambda m: setattr(m, "position", "input"),
            lambda m: m.cbam.spatial_attention.conv.register_forward_hook(lambda *_: None),
        ],
    )
    def test_what_is_not_a_plain_pair(self, change, together):
        module = site(training=False)
        change(module)
        u = a_map(module.host.weight.dtype)
        module(u)
        assert not together

    def test_hooks_still_fire(self, together):
        module, seen = site(), []
        module.host.register_forward_hook(lambda m, i, output: seen.append("host"))
        module.cbam.register_forward_hook(lambda m, i, output: seen.append("attention"))
        module(a_map())
        assert seen == ["host", "attention"]

    def test_hooks_on_all_modules(self, together):
        seen = []
        handle = register_module_forward_hook(lambda m, i, o: seen.append(type(m).__name__))
        try:
            site()(a_map())
        finally:
            handle.remove()
        assert "BatchNorm2d" in seen
        assert not together

    def test_where_bits_would_differ(self, monkeypatch, together):
        monkeypatch.setattr(after_norm, "exact", lambda *_: False)
        site()(a_map())
        assert not together

    def test_eager(self, together):
        with set_backend("eager"):
            site()(a_map())
        assert not together

    def test_a_map_that_does_not_fit_raises_as_the_norm_does(self, together):
        with pytest.raises(RuntimeError, match="running_mean should contain 9 elements not 16"):
            site()(a_map(shape=(2, 9, 4, 4)))
        with pytest.raises(RuntimeError, match="running_mean should contain 9 elements not 16"):
            site("spatial", training=False)(a_map(shape=(2, 9, 4, 4)))
        with pytest.raises(ValueError, match="expected 4D input"):
            site()(torch.rand(16, 4, 4))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            site()(torch.rand(1, 16, 1, 1))

    @pytest.mark.parametrize("cut", [lambda u: u[:, :, 1:], lambda u: u[::2], lambda u: u.transpose(2, 3)])
    def test_maps_with_gaps(self, cut):
        module = site(training=False)
        u = cut(a_map(shape=(4, 16, 8, 8)))
        torch.testing.assert_close(module(u), separately(module, u))

    def test_double_precision(self, together):
        module, u = site().double(), a_map(torch.float64)
        torch.testing.assert_close(module(u), separately(module, u))
        assert not together


class TestInANetwork:
    def test_copies_and_state_dict(self, together):
        module, u = site(), a_map()
        keys = list(module.state_dict())
        module(u)
        assert list(module.state_dict()) == keys
        module.eval()
        expected = module(u)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(twin(u), expected)
        assert len(together) == 4

    @pytest.mark.slow
    def test_compiled_the_two_are_separate_and_agree(self, together):
        torch._dynamo.reset()
        module, u = site("official"), a_map()
        twin = copy.deepcopy(module)
        compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
        for run, owner in ((module, module), (compiled, twin)):
            run(u).square().sum().backward()
            assert owner.host.weight.grad is not None
        for got, expected in zip(twin.parameters(), module.parameters(), strict=True):
            scale = expected.grad.abs().max().item()
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-5 * (1 + scale))
        for got, expected in zip(twin.buffers(), module.buffers(), strict=True):
            torch.testing.assert_close(got, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("attention", ["cbam", "se", "channel", "spatial"])
    @every_mode
    def test_resnet_50_keeps_no_more_than_the_plain_one(self, attention, training):
        """The promise: at most 1.02 times the bytes for backward."""
        from torchvision.models import resnet50

        model, image = resnet50().train(training), torch.randn(1, 3, 224, 224)

        def kept():
            found, own = {}, {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}

            def pack(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in own:
                    found[storage._cdata] = storage
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                model(image)
            return sum(storage.nbytes() for storage in found.values())

        plain = kept()
        cbam.attach(model, attention)
        model.train(training)
        assert plain < kept() <= 1.02 * plain
