"""The baselines compute what this library computes, and are written as described."""

from __future__ import annotations

import sys

import pytest
import torch

import cbam
from cbam.bench import baselines
from cbam.bench.baselines import build_baselines, is_compiled_peer, ours_of
from cbam.bench.device import Device, device_of
from cbam.evaluate import references
from cbam.evaluate.references import Careful, Textbook

CPU = device_of("cpu")
SHAPES = [(2, 32, 7, 5), (1, 5, 1, 9), (3, 16, 4, 1)]


def eager(channels):
    block = cbam.CBAM(channels).double()
    return block, block.state_dict()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", [Textbook, Careful])
def test_output_and_gradients_are_those_of_the_library(kind, shape):
    ours, weights = eager(shape[1])
    baseline = kind(shape[1]).double()
    baseline.load_state_dict(weights)
    x, g = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    found = []
    for module in (ours, baseline):
        leaf = x.clone().requires_grad_()
        with cbam.set_backend("eager"):
            module(leaf).backward(g)
        found.append([leaf.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_timm_computes_the_same_in_eval_mode_and_not_in_training(shape):
    pytest.importorskip("timm")
    ours, weights = eager(shape[1])
    theirs = references.timm_module(weights, shape[1]).double()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad(), cbam.set_backend("eager"):
        torch.testing.assert_close(theirs.eval()(x), ours(x))
        assert not torch.allclose(theirs.train()(x), ours(x)), "its batch norm is at work in training"


def test_who_takes_part():
    found = build_baselines(CPU, 32, torch.float32, torch.channels_last)
    names = list(found)
    assert found["cbam compiled"].backend == found[ours_of(names)].backend, "what a user gets, compiled"
    assert ("cbam operator" in names) is (CPU.operator_missing() is None)
    plain = [name for name in names if not name.endswith("compiled")]
    assert [name for name in plain if not name.startswith("cbam")] == ["textbook", "careful", "timm"]
    compiled = ["cbam compiled", "textbook compiled", "careful compiled", "timm compiled"]
    assert [name for name in names if name.endswith("compiled")] == compiled
    assert [name for name in names if is_compiled_peer(name)] == compiled[1:]


def test_without_timm_the_others_go_on(monkeypatch):
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    assert "timm" not in build_baselines(CPU, 8, torch.float32, torch.contiguous_format)


def test_the_weights_have_dtype_and_layout_and_the_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    found = build_baselines(CPU, 32, torch.bfloat16, torch.channels_last)
    assert torch.equal(torch.rand(1), expected)
    for baseline in found.values():
        for name, parameter in baseline.module.named_parameters():
            assert parameter.dtype == torch.bfloat16, name


def test_an_operator_that_cannot_run_leaves_its_row_out(monkeypatch):
    monkeypatch.setattr(Device, "operator_missing", lambda self: "no compiler")
    names = list(build_baselines(CPU, 8, torch.float32, torch.contiguous_format))
    assert "cbam operator" not in names
    assert ours_of(names) == "cbam eager"
    assert "cbam compiled" in names


def test_only_some_are_compiled_where_that_takes_long():
    names = build_baselines(CPU, 8, torch.float32, torch.contiguous_format, ("cbam", "careful"))
    assert [name for name in names if name.endswith("compiled")] == ["cbam compiled", "careful compiled"]


def test_the_textbook_uses_the_modules_that_people_use():
    kinds = {type(module).__name__ for module in Textbook(16).modules()}
    assert {"AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "Sigmoid"} <= kinds
    assert "cbam.bench.baselines" in sys.modules
