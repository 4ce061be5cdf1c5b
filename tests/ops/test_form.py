"""What a form compares before it hands addresses to the compiled code: all else may have changed since it was made."""

import pytest
import torch
from torch import nn

from cbam import CBAM, set_backend
from cbam.ops import cpp
from cbam.ops.signature import NormBefore
from tests.ops.library import needs_operator

C = 8
LAST = torch.channels_last


def a_map(**options):
    return torch.randn(2, C, 5, 4, generator=torch.Generator().manual_seed(0), **options)


def a_form(x):
    """The form of a call of CBAM with a residual, and its weights."""
    module = CBAM(C, 2)
    tensors = [x, *module.operator_weights(x), *NormBefore(), x]
    form = cpp.form(tensors, module.operator_config()._replace(relu=True))
    return form, [t for t in tensors[1:-1] if t is not None]


class Mine(torch.Tensor):
    pass


OTHER = {
    "another class": lambda t: t.detach().as_subclass(Mine),
    "another type": lambda t: t.detach().double(),
    "other strides": lambda t: t.detach().new_empty(2 * t.numel())[::2].view(t.shape),
    "the sign in a bit": lambda t: torch._neg_view(t.detach()),
    "another device": lambda t: t.detach().to("meta"),
}
FEWER = {"fewer numbers": lambda t: t.detach()[:, :1].contiguous()}


class TestWhatIsCompared:
    @pytest.mark.parametrize("change", [*OTHER, *FEWER, "nothing there"])
    @pytest.mark.parametrize("which", range(3))
    def test_weights(self, which, change):
        x = a_map()
        form, weights = a_form(x)
        assert form.addresses(x, weights) == [t.data_ptr() for t in (x, *weights)]
        weights[which] = {**OTHER, **FEWER, "nothing there": lambda t: None}[change](weights[which])
        assert form.addresses(x, weights) is None

    @pytest.mark.parametrize("change", [*OTHER, "another layout", "another shape"])
    def test_maps(self, change):
        x = a_map()
        form, _ = a_form(x)
        assert form.is_of_the_map(x)
        layout = {
            "another layout": lambda t: t.contiguous(memory_format=LAST),
            "another shape": lambda t: t[:1],
        }
        assert not form.is_of_the_map({**OTHER, **layout}[change](x))

    def test_a_map_with_the_sign_in_a_bit(self):
        x = a_map()
        form, weights = a_form(x)
        assert form.addresses(torch._neg_view(x), weights) is None


@needs_operator
class TestBackwardAfterAChange:
    """Gradients equal those of plain torch, whatever happened to what was kept."""

    def gradients(self, module, x, grad, between=lambda module: None):
        x = x.detach().requires_grad_()
        module.zero_grad()
        y = module(x)
        between(module)
        y.backward(grad)
        return [x.grad, *[p.grad for p in module.parameters()]]

    def compare(self, x, grad, between=lambda module: None):
        module = CBAM(C, 2)
        module(x)
        found = self.gradients(module, x, grad, between)
        with set_backend("eager"):
            expected = self.gradients(module, x, grad)
        for got, other in zip(found, expected, strict=True):
            torch.testing.assert_close(got, other)

    @pytest.mark.parametrize("format_", [torch.contiguous_format, LAST])
    def test_maps_come_back_in_another_layout(self, format_):
        x = a_map().contiguous(memory_format=format_)
        other = LAST if format_ is torch.contiguous_format else torch.contiguous_format

        def relaid(t):
            return t.contiguous(memory_format=other) if t.dim() == 4 and t.shape == x.shape else t

        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, relaid):
            self.compare(x, torch.ones_like(x))

    @pytest.mark.parametrize(
        "grad",
        [
            lambda g: g.contiguous(memory_format=LAST),
            lambda g: torch._neg_view(-g),
            lambda g: g[:, :, :1, :1].expand_as(g),
        ],
        ids=["another layout", "the sign in a bit", "expanded"],
    )
    def test_gradients_of_any_form(self, grad):
        self.compare(a_map(), grad(torch.randn(2, C, 5, 4)))

    def test_a_weight_has_moved(self):
        def moved(module):
            for p in module.parameters():
                p.data = p.data.clone()

        self.compare(a_map(), torch.ones(2, C, 5, 4), moved)

    def test_a_weight_has_shrunk(self):
        def shrunk(module):
            module.spatial_attention.conv.weight.data = torch.zeros(1, 2, 3, 3)

        with pytest.raises(RuntimeError):
            self.compare(a_map(), torch.ones(2, C, 5, 4), shrunk)

    def test_two_calls_of_other_maps(self):
        module = CBAM(C, 2)
        for x in (a_map(), a_map()[:1], a_map().double(), a_map().contiguous(memory_format=LAST)) * 2:
            found = self.gradients(module.to(x.dtype), x, torch.ones_like(x))
            with set_backend("eager"):
                expected = self.gradients(module, x, torch.ones_like(x))
            for got, other in zip(found, expected, strict=True):
                torch.testing.assert_close(got, other)


def test_a_constant_that_wants_a_gradient():
    module, x = CBAM(C, 2, gate_scale=2.0), a_map()
    for wants in (False, True):
        module.channel_attention.gate_scale = nn.Buffer(torch.tensor(2.0, requires_grad=wants))
        for _ in range(2):
            module(x).sum().backward()
    assert module.channel_attention.gate_scale.grad is not None
