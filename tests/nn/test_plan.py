"""A plan is never used after something changed that it depends on."""

import copy
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from cbam import CBAM, set_backend
from cbam.attach.wrapper import WithAttention
from cbam.nn import plan as plans
from cbam.nn.cbam import CBAM as Module
from tests.ops.library import needs_operator

pytestmark = needs_operator

C = 8


def a_map(dtype=torch.float32, n=2):
    return torch.randn(n, C, 5, 4, generator=torch.Generator().manual_seed(1)).to(dtype)


def block(kind, preset="paper"):
    """The module alone, or behind a norm, after two calls: the second one as planned."""
    torch.manual_seed(0)
    attention, norm = CBAM(C, 2, preset=preset), nn.BatchNorm2d(C)
    with torch.no_grad():
        for p in attention.parameters():  # small, so that no gate is near 0 or 1
            p.uniform_(-0.1, 0.2)
        for t in (norm.weight, norm.running_var):
            t.uniform_(0.5, 2.0)
    found = (attention if kind == "alone" else WithAttention(norm, attention)).eval()
    for _ in range(2):
        found(a_map())
    return found


def attention_of(found):
    return found if isinstance(found, CBAM) else found.cbam


def the_plan(found):
    own = plans.plans_of(attention_of(found))
    return own.alone if isinstance(found, CBAM) else own.behind_norm


def holds(found):
    plan = the_plan(found)
    return plan is not None and plan.holds(attention_of(found), getattr(found, "host", None))


def scaled(factor):
    return nn.Parameter(torch.full((1, 2, 7, 7), factor))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Other(nn.Conv2d):
    def forward(self, x):
        return 3 * super().forward(x)


def parametrize(m):
    nn.utils.parametrize.register_parametrization(m.spatial_attention.conv, "weight", Doubled())


def weight_norm(m):
    layer = parametrizations.weight_norm(m.channel_attention.mlp[0])
    layer.parametrizations.weight.original0.data.mul_(3)


def replace_first_layer(m):
    m.channel_attention.mlp[0] = nn.Conv2d(C, 4, 1)


def load_a_state(m, **options):
    state = {name: 2 * t for name, t in m.state_dict().items()}
    m.load_state_dict(state, **options)


def new_class(m):
    m.spatial_attention.conv.__class__ = Other


def new_forward(m):
    conv = m.spatial_attention.conv
    conv.forward = lambda x: 3 * nn.Conv2d.forward(conv, x)


def set_data(m):
    m.spatial_attention.conv.weight.data = torch.full((1, 2, 7, 7), 0.03)


CHANGES = {
    "a weight is replaced": lambda m: setattr(m.spatial_attention.conv, "weight", scaled(0.03)),
    "a weight gets other memory": set_data,
    "a weight is changed in place": lambda m: m.channel_attention.mlp[2].weight.data.mul_(2),
    "a state is loaded": load_a_state,
    "a state is assigned": lambda m: load_a_state(m, assign=True),
    "a bias appears": lambda m: setattr(m.channel_attention.mlp[0], "bias", nn.Parameter(torch.ones(4))),
    "the gate's scale": lambda m: m.spatial_attention.set_gate_scale(2.0),
    "to the identity": lambda m: m.set_identity(),
    "a layer is replaced": replace_first_layer,
    "the activation between is replaced": lambda m: m.channel_attention.mlp.__setitem__(1, nn.Tanh()),
    "a layer's class": new_class,
    "a layer's forward": new_forward,
    "a parametrisation": parametrize,
    "weight norm": weight_norm,
    "pruning": lambda m: prune.l1_unstructured(m.spatial_attention.conv, "weight", 0.5),
    "a forward hook": lambda m: m.spatial_attention.conv.register_forward_hook(lambda *a: 2 * a[2]),
    "a hook in front": lambda m: m.channel_attention.mlp.register_forward_pre_hook(lambda _, a: (2 * a[0],)),
    "switched off": lambda m: setattr(m, "enabled", False),
    "a gate is switched off": lambda m: setattr(m.spatial_attention, "enabled", False),
    "the gate's activation": lambda m: [setattr(g, "activation", "hardsigmoid") for g in m.gates],
    "the pooling": lambda m: setattr(m.channel_attention, "channel_pooling", "avg"),
    "a gate of its own": lambda m: setattr(m.spatial_attention, "gate", lambda x: torch.full_like(x, 0.3)),
}
NORM = {
    "epsilon": lambda n: setattr(n, "eps", 0.5),
    "running statistics": lambda n: setattr(n, "running_var", torch.full((C,), 3.0)),
    "running statistics in place": lambda n: n.running_mean.fill_(3.0),
    "weights": lambda n: setattr(n, "weight", nn.Parameter(torch.full((C,), 3.0))),
    "without weights": lambda n: setattr(n, "weight", None),
    "without statistics": lambda n: [setattr(n, "running_mean", None), setattr(n, "running_var", None)],
    "a hook": lambda n: n.register_forward_hook(lambda *a: 2 * a[2]),
    "a hook in front": lambda n: n.register_forward_pre_hook(lambda _, a: (2 * a[0],)),
    "its forward": lambda n: setattr(n, "forward", lambda x: 3 * x),
}


