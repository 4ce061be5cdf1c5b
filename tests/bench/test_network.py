"""The network rows: the same function in all networks that say so, sane activations, a real training step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import cbam
from cbam.bench import measure as measuring
from cbam.bench.cases import INFERENCE, TRAINING, UNCOMPILED, Case
from cbam.bench.config import BenchConfig
from cbam.bench.device import device_of
from cbam.bench.modules import BaselinesDiffer
from cbam.bench.network import Networks, measure
from cbam.evaluate.references import Textbook

CPU = device_of("cpu")


def case(mode, layout="contiguous", size=32):
    return Case("network", "", mode, (2, 3, size, size), "float32", layout, 1)


def config(model="resnet20"):
    return BenchConfig(threads=1, rounds=2, model=model, image_size=32)


@pytest.mark.parametrize("mode", [INFERENCE, TRAINING])
def test_all_networks_are_timed(mode):
    result = measure(case(mode), config(), CPU)
    ours = [name for name in result.samples_ms if name.startswith("cbam")]
    assert len(ours) == 1
    assert set(result.samples_ms) == {"plain", "textbook", "se", *ours}
    assert result.ratio("plain") == 1.0
    if mode == TRAINING:
        assert result.saved_bytes["textbook"] > result.saved_bytes["plain"] > 0
        assert set(result.peak_bytes) == set(result.samples_ms)


def test_the_textbook_sits_at_the_same_sites_with_the_same_weights():
    networks = Networks(case(INFERENCE), config(), CPU)
    assert sum(isinstance(m, Textbook) for m in networks.networks["textbook"].modules()) == 9
    networks.check()
    assert networks.networks["plain"].training is False


def test_a_textbook_network_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(Textbook, "forward", lambda self, x: 0.5 * x)
    with pytest.raises(BaselinesDiffer, match="textbook's differ at network inference"):
        measure(case(INFERENCE), config(), CPU)


def test_batch_norms_of_untrained_networks_normalise():
    networks = Networks(case(INFERENCE, size=128), config("resnet18"), CPU)
    for name, net in networks.networks.items():
        norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        spreads = []
        for norm in norms:
            norm.register_forward_hook(lambda m, i, y, spreads=spreads: spreads.append(y.std().item()))
        with cbam.set_backend("eager"), torch.inference_mode():
            net(networks.x)
        assert 0.8 < sorted(spreads)[len(spreads) // 2] < 1.2, name
        assert all(norm.momentum == 0.1 for norm in norms)


def test_a_training_step_trains():
    networks = Networks(case(TRAINING), config(), CPU)
    net = networks.networks["plain"]
    step, before = networks.calls()["plain"], networks.forward(net).item()
    for _ in range(100):
        step()
    assert networks.forward(net).item() < before
    assert all(p.grad is None for p in net.parameters())


def test_the_layout_reaches_the_weights():
    networks = Networks(case(INFERENCE, "channels_last"), config(), CPU)
    assert networks.x.is_contiguous(memory_format=torch.channels_last)
    weight = next(p for p in networks.networks["textbook"].parameters() if p.dim() == 4 and p.shape[2] == 3)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("study", "names"), [
    ("", ["plain", "cbam operator", "cbam operator, epilogue apart", "textbook", "careful", "se"]),
    ("compiled", ["plain", "cbam operator", "careful"]),
    ("compiled, reduce-overhead", ["plain", "cbam operator", "careful"]),
    ("everything compiled", ["plain", "cbam operator", "textbook", "careful", "se"]),
])  # fmt: skip
def test_the_networks_of_a_gpu(study, names):
    dry = device_of("dry-run")
    if dry.operator_missing():
        pytest.skip("no operator")
    one = Case("network", study, TRAINING, (2, 3, 32, 32), "bfloat16", "channels_last", 0)
    networks = Networks(one, config(), dry)
    assert list(networks.networks) == names
    networks.check()
    assert next(networks.networks["plain"].parameters()).dtype == torch.float32, "AMP casts them"
    with torch.no_grad():
        assert networks.forward(networks.networks["plain"]).dtype == torch.float32
    only = Networks(one, replace(config(), quick=True), dry, only="careful")
    captured = ["careful, in a graph"] if study == "compiled" else []
    assert list(only.prepare()) == ["careful", *captured]


def test_the_modes_of_a_gpu_reach_the_compiler(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "compile", lambda network, **options: given.append(options) or network)
    for study, mode in (("compiled", None), ("compiled, reduce-overhead", "reduce-overhead")):
        one = Case("network", study, INFERENCE, (2, 3, 32, 32), "bfloat16", "channels_last", 0)
        Networks(one, config(), device_of("dry-run"), only="plain").calls()
        assert given.pop() == {"dynamic": False, "backend": "eager", "mode": mode}
    assert not given


def test_on_a_cpu_compiled_networks_run_beside_those_that_are_not(monkeypatch):
    compiled, real = [], torch.compile

    def compile_quickly(network, **options):
        compiled.append(options["backend"])
        return real(network, dynamic=False, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)
    one = Case("network", "compiled", TRAINING, (2, 3, 32, 32), "float32", "channels_last", 1)
    result = measure(one, config(), CPU)
    assert compiled == ["inductor"] * 3
    assert result.ways == ["", UNCOMPILED]
    names = ["plain", Networks(one, config(), CPU).ours, "careful"]
    for way in result.ways:
        assert list(result.of_way(way).samples_ms) == names
        assert result.of_way(way).ratio("plain") == 1.0
    assert list(measuring.compiling(one, config())) == [], "the case itself compiles"


def test_a_network_that_cannot_be_compiled_is_left_out(monkeypatch):
    def broken(network, **options):
        def call(x):
            raise RuntimeError("no C++ compiler")

        return call if "CBAM" in str(network) else real(network, dynamic=False, backend="eager")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", broken)
    one = Case("network", "compiled", INFERENCE, (2, 3, 32, 32), "float32", "channels_last", 1)
    result = measure(one, config(), CPU)
    assert {name.removesuffix(UNCOMPILED) for name in result.samples_ms} == {"plain", "careful"}
    assert result.notes[0].endswith("RuntimeError: no C++ compiler")


def test_what_torch_compile_runs_as_it_is_is_not_timed_as_compiled(monkeypatch):
    """After torch.compiler.set_stance("force_eager") or with TORCHDYNAMO_DISABLE=1 it says nothing."""
    one = Case("network", "compiled", INFERENCE, (2, 3, 32, 32), "float32", "channels_last", 1)
    with torch.compiler.set_stance("force_eager"):
        result = measure(one, config(), CPU)
    assert result.samples_ms == {}
    why = "nothing was compiled: torch.compiler.set_stance('force_eager') is in force"
    assert [note for note in result.notes if why in note] == result.notes[:3]
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)  # as it then does
    notes = measure(one, config(), CPU).notes
    assert "plain: nothing was compiled: the environment says TORCHDYNAMO_DISABLE=1" in notes
