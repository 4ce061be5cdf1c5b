"""Training with the operator: plain torch's curve, running statistics, and a fit that needs right gradients."""

import copy

import pytest
import torch
from torch import nn

from cbam import CBAM, set_backend
from tests.ops import cases
from tests.ops.library import needs_operator

pytestmark = needs_operator


def network(preset, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), CBAM(16, 4, preset=preset), nn.Conv2d(16, 24, 3, stride=2),
        nn.BatchNorm2d(24), nn.ReLU(), CBAM(24, 4, preset=preset),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    ).to(dtype)  # fmt: skip


def train(model, backend, steps, dtype=torch.float64, layout=torch.contiguous_format):
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    with set_backend(backend):
        for _ in range(steps):
            labels = torch.randint(5, (8,), generator=generator)
            images = torch.randn(8, 3, 11, 9, generator=generator) + labels[:, None, None, None]
            loss = nn.functional.cross_entropy(
                model(images.to(dtype).contiguous(memory_format=layout)), labels
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("preset", ["paper", "official", "timm"])
@pytest.mark.parametrize("layout", cases.LAYOUTS.values(), ids=list(cases.LAYOUTS))
def test_100_steps_are_those_of_plain_torch(preset, layout):
    """In float64, where rounding cannot blur a wrong gradient; also all weights and running statistics at the end."""
    models = {backend: network(preset) for backend in ("cpp", "eager")}
    losses = {backend: train(model, backend, 100, layout=layout) for backend, model in models.items()}
    assert losses["cpp"] == pytest.approx(losses["eager"], rel=1e-6, abs=1e-9)
    assert losses["cpp"][-1] < 0.7 * losses["cpp"][0]
    for key, value in models["eager"].state_dict().items():
        torch.testing.assert_close(models["cpp"].state_dict()[key], value, rtol=1e-5, atol=1e-7, msg=key)


def test_100_steps_in_float32():
    losses = {
        backend: train(network("official", torch.float32), backend, 100, torch.float32)
        for backend in ("cpp", "eager")
    }
    assert losses["cpp"][:20] == pytest.approx(losses["eager"][:20], rel=1e-4)
    assert sum(losses["cpp"][-20:]) == pytest.approx(sum(losses["eager"][-20:]), rel=0.05)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_a_student_finds_its_teacher(preset):
    """Nothing but the attention learns: each parameter's gradient must be right for the gap to close."""
    torch.manual_seed(3)
    teacher, student = (cases.block_of("paper" if preset == "paper" else "official", 8) for _ in range(2))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    x = torch.randn(64, 8, 6, 6)
    with set_backend("eager"):
        target = teacher(x).detach()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    gaps = []
    with set_backend("cpp"):
        for _ in range(500):
            gap = (student(x) - target).square().mean()
            optimizer.zero_grad()
            gap.backward()
            optimizer.step()
            gaps.append(gap.item())
    assert gaps[-1] < 1e-3 * gaps[0]


class TestRunningStatistics:
    @pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0, None])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_follow_those_of_plain_torch(self, momentum, dtype):
        block = cases.block_of("official", 12, dtype, training=True)
        block.spatial_attention.norm.momentum = momentum
        twin = copy.deepcopy(block)
        for _ in range(5):
            x = torch.randn(3, 12, 5, 4, dtype=dtype)
            with set_backend("cpp"):
                block(x)
            with set_backend("eager"):
                twin(x)
        for (name, got), expected in zip(block.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, msg=name)
        assert block.spatial_attention.norm.num_batches_tracked == 5

    @pytest.mark.parametrize("training", [True, False])
    def test_a_norm_without_running_statistics(self, training):
        block = cases.block_of("official", 12, training=training)
        block.spatial_attention.norm = nn.BatchNorm2d(1, track_running_stats=False).train(training)
        cases.assert_as_good_as_eager(
            block, *cases.maps((3, 12, 5, 4), torch.float32, torch.contiguous_format)
        )

    def test_a_norm_without_weight_and_bias(self):
        block = cases.block_of("official", 12, training=True)
        block.spatial_attention.norm = nn.BatchNorm2d(1, affine=False)
        cases.assert_as_good_as_eager(
            block, *cases.maps((3, 12, 5, 4), torch.float32, torch.contiguous_format)
        )

    def test_a_frozen_norm_in_a_module_that_trains(self):
        block = cases.block_of("official", 12, training=True)
        block.spatial_attention.norm.eval()
        before = [buffer.clone() for buffer in block.buffers()]
        cases.assert_as_good_as_eager(block, *cases.maps((3, 12, 5, 4), torch.float32, torch.channels_last))
        with set_backend("cpp"):
            block(torch.randn(2, 12, 5, 4))
        assert all(map(torch.equal, before, block.buffers()))

    def test_half_precision_buffers(self):
        block = cases.block_of("official", 12, training=True).to(torch.bfloat16)
        twin = copy.deepcopy(block)
        x = torch.randn(3, 12, 5, 4, dtype=torch.bfloat16)
        with set_backend("cpp"):
            block(x)
        with set_backend("eager"):
            twin(x)
        for got, expected in zip(block.buffers(), twin.buffers(), strict=True):
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got, expected, rtol=0.02, atol=0.01)

    def test_a_single_value_is_refused(self):
        block = CBAM(8, preset="official").train()
        for backend in ("auto", "eager"):
            with (
                set_backend(backend),
                pytest.raises(ValueError, match="cannot take the statistics of one value"),
            ):
                block(torch.randn(1, 8, 1, 1))

    def test_no_batch_at_all(self):
        block = CBAM(8, preset="official").train()
        twin = copy.deepcopy(block)
        x = torch.empty(0, 8, 3, 3)
        assert block(x).shape == x.shape
        with set_backend("eager"):
            twin(x)
        for got, expected in zip(block.buffers(), twin.buffers(), strict=True):
            assert torch.equal(got, expected) or got.isnan().equal(expected.isnan())
