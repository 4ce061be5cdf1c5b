"""The choice of tiles, by heuristics and by trying."""

import itertools

import pytest
import torch

from cbam import set_backend
from cbam.ops.triton import blocks
from tests.ops import cases
from tests.ops.library import GPU, needs_triton

pytestmark = needs_triton


@pytest.mark.parametrize("whole", [1, 49, 3136])
@pytest.mark.parametrize("others", [1, 7, 10**6])
def test_shares_cover_the_axis_and_none_is_empty(whole, others):
    for block in (1, 16, 64):
        number, size = blocks.parts(whole, block, others, torch.device("cpu"), 8)
        assert (number - 1) * size < whole <= number * size
        assert number <= 8
        assert size % block == 0


def test_tiles_are_long_where_memory_is(monkeypatch):
    monkeypatch.setattr(blocks, "INTERPRETED", False)
    for channels_last in (True, False):
        for channels, positions in ((256, 3136), (2048, 49), (3, 50176), (1, 1), (5, 3)):
            tile = blocks.tile.__wrapped__(4096, 64, channels, positions, channels_last, 8)
            assert tile.channels * tile.positions <= 4096
            assert all(side & (side - 1) == 0 for side in tile[:2])
            long, axis = (tile.channels, channels) if channels_last else (tile.positions, positions)
            assert long >= min(64, axis)


