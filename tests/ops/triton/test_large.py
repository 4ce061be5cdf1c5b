"""Maps past 2^31 elements: only the last sample is read, by the kernels that begin with it."""

import pytest
import torch

from tests.ops.library import GPU, needs_triton

pytestmark = [
    needs_triton,
    pytest.mark.skipif(GPU.type != "cpu", reason="tests/ops/test_real_shapes.py does it with all kernels"),
]
N, C, P = 2**22 + 1, 32, 16


@pytest.fixture
def x():
    """A map of 4 GiB, of which no page but the last is ever touched."""
    x = torch.empty(N, C, P, dtype=torch.float16)
    x[-1] = torch.randn(C, P)
    return x


def test_squeeze(x):
    from cbam.ops.triton.forward_passes import squeeze

    maps, argmax = torch.empty(N, 2, P), torch.empty(N, P, dtype=torch.int32)
    squeeze[(1,)](x, None, None, None, None, 0.0, None, None, maps, argmax, N, C, P, 1,
                  FOLD=False, BATCH=False, AVERAGE=0, MAXIMUM=1, LAST=False, GROUP=1, BC=32, BP=16)  # fmt: skip
    torch.testing.assert_close(maps[-1, 0], x[-1].float().mean(0))
    assert torch.equal(argmax[-1].long(), x[-1].argmax(0))


def test_gate_grads(x):
    from cbam.ops.triton.backward_passes import gate_grads

    dt, sums = torch.empty(N, 1, P), torch.empty(N, C)
    gate_grads[(1, 1)](x, None, None, None, None, 0.0, None, x, None, None, None, None, None, None, 0.0, dt, sums, N, C, P, 1, C,
                       BATCH=False, SUMS=1, LOGITS=False, HARD=False, LAST=False, WHOLE=True, GROUP=1, STEPS=1, BC=32,
                       BP=16)  # fmt: skip
    torch.testing.assert_close(dt[-1, 0], x[-1].float().square().sum(0))
    torch.testing.assert_close(sums[-1], x[-1].float().square().sum(1))