def compare(found, x=None):
    """As plain torch computes it from the same modules."""
    x = a_map() if x is None else x
    y = found(x)
    with set_backend("eager"):
        torch.testing.assert_close(y, found(x))


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_the_attention_is_seen(kind, change):
    found = block(kind)
    assert holds(found)
    before = found(a_map())
    CHANGES[change](attention_of(found))
    assert not torch.equal(found(a_map()), before)
    compare(found)
    compare(found)  # and once more, as planned anew where that is possible


@pytest.mark.parametrize("change", NORM)
def test_what_changes_in_the_norm_is_seen(change):
    found = block("behind a norm")
    assert holds(found)
    before = found(a_map())
    NORM[change](found.host)
    assert not torch.equal(found(a_map()), before)
    compare(found)
    compare(found)


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
def test_training_and_evaluation(kind, preset):
    found = block(kind, preset)
    twin = copy.deepcopy(found)
    for training in (True, True, False, False, True, False):
        found.train(training)
        twin.train(training)
        y = found(a_map())
        with set_backend("eager"):
            torch.testing.assert_close(y, twin(a_map()))
        for (name, own), other in zip(found.state_dict().items(), twin.state_dict().values(), strict=True):
            torch.testing.assert_close(own, other, msg=name)
    assert holds(found)


def test_only_the_norm_in_training():
    found = block("behind a norm")
    found.host.train()
    twin = copy.deepcopy(found)
    for _ in range(2):
        y = found(a_map())
        with set_backend("eager"):
            torch.testing.assert_close(y, twin(a_map()))
    assert found.host.num_batches_tracked == twin.host.num_batches_tracked == 2


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(kind, dtype):
    found = block(kind)
    assert found(a_map(dtype) if kind == "alone" else a_map()).dtype is (
        dtype if kind == "alone" else torch.float32
    )
    found.to(dtype)
    x = a_map(dtype)
    y = found(x)
    with set_backend("eager"):
        torch.testing.assert_close(y, found(x), rtol=1e-1, atol=1e-1)
    found.float()
    compare(found)


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
def test_which_tensors_want_a_gradient(kind):
    found = block(kind)
    conv = attention_of(found).spatial_attention.conv
    found.requires_grad_(False)
    assert found(a_map()).grad_fn is None
    conv.weight.requires_grad_()
    found(a_map()).sum().backward()
    assert [n for n, p in found.named_parameters() if p.grad is not None] == [
        n for n, p in found.named_parameters() if p is conv.weight
    ]
    conv.weight.requires_grad_(False)
    x = a_map().requires_grad_()
    found(x).sum().backward()
    with set_backend("eager"):
        (expected,) = torch.autograd.grad(found(x).sum(), x)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
