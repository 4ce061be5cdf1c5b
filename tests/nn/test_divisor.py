"""Spatial logits divided by a number, as the identity start has them: one function of another variable."""

import copy
import pickle

import pytest
import torch
from torch import nn

from cbam import CBAM, CBAMError, SpatialAttention, SqueezeExcitation, set_backend
from cbam.nn import plan as plans
from tests.ops.library import needs_operator

FORMS = {
    "paper": {},
    "one map": {"spatial_descriptor": "max"},
    "learned descriptor": {"spatial_descriptor": "conv"},
    "parallel": {"arrangement": "parallel"},
    "spatial first": {"arrangement": "spatial-channel"},
    "hardsigmoid": {"gate": "hardsigmoid"},
}
FAN_IN = {"one map": 1, "learned descriptor": 1}
every_backend = pytest.mark.parametrize(
    "backend", ["eager", pytest.param("auto", marks=needs_operator)], ids=["eager", "operator"]
)


def pair(dims=2, name="paper", dtype=torch.float64):
    """A gate whose logits are divided by its fan-in, and the paper's with a divided kernel."""
    torch.manual_seed(0)
    block = CBAM(8, 2, 3, dims=dims, dtype=dtype, **FORMS[name])
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    other = copy.deepcopy(block)
    fan_in = block.spatial_attention.conv.weight[0].numel()
    block.spatial_attention.set_divisor(fan_in)
    with torch.no_grad():
        other.spatial_attention.conv.weight /= fan_in
    return block, other


def a_map(dims=2, dtype=torch.float64, n=2):
    return torch.randn(n, 8, *(5, 4, 3)[:dims], generator=torch.Generator().manual_seed(1)).to(dtype)


def outcome(block, x):
    x = x.clone().requires_grad_()
    y = block(x)
    found = torch.autograd.grad(
        (y * torch.arange(y.numel()).view_as(y).cos()).sum(), [x, *block.parameters()]
    )
    return y.detach(), dict(zip(["x", *dict(block.named_parameters())], found, strict=True))


