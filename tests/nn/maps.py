"""Maps of one, two and three sizes, and blocks for them."""

import itertools

import pytest
import torch

from cbam import CBAM
from tests.ops.library import needs_operator

SIZES = {1: (11,), 2: (4, 5), 3: (3, 4, 5)}
BACKENDS = ["eager", pytest.param("auto", marks=needs_operator)]
every_dims = pytest.mark.parametrize("dims", SIZES)
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def random(dims, n=2, c=6, **options):
    return torch.randn(n, c, *SIZES[dims], **options)


def build(dims, channels=6, kernel_size=3, **options):
    """A block with random weights everywhere, also where a preset starts at zero or one."""
    torch.manual_seed(0)
    options = {"dtype": torch.float64, **options}
    block = CBAM(channels, 2, kernel_size, dims=dims, **options).eval()
    with torch.no_grad():
        for name, tensor in itertools.chain(block.named_parameters(), block.named_buffers()):
            if tensor.is_floating_point() and "gate_scale" not in name:
                tensor.copy_(torch.rand_like(tensor) if "var" in name else torch.randn_like(tensor) * 0.6)
    return block
