"""Is the operator right on this device? Against plain torch in float64, as flash-attention judges its kernels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import cbam
from cbam.bench.settings import DTYPES, MEMORY_FORMATS
from cbam.nn import after_norm
from cbam.ops.dispatch import set_backend
from gpu.device import Machine
from gpu.timing import capture

OK, IMPRECISE, WRONG, SKIPPED = "ok", "imprecise", "wrong", "skipped"
"""What a check finds. Imprecise: more than twice plain torch's error; wrong: so much more that it is no rounding."""
RULE, LIMIT = 2.0, 8.0
"""The error allowed, and the one at which the operator is wrong, as multiples of plain torch's in the same type."""
# Errors beyond those, relative to the values: root of the mean square, and largest.
RMS_SLACK = {"float32": 5e-6, "bfloat16": 4e-4, "float16": 5e-5}
MAX_SLACK = {"float32": 3e-5, "bfloat16": 4e-3, "float16": 5e-4}
SEEDS = (0, 1)
"""A near tie of two maxima may go either way; only what fails on two maps fails."""
PAST_INT32 = 2**31


class Apart(Exception):
    """The operator does not take the norm along here, so there is nothing to check."""


class Site(nn.Module):
    """Attention as networks have it: alone, behind a norm, or at the end of a residual block.

    Args:
        channels: C.
        kind: module, norm or epilogue.
        preset: Of the attention.
    """

    def __init__(self, channels: int, kind: str, preset: str):
        super().__init__()
        self.kind = kind
        self.norm = None if kind == "module" else nn.BatchNorm2d(channels)
        self.attention = cbam.CBAM(channels, preset=preset)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return relu(attention(norm(x)) + residual), or what there is of it here; in one call if it is possible."""
        if self.norm is None:
            return self.attention(x)
        end = (residual, True) if self.kind == "epilogue" else ()
        together = after_norm.attend(self.norm, self.attention, x, *end)
        if together is not None:
            return together
        y = self.attention(self.norm(x))
        return torch.relu(y + residual) if end else y


class Case:
    """Random weights and maps.

    Args:
        machine: Where.
        kind, preset: See `Site`.
        shape: N, C, H, W.
        dtype, memory_format: By name, of the maps; the weights are float32.
        training: Mode of the modules.
        seed: Of the random numbers.
    """

    def __init__(
        self,
        machine: Machine,
        kind: str,
        shape: Sequence[int],
        dtype: str,
        memory_format: str,
        training: bool = False,
        preset: str = "paper",
        seed: int = 0,
    ):
        self.machine, self.dtype = machine, dtype
        torch.manual_seed(seed)
        self.site = _randomise(Site(shape[1], kind, preset)).to(machine.device).train(training)
        generator = torch.Generator(machine.device).manual_seed(seed)
        new: dict[str, Any] = {"generator": generator, "device": machine.device}
        as_maps: dict[str, Any] = {"dtype": DTYPES[dtype], "memory_format": MEMORY_FORMATS[memory_format]}
        x, self.residual, self.gradient = (torch.randn(tuple(shape), **new).to(**as_maps) for _ in range(3))
        # One channel stands out at each position, so that rounding seldom decides which one is the largest.
        top = torch.randint(shape[1], (shape[0], 1, *shape[2:]), **new)
        self.x = x.scatter_add(1, top, torch.full_like(top, 8, dtype=x.dtype)).to(**as_maps)
        if kind == "epilogue":
            self._keep_from_zero()

    def _keep_from_zero(self) -> None:
        """Change the residual wherever rounding might decide what the ReLU lets through."""
        site = copy.deepcopy(self.site).double()
        site.kind = "norm"
        with set_backend("eager"), torch.no_grad():
            total = site(self.x.double(), self.residual) + self.residual.double()
        self.residual = self.residual + 0.5 * (total.abs() < 0.1).to(self.residual.dtype)

    def outcome(self, backend: str, *, exact: bool = False, call: Any = None) -> dict[str, Tensor]:
        """Return output, all gradients and all statistics, computed by a copy of the site.

        Args:
            backend: Of this library.
            exact: In float64.
            call: Makes from the copy what is called instead of it.
        """
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

    def judge(self, found: dict[str, Tensor]) -> dict[str, Any]:
        """Compare with float64, beside plain torch in the same type."""
        plain, exact = self.outcome("eager"), self.outcome("eager", exact=True)
        status, worst, where, failures = OK, 0.0, "", []
        for name, value in exact.items():
            share, text = _share(found[name], plain[name], value, self.dtype)
            if share > worst:
                worst, where = share, name
            if share > 1.0:
                failures.append(f"{name}: {text}")
        if failures:
            status = WRONG if worst > LIMIT / RULE else IMPRECISE
        return {
            "status": status,
            "share_of_rule": worst if math.isfinite(worst) else None,
            "where": where,
            "failures": failures,
        }


def check(machine: Machine, what: str, **case: Any) -> dict[str, Any]:
    """Make one check.

    Args:
        machine: Where.
        what: A key of CHECKS.
        **case: Of `Case`.

    Returns:
        The status, and what is behind it.
    """
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # plain torch shall be as exact as it can be
    try:
        first = CHECKS[what](machine, case | {"seed": SEEDS[0]})
        if first["status"] in (OK, SKIPPED) or first.get("final"):
            return first
        return CHECKS[what](machine, case | {"seed": SEEDS[1]}) | {"first_try": first}
    except Apart as reason:
        return {"status": SKIPPED, "why": str(reason)}
    except torch.OutOfMemoryError:
        return {"status": SKIPPED, "why": "out of memory"}
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def _values(machine: Machine, arguments: dict[str, Any]) -> dict[str, Any]:
    """Output and gradients, twice with the same bits."""
    case = Case(machine, **arguments)
    _require_one_call(case)
    found, again = case.outcome(machine.backend), case.outcome(machine.backend)
    verdict = case.judge(found)
    differ = [name for name, value in found.items() if not _same_bits(value, again[name])]
    if differ:
        verdict |= {"status": WRONG, "final": True}
        verdict["failures"].append(f"two runs differ in {', '.join(differ)}")
    if found["y"].stride() != case.x.stride():
        verdict["status"] = WRONG
        verdict["failures"].append(f"strides {found['y'].stride()} from a map of {case.x.stride()}")
    return verdict


def _graph(machine: Machine, arguments: dict[str, Any]) -> dict[str, Any]:
    """A replayed CUDA graph gives the bits of a call, on other values than it was captured with."""
    case = Case(machine, **arguments)
    x, weights = case.x.clone().requires_grad_(), list(case.site.parameters())
    held: list[Tensor] = []

    def step() -> None:
        y = case.site(x, case.residual)
        held[:] = [y.detach(), *torch.autograd.grad(y, [x, *weights], case.gradient)]

    with set_backend(machine.backend):
        replay = capture(machine, [step])
        captured = held[:] if machine.is_gpu else None
        with torch.no_grad():
            x.copy_(x.flip(0) * 0.5)
        replay()
        got = [t.clone() for t in captured or held]
        step()
    differ = [i for i, (a, b) in enumerate(zip(got, held, strict=True)) if not _same_bits(a, b)]
    failures = [f"a graph and a call differ in output or gradient {i}" for i in differ]
    return {"status": WRONG if failures else OK, "failures": failures}


def _compiled(machine: Machine, arguments: dict[str, Any]) -> dict[str, Any]:
    """One graph under torch.compile, with the same result."""
    torch._dynamo.reset()
    case = Case(machine, **arguments)
    compiler = "inductor" if machine.is_gpu else "aot_eager"

    def compiled(site: nn.Module) -> Callable[..., Tensor]:
        return torch.compile(site, fullgraph=True, dynamic=False, backend=compiler)

    return case.judge(case.outcome(machine.backend, call=compiled))


def _autocast(machine: Machine, arguments: dict[str, Any]) -> dict[str, Any]:
    """Under autocast the map keeps its type, and the result is as good."""
    case = Case(machine, **arguments)

    def cast(site: nn.Module) -> Callable[..., Tensor]:
        def run(x: Tensor, residual: Tensor) -> Tensor:
            with torch.autocast(machine.kind, torch.bfloat16):
                return site(x, residual)

        return run

    found = case.outcome(machine.backend, call=cast)
    verdict = case.judge(found)
    if found["y"].dtype != case.x.dtype:
        verdict["status"] = WRONG
        verdict["failures"].append(f"a map of {case.x.dtype} became {found['y'].dtype}")
    return verdict


def _large(machine: Machine, arguments: dict[str, Any]) -> dict[str, Any]:
    """A map of more than 2**31 elements: its last samples are what they are alone."""
    samples, *rest = arguments["shape"]
    elements = samples * rest[0] * rest[1] * rest[2]
    size = DTYPES[arguments["dtype"]].itemsize
    if machine.is_gpu and machine.free_bytes() < 5 * elements * size:
        return {"status": SKIPPED, "why": f"needs {5 * elements * size >> 30} GiB of free memory"}
    few = Case(machine, **arguments | {"shape": (2, *rest)})
    layout = MEMORY_FORMATS[arguments["memory_format"]]
    x, gradient = (
        torch.empty(tuple(arguments["shape"]), dtype=t.dtype, device=t.device, memory_format=layout).normal_()
        for t in (few.x, few.gradient)
    )
    x[-2:], gradient[-2:] = few.x, few.gradient
    x.requires_grad_()
    with set_backend(machine.backend):
        y = few.site(x, few.residual)
        (dx,) = torch.autograd.grad(y, [x], gradient)
    found = few.outcome(machine.backend)
    found["y"], found["x"] = y.detach()[-2:].clone(), dx[-2:].clone()
    return few.judge(found) | {"elements": elements, "past_int32": elements > PAST_INT32}


CHECKS: dict[str, Callable[[Machine, dict[str, Any]], dict[str, Any]]] = {
    "values": _values,
    "graph": _graph,
    "compiled": _compiled,
    "autocast": _autocast,
    "large": _large,
}


def _require_one_call(case: Case) -> None:
    site: Any = case.site
    if site.norm is None:
        return
    site = copy.deepcopy(site)
    end = (case.residual, True) if site.kind == "epilogue" else ()
    with set_backend(case.machine.backend), torch.no_grad():
        if after_norm.attend(site.norm, site.attention, case.x, *end) is None:
            raise Apart("norm and attention run apart here")


def _randomise(site: Any) -> Any:
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


def _share(found: Tensor, plain: Tensor, exact: Tensor, dtype: str) -> tuple[float, str]:
    """Return the error as a share of what the rule allows, and the numbers; above 1 the rule is broken."""
    if not exact.numel():
        return 0.0, ""
    ours, theirs = (t.double() - exact for t in (found, plain))
    shares = []
    single = exact.numel() == 1
    for measure, slack, factor in ((_rms, RMS_SLACK, RULE), (_largest, MAX_SLACK, 2 * RULE)):
        if single and measure is _rms:
            continue
        # A single number may be a small difference of large sums, and plain torch's right by luck.
        room = slack[dtype] * (10 if single else 1) * (measure(exact) + 1e-6)
        share = measure(ours) / (factor * measure(theirs) + room)
        shares.append((math.inf if math.isnan(share) else share, measure(ours), measure(theirs)))
    worst = max(shares)
    return worst[0], f"error {worst[1]:.2e}, plain torch's {worst[2]:.2e}, values {_rms(exact):.2e}"


def _rms(t: Tensor) -> float:
    return float(t.square().mean().sqrt())


def _largest(t: Tensor) -> float:
    return float(t.abs().amax())


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
