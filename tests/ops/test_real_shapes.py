"""Is the operator right on the shapes that networks have? Against plain torch in float64, as flash-attention does it.

`pytest tests/ops --device cuda` takes the ends of ResNet-50's stages; on the CPU, by default, the maps are small. The
error may be twice that of plain torch in the same type (root of the mean square; four times for the largest element).
Up to four times as much is imprecise, an expected failure; more is wrong, and so is any difference between two runs.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cbam
from cbam.bench.device import Device
from cbam.evaluate.timing import capture
from cbam.nn import after_norm
from cbam.ops.dispatch import set_backend

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# Of the maps, first those of most networks.
FAST, EXACT = ("bfloat16", "channels_last"), ("float32", "contiguous")
TYPES = [FAST, ("bfloat16", "contiguous"), ("float16", "channels_last"), ("float32", "channels_last"), EXACT,
         ("float16", "contiguous")]  # fmt: skip
STAGES = [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
ODD = [(2, 33, 17, 3), (1, 257, 5, 5), (3, 1, 4, 1), (1, 5, 1, 1), (1, 100, 2, 31), (9, 7, 3, 3)]
LARGE = (1340, 512, 56, 56)
"""More than 2**31 elements."""
RULE, LIMIT = 2.0, 8.0
"""The error allowed, and the one at which the operator is wrong, as multiples of plain torch's in the same type."""
# Errors beyond those, relative to the values: root of the mean square, and largest.
RMS_SLACK = {"float32": 5e-6, "bfloat16": 4e-4, "float16": 5e-5}
MAX_SLACK = {"float32": 3e-5, "bfloat16": 4e-3, "float16": 5e-4}


@dataclass(frozen=True)
class Case:
    """One map: attention alone (module), behind a norm, or with all of a residual block's end (epilogue)."""

    kind: str
    shape: tuple[int, int, int, int]
    dtype: str
    layout: str
    training: bool = False
    preset: str = "paper"

    def __str__(self):
        words = [
            self.kind,
            "training" if self.training else "eval",
            self.preset,
            "x".join(map(str, self.shape)),
        ]
        return "-".join([*words, self.dtype, self.layout])


class Site(nn.Module):
    """Attention as networks have it."""

    def __init__(self, case):
        super().__init__()
        self.kind = case.kind
        self.norm = None if case.kind == "module" else nn.BatchNorm2d(case.shape[1])
        self.attention = cbam.CBAM(case.shape[1], preset=case.preset)

    def forward(self, x, residual):
        """Return relu(attention(norm(x)) + residual), or what there is of it here; in one call if it is possible."""
        if self.norm is None:
            return self.attention(x)
        end = (residual, True) if self.kind == "epilogue" else ()
        together = after_norm.attend(self.norm, self.attention, x, *end)
        if together is not None:
            return together
        y = self.attention(self.norm(x))
        return torch.relu(y + residual) if end else y

    def runs_apart(self, x, residual):
        if self.norm is None:
            return False
        end = (residual, True) if self.kind == "epilogue" else ()
        site = copy.deepcopy(self)
        with torch.no_grad():
            return after_norm.attend(site.norm, site.attention, x, *end) is None


