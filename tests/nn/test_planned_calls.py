"""A planned call gives what the first one gave, whatever torch does around it."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import cbam
from cbam import CBAM, set_backend
from cbam.attach.wrapper import BlockEnd
from cbam.errors import CBAMError
from cbam.nn import plan as plans
from cbam.ops import cpp, dispatch
from tests.nn.test_plan import C, a_map, attention_of, block, compare, holds
from tests.ops.library import needs_operator

pytestmark = needs_operator


class ToTheEnd(nn.Module):
    """A norm with attention, an addition and a ReLU."""

    def __init__(self, attended):
        super().__init__()
        self.attended = attended

    def forward(self, x):
        shortcut = 0.5 * x
        return self.attended(x, block_end=BlockEnd(shortcut, True, lambda a: F.relu(a + shortcut)))


KINDS = ["alone", "behind a norm", "to the end of a block"]


@pytest.fixture(params=KINDS)
def planned(request):
    if request.param != KINDS[2]:
        return block(request.param)
    found = ToTheEnd(block("behind a norm"))
    found(a_map())
    return found


def plan_of(found):
    return holds(found.attended if isinstance(found, ToTheEnd) else found)


def results(found, x=None):
    """The output and all gradients."""
    x = (a_map() if x is None else x).detach().requires_grad_()
    found.zero_grad()
    y = found(x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *[p.grad.clone() for p in found.parameters()]]


def same(found, others, **tolerance):
    with set_backend("eager"):
        expected = results(found)
    for own, other in zip(others, expected, strict=True):
        torch.testing.assert_close(own, other, **tolerance)


def test_gradients(planned):
    assert plan_of(planned)
    same(planned, results(planned))


@pytest.mark.parametrize("first", [True, False])
def test_autocast_may_begin_or_end(planned, first):
    fresh = copy.deepcopy(planned)
    x = a_map(torch.bfloat16)
    for inside in (first, not first, first, not first):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            for map_ in (a_map(), x):
                y = fresh(map_)
                with set_backend("eager"):
                    expected = fresh(map_)
                assert y.dtype is expected.dtype
                torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)


def test_inference_mode_may_begin_or_end(planned):
    fresh = copy.deepcopy(planned)
    with torch.inference_mode():
        first, second = fresh(a_map()), fresh(a_map())
    assert first.is_inference()
    torch.testing.assert_close(first, second)
    same(fresh, results(fresh))
    with torch.inference_mode():
        assert fresh(a_map()).grad_fn is None
        torch.testing.assert_close(fresh(a_map()), first)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.vmap(f)(x[:, None]),
        lambda f, x: torch.func.grad(lambda a: f(a).square().sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
        lambda f, x: torch.func.functional_call(f, {n: 2 * p for n, p in f.named_parameters()}, (x,)),
        lambda f, x: torch.func.functionalize(f)(x),
        lambda f, x: torch._from_functional_tensor(f(torch._to_functional_tensor(x))),
        lambda f, x: torch.autograd.functional.hvp(lambda a: f(a).square().sum(), x, x)[1],
    ],
    ids=["vmap", "grad", "jvp", "functional_call", "functionalize", "functional tensor", "hvp"],
)
def test_transforms(planned, transform):
    got = transform(planned, a_map())
    with set_backend("eager"):
        torch.testing.assert_close(got, transform(planned, a_map()), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "trace",
    [
        lambda f: make_fx(f)(a_map()),
        lambda f: torch.fx.symbolic_trace(nn.Sequential(f)),
        lambda f: torch.jit.trace(f, a_map()),
    ],
    ids=["make_fx", "fx", "jit"],
)
def test_tracers_record_the_call(planned, trace):
    traced = trace(planned)
    x = 2 * a_map()
    with set_backend("eager"):
        torch.testing.assert_close(traced(x), planned(x))


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_forward_and_backward(planned):
    with Watch() as watch:
        got = results(planned)
    assert {"cbam.forward.default", "cbam.backward.default"} <= set(watch.seen)
    same(planned, got)


def test_a_profiler_sees_forward_and_backward(planned):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        results(planned)
    assert {"cbam::forward", "cbam::backward"} <= {event.name for event in profile.events()}


def test_another_default_device(planned):
    """A function mode that would put the operator's vectors elsewhere."""
    x = a_map()
    with torch.device("meta"):
        got = results(planned, x)
    same(planned, got)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(planned, reentrant):
    got = results(_Through(planned, lambda x: checkpoint(planned, x, use_reentrant=reentrant)))
    same(planned, got)


class _Through(nn.Module):
    def __init__(self, inner, call):
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, x):
        return self.call(x)


def test_hooks_on_saved_tensors(planned):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t.clone(), lambda t: t):
        got = results(planned)
    assert kept
    same(planned, got)
    with torch.autograd.graph.save_on_cpu():
        got = results(planned)
    same(planned, got)


def test_what_backward_needs_must_not_change_in_between(planned):
    y = planned(a_map().requires_grad_())
    with torch.no_grad():
        next(p for p in planned.parameters() if p.dim() == 4).mul_(2)
    with pytest.raises(RuntimeError, match="inplace operation"):
        y.sum().backward()


def test_second_derivatives(planned):
    def second():
        x = a_map().requires_grad_()
        (first,) = torch.autograd.grad(planned(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *planned.parameters()], allow_unused=True)

    got = second()
    with set_backend("eager"):
        torch.testing.assert_close(got, second(), rtol=1e-4, atol=1e-4)


def test_forward_mode_derivatives(planned):
    def tangent():
        with forward_ad.dual_level():
            y = planned(forward_ad.make_dual(a_map(), torch.ones_like(a_map())))
            return forward_ad.unpack_dual(y).tangent

    got = tangent()
    with set_backend("eager"):
        torch.testing.assert_close(got, tangent())