@every_backend
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", FORMS)
def test_the_function_is_that_of_a_divided_kernel(name, dims, backend):
    block, other = pair(dims, name)
    fan_in = FAN_IN.get(name, 2) * 3**dims
    assert block.state_dict()["spatial_attention.variance"] == fan_in**2
    with set_backend(backend):
        (y, found), (expected, theirs) = outcome(block, a_map(dims)), outcome(other, a_map(dims))
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-12)
    theirs["spatial_attention.conv.weight"] = theirs["spatial_attention.conv.weight"] / fan_in
    for key, value in found.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-10, atol=1e-11, msg=key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    block, other = pair(dtype=torch.float32)
    x = a_map(dtype=dtype)
    expected = other(x).float()
    torch.testing.assert_close(block(x).float(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(block.to(dtype)(x).float(), expected, rtol=0.02, atol=0.02)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(block.float()(x).float(), expected, rtol=0.02, atol=0.02)


def test_set_identity_divides_where_no_norm_does_it_and_keeps_the_bits():
    x = a_map(dtype=torch.float32)
    for preset, divides in (("paper", True), ("official", False), ("timm", False)):
        block = CBAM(8, preset=preset).eval()
        block.set_identity()
        assert ("spatial_attention.variance" in block.state_dict()) == divides
        assert torch.equal(block(x), x)
    alone = SpatialAttention()
    alone.set_identity()
    assert alone.state_dict()["variance"] == 32**2
    assert "logits / 32" in repr(alone)
    assert torch.equal(alone(x), x)
    se = SqueezeExcitation(8)
    se.set_identity()
    assert not any("variance" in key for key in se.state_dict())


def test_the_file_decides():
    block, _ = pair(dtype=torch.float32)
    x = a_map(dtype=torch.float32)
    fresh = CBAM(8, 2, 3)
    fresh.load_state_dict(block.state_dict(), strict=True)
    assert torch.equal(fresh(x), block(x))
    old = {key: value for key, value in block.state_dict().items() if not key.endswith("variance")}
    paper = CBAM(8, 2, 3)
    paper.load_state_dict(old, strict=True)
    fresh.load_state_dict(old, strict=True)  # a file of before there was a divisor
    assert torch.equal(fresh(x), paper(x))
    assert not torch.equal(fresh(x), block(x))
    official = CBAM(8, 2, 3, preset="official")
    official.set_identity()
    official.load_state_dict(CBAM(8, 2, 3, preset="official").state_dict(), strict=True)


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies(how):
    block, _ = pair()
    x = a_map()
    block(x)
    copied = how(block)
    assert torch.equal(copied(x), block(x))
    copied.spatial_attention.set_divisor(None)
    assert not torch.equal(copied(x), block(x))


def test_modules_that_were_pickled_before_run_as_they_did():
    block = CBAM(8, 2, 3)
    x = a_map(dtype=torch.float32)
    expected = block(x)
    old = copy.deepcopy(block)
    del old.spatial_attention._buffers["variance"]
    for backend in ("eager", "auto"):
        with set_backend(backend):
            torch.testing.assert_close(old(x), expected)
    assert "logits /" not in repr(old)
    old.set_identity()
    assert torch.equal(old(x), x)
    assert old.state_dict()["spatial_attention.variance"] == 16**2


@pytest.mark.parametrize("how", ["file", "pickle"])
def test_the_root_of_fan_in_of_development_versions(how):
    block, _ = pair(dtype=torch.float32)
    block.spatial_attention.set_divisor(18**0.5)
    x = a_map(dtype=torch.float32)
    expected = block(x)
    if how == "pickle":
        block.spatial_attention._buffers["fan_in"] = block.spatial_attention._buffers.pop("variance")
        loaded = pickle.loads(pickle.dumps(block))
    else:
        state = {key.replace("variance", "fan_in"): value for key, value in block.state_dict().items()}
        loaded = CBAM(8, 2, 3)
        loaded.load_state_dict(state, strict=True)
    assert torch.equal(loaded(x), expected)
    assert "spatial_attention.variance" in loaded.state_dict()
    assert not [key for key in loaded.state_dict() if "fan_in" in key]


@pytest.mark.parametrize("divisor", [0, -1.0, float("inf"), float("nan")])
def test_what_divides_is_positive(divisor):
    with pytest.raises(CBAMError, match="positive number"):
        SpatialAttention().set_divisor(divisor)
    with pytest.raises(CBAMError, match="divides already"):
        SpatialAttention(spatial_norm=True).set_divisor(2.0)


@needs_operator
def test_a_planned_call_divides_and_notices_a_change():
    block, other = pair(dtype=torch.float32)
    x = a_map(dtype=torch.float32)
    for _ in range(2):
        torch.testing.assert_close(block(x), other(x))
    assert plans.plans_of(block).alone.holds(block)
    block.spatial_attention.set_divisor(None)
    undivided = copy.deepcopy(block)
    for _ in range(2):
        assert torch.equal(block(x), undivided(x))
    block.spatial_attention.set_divisor(18)
    torch.testing.assert_close(block(x), other(x))
    block.spatial_attention.variance.mul_(4)
    half = copy.deepcopy(block)
    torch.testing.assert_close(block(x), half(x))


@every_backend
def test_second_derivatives(backend):
    block, _ = pair()
    with set_backend(backend):
        assert torch.autograd.gradgradcheck(block, (a_map(n=1).requires_grad_(),))


@pytest.mark.parametrize("dims", [1, 2])
def test_exporters_and_tracers(dims):
    block, _ = pair(dims, dtype=torch.float32)
    model, x = nn.Sequential(block).eval(), a_map(dims, torch.float32)
    expected = model(x)
    exported = torch.export.export(model, (x,)).run_decompositions()
    torch.testing.assert_close(exported.module()(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(block)(x), expected)
    with pytest.warns((FutureWarning, DeprecationWarning), match="deprecated"):  # torch 2.11: the latter
        traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), expected)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(torch.func.vmap(block)(x[:, None])[:, 0], expected)
