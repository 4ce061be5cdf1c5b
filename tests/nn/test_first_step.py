"""The identity start's first step of SGD: no gate runs ahead of the others."""

import pytest
import torch

from cbam import CBAM

RATE = 0.01


def moves(block, seed=0):
    """By how much one step moves each gate's logits, root mean square."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x = 2 * torch.randn(16, block.in_channels, 12, 12, generator=generator)
    block.set_identity()
    (block(x) * torch.randn(x.shape, generator=generator)).sum().div(len(x) * 100).backward()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter -= RATE * parameter.grad
        return [float(gate.logits(x).square().mean().sqrt()) for gate in block.gates]


@pytest.mark.parametrize(("kernel", "divisor"), [(3, 16), (7, 32)])
def test_the_divisor_shortens_a_spatial_gate_s_step_by_its_square(kernel, divisor):
    divided, undivided = (CBAM(64, kernel_size=kernel, arrangement="spatial") for _ in range(2))
    undivided.set_identity = lambda: None
    with torch.no_grad():
        undivided.spatial_attention.conv.weight.zero_()
    short, long = moves(divided)[0], 2 * moves(undivided)[0]  # whose gate is not doubled
    assert long / short == pytest.approx(divisor**2, rel=1e-3)


@pytest.mark.parametrize("width", [16, 32, 48])
def test_the_unit_that_is_on_keeps_the_norm_of_random_signs(width):
    torch.manual_seed(0)
    gate = CBAM(width).channel_attention
    before = gate.layers[0].weight[0].detach().clone()
    gate.keep_alive()
    after = gate.layers[0].weight[0].detach()
    assert (after > 0).all()
    torch.testing.assert_close(after.sum(), before.norm())
    torch.testing.assert_close(after / after.norm(), before.abs() / before.norm())