class Maps:
    """Random weights and maps of a case."""

    def __init__(self, case, device, seed):
        self.dtype = case.dtype
        torch.manual_seed(seed)
        self.site = randomise(Site(case)).to(device).train(case.training)
        generator = torch.Generator(device).manual_seed(seed)
        new: dict[str, Any] = {"generator": generator, "device": device}
        as_maps: dict[str, Any] = {"dtype": DTYPES[case.dtype], "memory_format": LAYOUTS[case.layout]}
        x, self.residual, self.gradient = (torch.randn(case.shape, **new).to(**as_maps) for _ in range(3))
        # One channel stands out at each position, so that rounding seldom decides which one is the largest.
        n, c, *positions = case.shape
        top = torch.randint(c, (n, 1, *positions), **new)
        self.x = x.scatter_add(1, top, torch.full_like(top, 8, dtype=x.dtype)).to(**as_maps)
        if case.kind == "epilogue":
            # The residual keeps sums away from where rounding would decide what the ReLU lets through.
            site = copy.deepcopy(self.site).double()
            site.kind = "norm"
            with set_backend("eager"), torch.no_grad():
                total = site(self.x.double(), self.residual) + self.residual.double()
            self.residual = self.residual + 0.5 * (total.abs() < 0.1).to(self.residual.dtype)

    def outcome(self, backend, *, exact=False, call=None):
        """Output, all gradients and all statistics, computed by a copy of the site; `call` makes what is called."""
        site = copy.deepcopy(self.site)
        x, residual, gradient = (
            t.double() if exact else t.clone() for t in (self.x, self.residual, self.gradient)
        )
        site = site.double() if exact else site
        x.requires_grad_()
        residual.requires_grad_(site.kind == "epilogue")
        with set_backend(backend):
            y = (call(site) if call else site)(x, residual)
            weights = dict(site.named_parameters())
            inputs = {"x": x, **({"residual": residual} if residual.requires_grad else {}), **weights}
            gradients = torch.autograd.grad(y, list(inputs.values()), gradient)
        buffers = {name: b for name, b in site.named_buffers() if b.is_floating_point()}
        return {"y": y.detach(), **dict(zip(inputs, gradients, strict=True)), **buffers}

    def judge(self, found):
        """Compare with float64, beside plain torch in the same type."""
        plain, exact = self.outcome("eager"), self.outcome("eager", exact=True)
        shares = {name: share(found[name], plain[name], value, self.dtype) for name, value in exact.items()}
        broken = {name: text for name, (over, text) in shares.items() if over > 1.0}
        worst = max(over for over, _ in shares.values())
        return Verdict(worst, [f"{name}: {text}" for name, text in broken.items()])


@dataclass
class Verdict:
    """What a comparison gives; `share` is the error as a share of what the rule allows."""

    share: float
    failures: list[str] = field(default_factory=list)

    @property
    def status(self):
        return "ok" if not self.failures else "wrong" if self.share > LIMIT / RULE else "imprecise"


def share(found, plain, exact, dtype):
    """The error as a share of what the rule allows, and the numbers."""
    if not exact.numel():
        return 0.0, ""
    ours, theirs = (t.double() - exact for t in (found, plain))
    single, shares = exact.numel() == 1, []
    for measure, slack, factor in ((rms, RMS_SLACK, RULE), (largest, MAX_SLACK, 2 * RULE)):
        if single and measure is rms:
            continue
        # A single number may be a small difference of large sums, and plain torch's right by luck.
        room = slack[dtype] * (10 if single else 1) * (measure(exact) + 1e-6)
        over = measure(ours) / (factor * measure(theirs) + room)
        shares.append((math.inf if math.isnan(over) else over, measure(ours), measure(theirs)))
    worst = max(shares)
    return worst[0], f"error {worst[1]:.2e}, plain torch's {worst[2]:.2e}, values {rms(exact):.2e}"


def rms(t):
    return float(t.square().mean().sqrt())


def largest(t):
    return float(t.abs().amax())


def same_bits(a, b):
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def randomise(site):
    """Give the norms weights that are not their initial ones, and the gates values that are not all saturated."""
    with torch.no_grad():
        for name, parameter in site.named_parameters():
            if parameter.dim() == 1:
                weight = name.endswith("weight")
                parameter.copy_(
                    torch.rand_like(parameter) + 0.5 if weight else torch.randn_like(parameter) * 0.1
                )
            elif "mlp.0" in name:
                parameter.mul_(0.25)
        if site.norm is not None:
            site.norm.weight.mul_(torch.where(torch.rand_like(site.norm.weight) < 0.2, -1.0, 1.0))
            site.norm.running_mean.normal_().mul_(0.2)
            site.norm.running_var.uniform_(0.5, 1.5)
    return site


