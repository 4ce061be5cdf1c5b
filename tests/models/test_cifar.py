"""The CIFAR ResNets against He et al.'s parameter counts and a forward written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cbam.errors import CBAMError
from cbam.models import CifarResNet
from cbam.models.cifar import PaddedShortcut


def _parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def _by_hand(n):
    def norm(c):
        return 2 * c

    total = 3 * 16 * 9 + norm(16) + 64 * 10 + 10
    for before, c in ((16, 16), (16, 32), (32, 64)):
        total += before * c * 9 + (2 * n - 1) * c * c * 9 + 2 * n * norm(c)
    return total


# Table 6 of He et al.: layers and millions of parameters.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameters_are_those_of_table_6(depth, millions):
    found = _parameters(CifarResNet(depth))
    assert found == _by_hand((depth - 2) // 6)
    assert round(found / 1e6, 1 if depth == 110 else 2) == millions


def test_layers_that_carry_weights_are_counted():
    for depth in (20, 56):
        layers = [m for m in CifarResNet(depth).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert len(layers) == depth


def test_the_forward_is_the_written_one():
    torch.manual_seed(0)
    net = CifarResNet(8, num_classes=5, in_channels=1).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    weights = net.state_dict()

    def conv(x, name, stride=1):
        return F.conv2d(x, weights[f"{name}.weight"], stride=stride, padding=1)

    def norm(x, name):
        mean, var, weight, bias = (
            weights[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x = norm(conv(images, "conv1"), "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        block, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        branch = norm(conv(x, f"{block}.conv1", stride), f"{block}.bn1").clamp(min=0)
        branch = norm(conv(branch, f"{block}.conv2"), f"{block}.bn2")
        shortcut = x
        if stage > 1:
            half = torch.zeros(2, x.shape[1] // 2, *branch.shape[2:], dtype=x.dtype)
            shortcut = torch.cat([half, x[:, :, ::2, ::2], half], dim=1)
        x = (branch + shortcut).clamp(min=0)
    expected = x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(net(images), expected)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (8, 8), (33, 17)])
def test_any_image_size(size):
    assert CifarResNet(20, 10, in_channels=1)(torch.zeros(2, 1, *size)).shape == (2, 10)


def test_initial_spread_is_kaiming_fan_out():
    torch.manual_seed(0)
    net = CifarResNet(20)
    weight = net.layer3[0].conv1.weight  # 32 to 64 channels: fan in and fan out differ
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_the_shortcut_has_no_parameters_and_keeps_gradients():
    shortcut = PaddedShortcut(4, 8)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    y = shortcut(x)
    assert not list(shortcut.parameters())
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()
    y.sum().backward()
    assert int(x.grad.sum()) == 4 * 9


@pytest.mark.parametrize("depth", [0, 2, 18, 21])
def test_impossible_depths(depth):
    with pytest.raises(CBAMError, match=f"6n . 2 layers, given {depth}. Take 20"):
        CifarResNet(depth)


def test_impossible_counts():
    with pytest.raises(CBAMError, match="num_classes=0"):
        CifarResNet(20, 0)
    with pytest.raises(CBAMError, match="in_channels=0"):
        CifarResNet(20, 10, 0)
