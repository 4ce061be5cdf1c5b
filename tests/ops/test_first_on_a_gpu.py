"""What has changed since a GPU was last at hand, looked at before anything else: races, precision, registers.

`cbam bench --device cuda` begins with these; on the CPU, by default, they run on small maps.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

import cbam
from cbam.ops.dispatch import set_backend
from tests.ops.test_real_shapes import FAST, STAGES, Case, Maps, backend_of, judged, same_bits, share

REPEATS = 25


def pytest_generate_tests(metafunc):
    if "raced" in metafunc.fixturenames:
        on_gpu = metafunc.config.getoption("--device") == "cuda"
        batches, stages = ((1, 32), STAGES) if on_gpu else ((1, 2), [(24, 6, 6), (40, 4, 3)])
        metafunc.parametrize("raced", [
            Case(kind, (n, *stage), *FAST, training=kind == "epilogue")
            for n in batches for stage in stages for kind in ("module", "epilogue")
        ], ids=str)  # fmt: skip


def assert_same(found, expected, when):
    differ = [name for name, value in expected.items() if not same_bits(value, found[name])]
    assert not differ, f"{when}: {', '.join(differ)}"


def test_no_run_differs_from_another(raced, device):
    """Programs that count arrivals (`weighted`), or store what others of them read again (`apply`), may race."""
    maps, backend = Maps(raced, device, 0), backend_of(device)
    expected = maps.outcome(backend)
    for number in range(REPEATS):
        assert_same(maps.outcome(backend), expected, f"run {number + 2} differs")


def test_calls_on_two_streams_do_not_share_scratch(device):
    """Counters of arrivals and sums are those of a call."""
    maps = [Maps(Case("module", (8, 64, 14, 14), *FAST), device, seed) for seed in (0, 1)]
    expected = [one.outcome(backend_of(device)) for one in maps]
    on_gpu = device.type == "cuda"
    streams = [torch.cuda.stream(torch.cuda.Stream()) if on_gpu else contextlib.nullcontext() for _ in maps]
    found = [[] for _ in maps]
    if on_gpu:
        torch.cuda.synchronize()
    for _ in range(REPEATS):
        for one, stream, outcomes in zip(maps, streams, found, strict=True):
            with stream:
                outcomes.append(one.outcome(backend_of(device)))
    if on_gpu:
        torch.cuda.synchronize()
    for outcomes, right in zip(found, expected, strict=True):
        for outcome in outcomes:
            assert_same(outcome, right, "beside another stream")


@pytest.mark.parametrize(("samples", "channels"), [(1, 256), (32, 256), (32, 2048)])
def test_the_products_of_the_mlp_are_as_exact_as_float32(samples, channels, device):
    """TF32 alone would be a thousand times less exact; a map of one position leaves nothing else to round."""
    torch.manual_seed(0)
    gate = cbam.CBAM(channels, arrangement="channel").to(device)
    x = torch.randn(samples, channels, 1, 1, device=device)
    answers = []
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            for backend, dtype in ((backend_of(device), None), ("eager", None), ("eager", torch.float64)):
                with set_backend(backend):
                    answers.append(gate.to(dtype or torch.float32)(x.to(dtype or torch.float32)))
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    over, text = share(*answers, "float32")
    assert over <= 1, text


@pytest.mark.slow
def test_reduce_overhead(device):
    """Under the compiler's own CUDA graphs, forward and backward: recorded, then replayed."""
    torch._dynamo.reset()

    def compiled(site):
        run = torch.compile(site, mode="reduce-overhead", fullgraph=True, dynamic=False)

        def call(x, residual):
            for _ in range(3):
                torch.compiler.cudagraph_mark_step_begin()
                torch.autograd.grad(run(x, residual).sum(), [x])
            torch.compiler.cudagraph_mark_step_begin()
            return run(x, residual)

        return call

    case = Case(
        "epilogue", (8, 64, 14, 14), *FAST
    )  # with constant statistics, which several calls leave alone
    judged(case, device, lambda maps: maps.judge(maps.outcome(backend_of(device), call=compiled)))


def test_registers(device, monkeypatch, record_property):
    """As the driver has them: a kernel that spills, or a pass with too many registers, is slow for that reason."""
    if device.type != "cuda":
        pytest.skip("counted in the compiled code instead: tests/ops/triton/test_instructions.py")
    from triton.runtime import JITFunction

    run, kernels = JITFunction.run, {}

    def record(self, *arguments, **options):
        compiled = kernels[self.__name__] = run(self, *arguments, **options)
        return compiled

    monkeypatch.setattr(JITFunction, "run", record)
    # A batch that no other test has: what is planned and compiled does not pass here again.
    Maps(Case("epilogue", (33, *STAGES[1]), *FAST, training=True), device, 0).outcome("triton")
    found = {name: (kernel.n_regs, kernel.n_spills) for name, kernel in kernels.items()}
    record_property("registers and spills", str(found))
    assert {"pool", "hidden", "squeeze", "apply", "gate_grads", "weighted", "input_grad"} <= set(found)
    assert {name: spills for name, (_, spills) in found.items() if spills} == {}
    passes = ("pool", "squeeze", "apply", "gate_grads", "weighted", "input_grad")
    assert {name: found[name][0] for name in passes if found[name][0] > 128} == {}