@pytest.mark.parametrize("samples", [1, 128])
@pytest.mark.parametrize(("channels", "positions"), [(256, 3136), (2048, 49), (3, 50176), (1, 1)])
def test_a_small_batch_gets_short_tiles_with_busy_lanes(samples, channels, positions, monkeypatch):
    monkeypatch.setattr(blocks, "INTERPRETED", False)
    monkeypatch.setattr(blocks, "multiprocessors", lambda device: 132)
    tile = blocks.across.__wrapped__(samples, channels, positions, True, 2, torch.device("cpu"), longest=64)
    assert all(side & (side - 1) == 0 for side in tile)
    assert tile.positions == 1 or samples * -(-positions // tile.positions) >= 3 * 132
    assert tile.channels * tile.positions >= min(256, channels)
    assert tile.channels < 2 * max(channels, 1)


def test_autotuning_changes_the_tiles_and_nothing_else(monkeypatch):
    from cbam.ops.triton import plans, tune

    tried = []

    def seconds(plan, tensors, name):
        plan.start_through_triton(tensors)
        tried.append((name, plan.tiles[name]))
        return -len(tried)  # the last one is the fastest

    others = [blocks.Tile(32, 16, 1), blocks.Tile(16, 32, 1)]
    block, (x, grad) = (
        cases.block_of("official", 20),
        cases.maps((2, 20, 5, 4), torch.float64, torch.channels_last),
    )
    block, x, grad = block.double().to(GPU), x.to(GPU), grad.to(GPU)
    monkeypatch.setattr(plans, "_plans", {})
    with set_backend("triton"):
        usual = cases.outcome(block, x, grad, "triton")
        monkeypatch.setattr(plans, "_plans", {})
        monkeypatch.setattr(tune, "AUTOTUNE", True)
        monkeypatch.setattr(tune, "_candidates", lambda tile: others)
        monkeypatch.setattr(tune, "_seconds", seconds)
        for _ in range(2):
            tuned = cases.outcome(block, x, grad, "triton")
    passes = ["pool", "squeeze", "apply", "gate_grads", "weighted", "input_grad"]
    assert tried == [(name, tile) for name in passes for tile in others]  # once, not at every call
    chosen = {name: tile for plan in plans._plans.values() for name, tile in plan.tiles.items()}
    assert chosen == dict.fromkeys(passes, others[-1])
    for key, value in usual.items():
        torch.testing.assert_close(tuned[key], value)


def test_the_time_of_one_kernel(monkeypatch):
    from cbam.ops.triton import plans, tune

    x = torch.randn(1, 5, 3, 2, device=GPU)
    monkeypatch.setattr(plans, "_plans", {})
    monkeypatch.setattr(tune, "AUTOTUNE", True)
    monkeypatch.setattr(tune, "_candidates", lambda tile: [tile])
    with set_backend("triton"), torch.no_grad():
        block = cases.block_of("paper", 5).to(GPU)
        tuned = block(x)
        monkeypatch.setattr(tune, "AUTOTUNE", False)
        torch.testing.assert_close(block(x), tuned)


def test_candidates_are_tiles_that_triton_takes():
    from cbam.ops.triton.tune import _candidates

    found = _candidates(blocks.Tile(64, 32, 4))
    assert blocks.Tile(64, 32, 4) in found
    for channels, positions, warps in found:
        assert channels * positions <= 2**14
        assert all(side >= 1 and side & (side - 1) == 0 for side in (channels, positions, warps))


@pytest.mark.parametrize("front", [False, True], ids=["", "norm"])
@pytest.mark.parametrize("name", ["official", "max pooling"])
def test_small_layers_at_the_end_of_other_kernels_compute_the_same(name, front, monkeypatch):
    from cbam.ops.triton import plans, run_forward

    shape, outcomes, counts = (17, 20, 3, 2), [], []
    x, grad = cases.maps(shape, torch.float64, torch.channels_last)
    norm = cases.norm_of(20, torch.float64, True) if front else None
    attention = cases.block_of(name, 20, torch.float64)
    block = cases.WithResidual(attention, torch.randn(shape, dtype=torch.float64), True, norm)
    block, x, grad = block.to(GPU), x.to(GPU), grad.to(GPU)
    for most in (run_forward.JOINED, 0):
        monkeypatch.setattr(run_forward, "JOINED", most)
        monkeypatch.setattr(plans, "_plans", {})
        outcomes.append(cases.outcome(block, x, grad, "triton"))
        counts.append([len(plan.launches) for plan in plans._plans.values()])
    assert [apart - joined for joined, apart in zip(*counts, strict=True)] == [1, 2]
    for key, value in outcomes[0].items():
        torch.testing.assert_close(outcomes[1][key], value, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("channels", "side"), [(256, 56), (512, 28), (1024, 14), (2048, 7)])
def test_a_single_sample_has_programs_for_the_whole_gpu(channels, side, monkeypatch):
    from cbam.ops.signature import (
        BackwardArguments,
        ForwardArguments,
        NormBefore,
        OperatorConfig,
        Weights,
        flat,
    )
    from cbam.ops.triton import run_backward, run_forward

    for module in (blocks, run_backward):
        monkeypatch.setattr(module, "INTERPRETED", False)
    monkeypatch.setattr(blocks, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(blocks, "PROGRAMS_PER_MULTIPROCESSOR", 6)
    for name in ("tile", "across", "parts"):
        plain = getattr(blocks, name).__wrapped__
        for module in (run_forward, run_backward):
            monkeypatch.setattr(module, name, plain)
    x = torch.empty(1, channels, side, side, dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last
    )
    hidden = channels // 16
    weights = Weights(
        w0=torch.empty(hidden, channels), w1=torch.empty(channels, hidden), kernel=torch.empty(1, 2, 7, 7)
    )
    config, saved = OperatorConfig(3, 3), torch.empty(0)
    forward = flat(ForwardArguments(x, weights, NormBefore(), None, config, True))
    backward = flat(BackwardArguments(x, x, weights, NormBefore(), None, saved, saved.int(), config))
    launches = run_forward._plan(forward, {}).launches + run_backward._plan(backward, {}).launches
    programs = {launch.kernel.__name__: launch.grid[0] * (*launch.grid, 1)[1] for launch in launches}
    passes = {"pool": 64, "squeeze": 49, "apply": 64, "gate_grads": 49, "weighted": 64, "input_grad": 128}
    for name, least in (
        passes | dict.fromkeys(("hidden", "channel_gate", "hidden_grads", "pooled_grads"), 16)
    ).items():
        assert name not in programs or programs[name] >= least, (name, programs)
    assert set(programs) >= passes.keys()
    narrow = {n.kernel.__name__ for n in launches if n.constants.get("BC", 64) < 64 and "BP" in n.constants}
    assert not narrow, "rows of 32 channels take 4 times the instructions for an element"


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_parts_of_the_scratch_lie_apart(channels_last, monkeypatch):
    from cbam.ops.triton import plans
    from cbam.ops.triton.plan import ALIGNMENT, Part

    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = cases.maps((3, 20, 5, 3), torch.float32, layout)
    norm, attention = cases.norm_of(20, torch.float32, True), cases.block_of("official", 20)
    block = cases.WithResidual(attention, torch.randn(3, 20, 5, 3), True, norm).to(GPU)
    monkeypatch.setattr(plans, "_plans", {})
    cases.outcome(block, x.to(GPU), grad.to(GPU), "triton")
    assert len(plans._plans) == 2
    for plan in plans._plans.values():
        (scratch,) = {plan.scratch.part(0).base}
        given = {a for launch in plan.launches for a in launch.arguments if isinstance(a, Part)}
        spans = sorted((a.offset, a.offset + a.count * a.dtype.itemsize) for a in given if a.base == scratch)
        assert len(spans) > 3
        assert all(start % ALIGNMENT == 0 for start, _ in spans)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert spans[-1][1] <= plan.sizes[-1] * plan.scratch.dtype.itemsize
