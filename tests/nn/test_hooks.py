"""Hooks, wrappers and replaced parts inside an attention module: they run on every backend."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from cbam import CBAM, ChannelAttention, SpatialAttention, set_backend
from tests.ops import cases
from tests.ops.library import needs_operator

X = torch.randn(2, 16, 6, 5)
BACKENDS = ["eager", pytest.param("auto", marks=needs_operator)]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request):
    with set_backend(request.param):
        yield request.param


PARTS = [
    "channel_attention", "channel_attention.mlp", "channel_attention.mlp.0", "channel_attention.mlp.1",
    "channel_attention.mlp.2", "spatial_attention", "spatial_attention.conv", "spatial_attention.norm",
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_hooks_on_parts_fire_and_change_nothing_by_themselves(part):
    block = cases.block_of("official", 16)
    expected, seen = block(X), []
    handle = block.get_submodule(part).register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    torch.testing.assert_close(block(X), expected)
    assert seen
    assert all(isinstance(output, torch.Tensor) for output in seen)
    handle.remove()
    assert torch.equal(block(X), expected)


@pytest.mark.parametrize("part", PARTS)
def test_a_hook_may_change_what_a_part_gives(part):
    block = cases.block_of("official", 16)
    expected = block(X)
    block.get_submodule(part).register_forward_hook(lambda module, inputs, output: output * 0.5)
    assert not torch.allclose(block(X), expected)


class LowRank(nn.Module):
    """An adapter as LoRA makes them: the layer it wraps, and something beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.beside = layer, copy.deepcopy(layer)

    @property
    def weight(self):
        return self.layer.weight

    @property
    def bias(self):
        return self.layer.bias

    def forward(self, x):
        return self.layer(x) + self.beside(x)


@pytest.mark.parametrize(("parent", "name"), [("channel_attention.mlp", "2"), ("spatial_attention", "conv")])
def test_a_wrapped_layer_is_called(parent, name):
    block = cases.block_of("paper", 16)
    expected = block(X)
    holder = block.get_submodule(parent)
    setattr(holder, name, LowRank(getattr(holder, name)))
    got = block(X)
    assert not torch.allclose(got, expected)
    got.sum().backward()
    assert getattr(holder, name).beside.weight.grad is not None


def test_another_activation_in_the_mlp_is_called():
    block = cases.block_of("paper", 16)
    expected = block(X)
    block.channel_attention.mlp[1] = nn.Tanh()
    assert not torch.allclose(block(X), expected)


def test_parametrised_layers(backend):
    block = cases.block_of("paper", 16)
    expected = block(X)
    parametrizations.weight_norm(block.channel_attention.mlp[0])
    parametrizations.weight_norm(block.spatial_attention.conv)
    torch.testing.assert_close(block(X), expected)
    y = block(X)
    assert (y.grad_fn.name() == "_AttendBackward") == (backend == "auto"), "the weight tells all"
    y.sum().backward()
    assert block.spatial_attention.conv.parametrizations.weight.original1.grad is not None


def test_pruned_layers():
    """Pruning computes the weight in a hook that runs when the layer is called."""
    block = ChannelAttention(16, 2)
    prune.l1_unstructured(block.mlp[0], "weight", amount=0.5)
    for _ in range(2):
        block(X).sum().backward()
    assert (block.mlp[0].weight_orig.grad == 0).sum() >= 16


def test_a_half_that_is_switched_off():
    block = CBAM(16)
    block.spatial_attention.enabled = False
    torch.testing.assert_close(block(X), block.channel_attention(X))


@pytest.mark.parametrize(("name", "value"), [("gate", 0.5), ("logits", 0.0)])
@pytest.mark.parametrize("kind", [ChannelAttention, SpatialAttention])
def test_a_subclass_with_a_gate_of_its_own(kind, name, value):
    halved = type(
        "Halved", (kind,), {name: lambda self, x: torch.full_like(getattr(kind, name)(self, x), value)}
    )
    torch.testing.assert_close((halved(16) if kind is ChannelAttention else halved())(X), X / 2)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("channel_attention.mlp.2", nn.Conv2d),
        ("spatial_attention.conv", nn.Conv2d),
        ("spatial_attention.norm", nn.BatchNorm2d),
    ],
)
def test_a_layer_of_another_class(path, kind):
    block = cases.block_of("official", 16)
    expected, layer = block(X), block.get_submodule(path)
    layer.__class__ = type("Mine", (kind,), {"forward": lambda self, x: kind.forward(self, x) * 2})
    assert not torch.allclose(block(X), expected)


@pytest.mark.parametrize("name", ["gate", "logits", "attend"])
def test_a_method_replaced_on_one_object(name):
    block = cases.block_of("paper", 16)
    expected, original = block(X), getattr(block.channel_attention, name)
    setattr(block.channel_attention, name, lambda x: original(x) * 0.5)
    assert not torch.allclose(block(X), expected)


def test_another_norm_in_the_spatial_gate():
    block = cases.block_of("official", 16)
    block.spatial_attention.norm = nn.InstanceNorm2d(1, affine=True)
    block(X).sum().backward()
    assert block.spatial_attention.norm.weight.grad is not None