def test_a_gate_scale_that_wants_a_gradient_gets_one(kind):
    found = block(kind)
    gate = attention_of(found).spatial_attention
    gate.set_gate_scale(2.0)
    found(a_map()), found(a_map())
    gate.gate_scale.requires_grad_()
    found(a_map()).sum().backward()
    assert gate.gate_scale.grad is not None


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
def test_other_maps(kind):
    found = block(kind)
    for x in (
        a_map().contiguous(memory_format=torch.channels_last),
        a_map()[:, :, ::2],
        a_map(n=7),
        a_map(n=0),
        torch.randn(2, C, 1, 1),
        torch.randn(1, C, 9, 3),
    ):
        compare(found, x)
    with pytest.raises((cbam_error(), RuntimeError, ValueError)):
        found(torch.randn(2, C + 1, 4, 4))


def cbam_error():
    from cbam.errors import CBAMError

    return CBAMError


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
def test_a_copy_has_its_own(kind):
    found = block(kind)
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found)), copy.copy(found)):
        attention_of(copied).spatial_attention.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        compare(copied)
        compare(found)
    stored = io.BytesIO()
    torch.save(found, stored)
    stored.seek(0)
    compare(torch.load(stored, weights_only=False))


def test_the_attention_behind_another_norm():
    found = block("behind a norm")
    other = WithAttention(nn.BatchNorm2d(C).eval(), found.cbam)
    with torch.no_grad():
        other.host.running_mean.fill_(1.0)
    for _ in range(2):
        compare(other)
        compare(found)


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
def test_a_method_of_the_class(kind, monkeypatch):
    found = block(kind)
    monkeypatch.setattr(Module, "attend", lambda self, x: 5 * x)
    compare(found)


def test_hooks_on_all_modules():
    found = block("behind a norm")
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: called.append(type(m).__name__))
    try:
        found(a_map())
    finally:
        handle.remove()
    assert {"BatchNorm2d", "CBAM"} <= set(called)


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
def test_the_backend(kind):
    found = block(kind)
    leaf = a_map().requires_grad_()
    assert "Attend" in found(leaf).grad_fn.name()
    with set_backend("eager"):
        assert "Attend" not in found(leaf).grad_fn.name()
    assert "Attend" in found(leaf).grad_fn.name()


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
def test_an_attribute_that_cannot_be_compared(kind):
    found = block(kind)
    attention_of(found).seen = torch.zeros(3)
    found(a_map())
    attention_of(found).seen = torch.ones(3)
    compare(found)


def new_hooks(m):
    m.spatial_attention.conv._forward_hooks = OrderedDict()
    m.spatial_attention.conv.register_forward_hook(lambda *a: 2 * a[2])


def new_state(m):
    conv = m.spatial_attention.conv
    conv.__setstate__(copy.deepcopy(conv).__dict__)
    conv.weight.data.mul_(3)


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
@pytest.mark.parametrize("change", [new_hooks, new_state])
def test_a_dict_of_a_module_is_replaced(kind, change):
    found = block(kind)
    before = found(a_map())
    change(attention_of(found))
    assert not torch.equal(found(a_map()), before)
    compare(found)


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
def test_a_weight_in_two_places(kind):
    attention, norm = CBAM(C, 1), nn.BatchNorm2d(C)
    first, last = attention.channel_attention.layers
    last.weight = first.weight
    found = (attention if kind == "alone" else WithAttention(norm, attention)).eval()
    compare(found)
    first.weight = nn.Parameter(-last.weight.detach())
    compare(found)


@pytest.mark.parametrize("kind", ["alone", "behind a norm"])
def test_an_attribute_of_the_class(kind, monkeypatch):
    found = block(kind)
    monkeypatch.setattr(CBAM, "enabled", False)
    x = a_map()
    torch.testing.assert_close(found(x), x if kind == "alone" else found.host(x))
