"""benchmarks/insertion.py: the start that it calls old is the one that the identity start replaced."""

import sys
from pathlib import Path

import torch

import cbam

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import scaled_gates


def test_the_old_start_has_no_divisor_and_the_random_weights_without_signs():
    torch.manual_seed(0)
    block = cbam.CBAM(24)
    drawn = block.channel_attention.layers[0].weight.detach().abs().clone()
    scaled_gates._as_it_was(block)
    torch.testing.assert_close(block.channel_attention.layers[0].weight.detach(), drawn)
    assert "spatial_attention.variance" not in block.state_dict()
    x = torch.rand(2, 24, 8, 8)
    assert torch.equal(block(x), x)