class Mine(torch.Tensor):
    pass


def test_a_map_of_another_class(planned):
    y = planned(a_map().as_subclass(Mine))
    assert type(y) is Mine
    assert "Attend" not in y.grad_fn.name()
    torch.testing.assert_close(y.as_subclass(torch.Tensor), planned(a_map()))


def test_a_weight_of_another_class(planned):
    conv = next(m for m in planned.modules() if isinstance(m, CBAM)).spatial_attention.conv
    conv.weight = nn.Parameter(torch.full((1, 2, 7, 7), 0.02).as_subclass(Mine))
    x = a_map().requires_grad_()
    assert "Attend" not in planned(x).grad_fn.name()
    compare(planned)


def test_hooks_on_all_modules_see_the_parts(planned):
    called = []
    handle = nn.modules.module.register_module_forward_pre_hook(lambda m, _: called.append(type(m)))
    try:
        planned(a_map())
    finally:
        handle.remove()
    assert CBAM in called


def test_several_threads(planned):
    maps = [a_map(n=n) for n in (1, 2, 3, 5)]
    expected = [planned(x).detach() for x in maps]
    wrong = []

    def work(i):
        for _ in range(50):
            y = planned(maps[i].clone().requires_grad_())
            y.sum().backward()
            if not torch.equal(y, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(maps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ["alone", "behind_norm"])
def test_another_thread_drops_the_plan(name, monkeypatch):
    """As the replicas of nn.DataParallel, which share the namespace of their original."""
    found = block(name.replace("_", " a "))
    expected, real = found(a_map()), plans.Plan.holds

    def dropped(self, *modules):
        answer = real(self, *modules)
        setattr(plans.plans_of(attention_of(found)), name, None)
        return answer

    monkeypatch.setattr(plans.Plan, "holds", dropped)
    assert torch.equal(found(a_map()), expected)


def test_a_replica(planned):
    """What nn.DataParallel makes of each module; its tensors are no parameters."""

    def replicate(module):
        copied = module._replicate_for_data_parallel()
        for name, child in module.named_children():
            setattr(copied, name, replicate(child))
        for name, p in module._parameters.items():
            setattr(copied, name, None if p is None else 2 * p)
        return copied

    replica, doubled = replicate(planned), copy.deepcopy(planned)
    with torch.no_grad():
        for p in doubled.parameters():
            p.mul_(2)
    expected = planned(a_map())
    for _ in range(2):
        torch.testing.assert_close(replica(a_map()), doubled(a_map()))
        assert torch.equal(planned(a_map()), expected)


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize(
    "change",
    [
        lambda n: setattr(n, "eps", 2.0),
        lambda n: n.train(),
        lambda n: setattr(n, "running_var", torch.full((1,), 9.0)),
        lambda n: n.running_mean.fill_(2.0),
        lambda n: n.register_forward_hook(lambda *a: 2 * a[2]),
        lambda n: setattr(n, "track_running_stats", False),
    ],
    ids=["eps", "training", "running statistics", "in place", "a hook", "not tracked"],
)
def test_what_changes_in_the_inner_norm_alone(kind, change):
    found = block(kind, "official")
    norm = attention_of(found).spatial_attention.norm
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.running_mean.fill_(0.3)
    change(norm)
    compare(found)
    compare(found)


def test_who_listens_hears_every_call_and_then_none(planned):
    fresh = copy.deepcopy(planned)
    with cbam.attention_maps(fresh) as maps:
        for _ in range(3):
            fresh(a_map())
    (site,) = maps
    compare(fresh)
    assert len(maps.calls(site)) == 3


def outcome(call, x):
    try:
        return call(x)
    except Exception as error:
        return type(error), str(error).splitlines()[0]


@pytest.mark.parametrize(
    "change",
    [Tensor.int, Tensor.bool, Tensor.to_sparse, Tensor.to_mkldnn, lambda x: x.to("meta"), lambda x: x[0]],
)
def test_maps_that_the_operator_does_not_take(planned, change):
    x = change(a_map())
    got, expected = outcome(planned, x), outcome(copy.deepcopy(planned), x)
    assert type(got) is type(expected)
    if isinstance(expected, tuple):
        assert got == expected
    elif not x.is_meta:
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["unavailable_reason", "unsupported_reason"])
def test_the_operator_cannot_run(planned, name, monkeypatch):
    x = a_map().requires_grad_()
    assert "Attend" in planned(x).grad_fn.name()
    monkeypatch.setattr(cpp, name, lambda *_: "not here")
    monkeypatch.setattr(dispatch, "_warn_once", lambda reason: None)
    assert "Attend" not in planned(x).grad_fn.name()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_statistics_of_a_single_value(kind):
    found, x = block(kind, "official").train(), torch.ones(1, C, 1, 1)
    for _ in range(2):
        found(a_map())
    got = outcome(found, x)
    assert isinstance(got, tuple)
    assert got == outcome(copy.deepcopy(found), x)


def test_a_map_of_other_channels_gets_the_modules_own_message():
    module = CBAM(C)
    module(a_map())
    assert holds(module)
    with pytest.raises(CBAMError, match=f"was built for {C} channels, but the map has {C + 1}"):
        module(torch.randn(2, C + 1, 5, 4))


def test_weights_without_memory_of_their_own():
    module = CBAM(C)
    x = a_map()
    expected = module(x)
    assert holds(module)
    functional = {name: torch._to_functional_tensor(weight) for name, weight in module.named_parameters()}
    found = torch.func.functional_call(module, functional, (x,))
    assert torch.equal(torch._from_functional_tensor(found), expected)