def judged(case, device, check):
    """Fail, or expect to fail, if `check` finds the same on two maps: a near tie of two maxima may go either way."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # plain torch shall be as exact as it can be
    try:
        for seed in (0, 1):
            maps = Maps(case, device, seed)
            with set_backend(backend_of(device)):
                if maps.site.runs_apart(maps.x, maps.residual):
                    pytest.skip("norm and attention run apart here")
            verdict = check(maps)
            if verdict.status == "ok":
                return
    finally:
        torch.backends.cudnn.allow_tf32 = before
    if verdict.status == "imprecise":
        pytest.xfail("imprecise: " + "; ".join(verdict.failures))
    pytest.fail("; ".join(verdict.failures))


def backend_of(device):
    found = Device(device.type)
    return found.backend if found.operator_missing() is None else "eager"


def twice(maps, device):
    backend = backend_of(device)
    found, again = maps.outcome(backend), maps.outcome(backend)
    differ = [name for name, value in found.items() if not same_bits(value, again[name])]
    assert not differ, f"two runs differ in {', '.join(differ)}"
    assert found["y"].stride() == maps.x.stride()
    return maps.judge(found)


def values_of(on_gpu):
    batch, stages, odd = (
        (32, STAGES, ODD) if on_gpu else (2, [(24, 6, 6), (40, 4, 3)], [(2, 33, 17, 3), (3, 1, 4, 1)])
    )
    ends = [stages[0], stages[-1]]
    yield from (Case("module", (batch, *stage), *kind) for kind in TYPES for stage in stages)
    for kind in (FAST, EXACT):
        yield from (Case("epilogue", (batch, *stage), *kind, training=True) for stage in stages)
        for stage in ends:
            for training in (True, False):
                yield Case("norm", (batch, *stage), *kind, training=training)
                yield Case("module", (batch, *stage), *kind, training=training, preset="official")
            yield Case("epilogue", (batch, *stage), *kind)
            yield Case("module", (1, *stage), *kind)
            yield Case("epilogue", (1, *stage), *kind, training=True)
        for shape in odd:
            yield Case("module", shape, *kind)
            if shape[0] * shape[2] * shape[3] > 1:
                yield Case("epilogue", shape, *kind, training=True)


def ends_of(on_gpu):
    last = (32, *STAGES[-1]) if on_gpu else (2, 24, 5, 4)
    return [Case("module", last, *FAST), Case("epilogue", last, *FAST, training=True)]


def pytest_generate_tests(metafunc):
    on_gpu = metafunc.config.getoption("--device") == "cuda"
    for argument, cases in (("value_case", values_of), ("end_case", ends_of)):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(dict.fromkeys(cases(on_gpu))), ids=str)


def test_values(value_case, device):
    """Output, gradients and statistics, twice with the same bits, in the map's memory format."""
    judged(value_case, device, lambda maps: twice(maps, device))


def test_a_graph_gives_the_bits_of_a_call(end_case, device):
    """On other values than it was captured with."""
    maps = Maps(end_case, device, 0)
    x, weights = maps.x.clone().requires_grad_(), list(maps.site.parameters())
    held: list[Tensor] = []

    def step():
        y = maps.site(x, maps.residual)
        held[:] = [y.detach(), *torch.autograd.grad(y, [x, *weights], maps.gradient)]

    with set_backend(backend_of(device)):
        replay = capture([step], device)
        captured = held[:] if device.type == "cuda" else None
        with torch.no_grad():
            x.copy_(x.flip(0) * 0.5)
        replay()
        got = [t.clone() for t in captured or held]
        step()
    assert [i for i, (a, b) in enumerate(zip(got, held, strict=True)) if not same_bits(a, b)] == []


