"""What single operations cost, counted by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cbam.evaluate import cost
from cbam.models import build_model


class _Ops(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


N = 4 * 6 * 6  # elements of the (1, 4, 6, 6) input below
OPERATIONS = {
    "relu": (torch.relu, N, 8 * N),
    "in place": (lambda x: x.relu_(), N, 8 * N),
    "view": (lambda x: x.flatten(1).unsqueeze(0).transpose(1, 2), 0, 0),
    "copy": (lambda x: x.transpose(1, 2).contiguous(), 0, 8 * N),
    "square reads once": (lambda x: x * x, N, 8 * N),
    "broadcast read once": (lambda x: x * x[:, :1].expand(-1, 4, -1, -1), N, 4 * (2 * N + 36)),
    "hardswish": (nn.functional.hardswish, N, 8 * N),
    "mean": (lambda x: x.mean((2, 3)), N, 4 * (N + 4)),
    "max over an axis": (lambda x: x.max(1).values, N, 4 * N + 36 * 12),
    "max of two": (lambda x: torch.max(x, x + 1), 2 * N, 8 * N + 12 * N),
    "max pool": (lambda x: nn.functional.max_pool2d(x, 2), 9 * 4 * 4, 4 * N + 9 * 4 * 12),
    "avg pool": (lambda x: nn.functional.avg_pool2d(x, (3, 2)), 6 * 4 * 6, 4 * (N + 6 * 4)),
    "softmax": (lambda x: x.softmax(1), 5 * N, 8 * N),
    "cat": (lambda x: torch.cat([x, x]), 0, 4 * N + 8 * N),
    "sum of all": (torch.sum, N, 4 * (N + 1)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_against_hand_counts(name):
    function, flops, moved = OPERATIONS[name]
    found = cost(_Ops(function), (4, 6, 6))
    assert (found.flops, found.bytes_moved, found.macs, found.uncounted) == (flops, moved, 0, {})


@pytest.mark.parametrize(
    ("module", "macs"),
    [
        (nn.Conv2d(4, 8, 3, groups=4), 8 * 4 * 4 * 9),
        (nn.Conv2d(4, 6, (1, 3), stride=2), 6 * 3 * 2 * 4 * 3),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), 4 * 36 * 6 * 4),
        (nn.Linear(6, 10), 4 * 6 * 10 * 6),
        (_Ops(lambda x: x @ x), 4 * 6 * 6 * 6),
        (_Ops(lambda x: nn.functional.scaled_dot_product_attention(x, x, x)), 4 * 6 * 6 * 12),
    ],
)
def test_macs_of_products(module, macs):
    assert cost(module, (4, 6, 6)).macs == macs


@pytest.mark.parametrize("name", ["resnet20", "torchvision/mobilenet_v3_small", "timm/convnext_atto"])
def test_macs_agree_with_torch_s_own_counter(name):
    model = build_model(name, 10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert 2 * cost(model, (3, 64, 64)).macs == counter.get_total_flops()


def test_batch_statistics_cost_more_than_running_ones():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    assert cost(norm, (4, 6, 6)).flops == 5 * N
    assert cost(nn.BatchNorm2d(4), (4, 6, 6)).flops == 2 * N
    assert cost(nn.GroupNorm(2, 4), (4, 6, 6)).flops == 5 * N


def test_what_was_not_counted_is_reported():
    found = cost(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Upsample(scale_factor=2, mode="bilinear")), (4, 6, 6))
    assert found.uncounted == {"aten.upsample_bilinear2d": 1}
    assert "aten.upsample_bilinear2d x 1" in str(found)
    assert found.modules[2].bytes_moved == 4 * (N + 4 * N)
