"""The module rows: what is timed is what was checked; what cannot be compiled is left out and named."""

from __future__ import annotations

import pytest
import torch

from cbam.bench.cases import BOTH, FORWARD, Case
from cbam.bench.config import BenchConfig
from cbam.bench.device import device_of
from cbam.bench.modules import BaselinesDiffer, Comparison, measure
from cbam.evaluate import references
from cbam.ops.dispatch import backend, set_backend

CPU = device_of("cpu")
QUICK = BenchConfig(threads=1, rounds=2, compile=False)


def case(mode, shape=(2, 16, 5, 7), dtype="float32", layout="contiguous"):
    return Case("modules", "", mode, shape, dtype, layout, 1)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("mode", [FORWARD, BOTH])
def test_every_dtype_and_layout_is_measured(mode, dtype, layout):
    result = measure(case(mode, dtype=dtype, layout=layout), QUICK, CPU)
    assert {"copy", "copy into", "cbam eager", "textbook", "careful"} <= set(result.samples_ms)
    assert all(len(samples) == 2 and min(samples) > 0 for samples in result.samples_ms.values())
    assert bool(result.saved_bytes) is (mode == BOTH)
    assert result.input_bytes == 2 * 16 * 5 * 7 * torch.empty((), dtype=getattr(torch, dtype)).element_size()


def test_memory_of_the_textbook_is_what_can_be_reckoned():
    # Large enough that gates and weights do not matter: the map, and the map after the channel gate.
    result = measure(case(BOTH, (2, 64, 56, 56)), QUICK, CPU)
    assert result.saved_bytes["textbook"] / result.input_bytes == pytest.approx(2.0, abs=0.1)
    assert result.peak_bytes["textbook"] / result.input_bytes == pytest.approx(4.0, abs=0.15)


class Wrong(references.Careful):
    def forward(self, x):
        return super().forward(x) * 1.01


class WrongBackward(references.Careful):
    def forward(self, x):
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda g: 1.1 * g)
        return y


@pytest.mark.parametrize(
    ("kind", "mode", "what"),
    [(Wrong, FORWARD, "output"), (Wrong, BOTH, "output"), (WrongBackward, BOTH, "gradient of the map")],
)
def test_a_rival_that_computes_something_else_is_not_timed(monkeypatch, kind, mode, what):
    monkeypatch.setattr(references, "Careful", kind)
    with pytest.raises(BaselinesDiffer, match=f"careful and cbam eager differ at .*: {what}"):
        measure(case(mode), QUICK, CPU)
    assert backend() == "auto"


def test_gradients_are_gone_after_a_step_and_forward_records_nothing():
    comparison = Comparison(case(BOTH), CPU, ())
    with set_backend("auto"):
        for name in comparison.baselines:
            comparison.baselines[name].select()
            comparison.step(name)
            assert comparison.x.grad is None
            assert all(p.grad is None for p in comparison.baselines[name].module.parameters()), name
    forward = Comparison(case(FORWARD), CPU, ())
    assert not forward.x.requires_grad
    assert not any(candidate.grad for candidate in forward.candidates().values())


def test_copies_are_copies():
    comparison = Comparison(case(FORWARD), CPU, ())
    candidates = comparison.candidates()
    assert torch.equal(candidates["copy"].call(), comparison.x)
    candidates["copy into"].call()
    assert torch.equal(comparison.room, comparison.x)


def test_what_does_not_compile_is_left_out_with_its_reason(monkeypatch):
    def no_compiler(module, **_):
        def call(x):
            raise RuntimeError("no C++ compiler\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    result = measure(case(FORWARD), BenchConfig(threads=1, rounds=2), CPU)
    assert not [name for name in result.samples_ms if name.endswith("compiled")]
    assert "textbook compiled: RuntimeError: no C++ compiler" in result.notes
    assert "textbook" in result.samples_ms


def test_what_torch_compile_runs_as_it_is_is_left_out():
    with torch.compiler.set_stance("force_eager"):
        result = measure(case(FORWARD, (1, 8, 4, 4)), BenchConfig(threads=1, rounds=2), CPU)
    assert not [name for name in result.samples_ms if name.endswith("compiled")]
    why = "nothing was compiled: torch.compiler.set_stance('force_eager') is in force"
    assert f"textbook compiled: {why}" in result.notes


@pytest.mark.slow
def test_compiled_rivals_are_timed():
    result = measure(case(BOTH, (1, 8, 4, 4)), BenchConfig(threads=1, rounds=2), CPU)
    if any(note.startswith("textbook compiled") for note in result.notes):
        pytest.skip(f"nothing compiles here: {result.notes}")
    assert {"textbook compiled", "careful compiled", "cbam compiled"} <= set(result.samples_ms), result.notes
    assert result.saved_bytes["careful compiled"] > 0