def test_one_graph_under_torch_compile(end_case, device):
    torch._dynamo.reset()
    compiler = "inductor" if device.type == "cuda" else "aot_eager"

    def compiled(site):
        return torch.compile(site, fullgraph=True, dynamic=False, backend=compiler)

    judged(end_case, device, lambda maps: maps.judge(maps.outcome(backend_of(device), call=compiled)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_under_autocast_the_map_keeps_its_type(dtype, device):
    shape = (32, *STAGES[-1]) if device.type == "cuda" else (2, 24, 5, 4)

    def cast(site):
        def run(x, residual):
            with torch.autocast(device.type, torch.bfloat16):
                return site(x, residual)

        return run

    def check(maps):
        found = maps.outcome(backend_of(device), call=cast)
        assert found["y"].dtype == maps.x.dtype
        return maps.judge(found)

    judged(Case("module", shape, dtype, "channels_last"), device, check)


def test_the_last_samples_of_a_map_past_int32_bfloat16_channels_last(device):
    """They are what they are alone."""
    samples, *size = LARGE if device.type == "cuda" else (4, 8, 3, 3)
    needed = 5 * 2 * samples * math.prod(size)
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free memory")

    def check(few):
        x, gradient = (
            torch.empty(
                (samples, *size), dtype=t.dtype, device=device, memory_format=torch.channels_last
            ).normal_()
            for t in (few.x, few.gradient)
        )
        x[-2:], gradient[-2:] = few.x, few.gradient
        x.requires_grad_()
        with set_backend(backend_of(device)):
            y = few.site(x, few.residual)
            (dx,) = torch.autograd.grad(y, [x], gradient)
        found = few.outcome(backend_of(device))
        return few.judge(found | {"y": y.detach()[-2:].clone(), "x": dx[-2:].clone()})

    judged(Case("module", (2, *size), *FAST), device, check)


class TestTheRule:
    case = Case("module", (2, 16, 9, 8), "bfloat16", "channels_last")

    def test_plain_torch_keeps_it_four_times_its_error_is_imprecise_and_twenty_times_wrong(self):
        maps = Maps(self.case, torch.device("cpu"), 0)
        plain, exact = maps.outcome("eager"), maps.outcome("eager", exact=True)

        def verdict(factor):
            return maps.judge(plain | {"y": exact["y"] + factor * (plain["y"] - exact["y"])})

        assert [verdict(factor).status for factor in (1, 4, 20)] == ["ok", "imprecise", "wrong"]
        assert verdict(20).failures[0].startswith("y: error")

    def test_nan_is_wrong(self):
        maps = Maps(self.case, torch.device("cpu"), 0)
        plain = maps.outcome("eager")
        plain["x"][0, 0, 0, 0] = float("nan")
        assert maps.judge(plain).status == "wrong"

    def test_an_operator_that_answers_differently_each_time_is_wrong(self, monkeypatch):
        calls, right = [], cbam.CBAM.attend

        def restless(self, x):
            calls.append(1)
            return right(self, x) * (1 + 0.1 * len(calls))

        monkeypatch.setattr(cbam.CBAM, "attend", restless)
        with pytest.raises(AssertionError, match="two runs differ in y"):
            judged(self.case, torch.device("cpu"), lambda maps: twice(maps, torch.device("cpu")))

    def test_too_large_an_error_fails_and_a_norm_that_stays_apart_is_skipped(self, monkeypatch):
        cpu = torch.device("cpu")
        with pytest.raises(pytest.fail.Exception, match="y: far"):
            judged(self.case, cpu, lambda maps: Verdict(9.0, ["y: far"]))
        with pytest.raises(pytest.xfail.Exception, match="imprecise: y: near"):
            judged(self.case, cpu, lambda maps: Verdict(2.0, ["y: near"]))
        monkeypatch.setattr(after_norm, "attend", lambda *_: None)
        with pytest.raises(pytest.skip.Exception, match="run apart"):
            judged(Case("epilogue", (2, 16, 9, 8), *FAST), cpu, lambda maps: pytest.fail("was called"))
