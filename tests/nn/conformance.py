"""The dialects and ablations as one table: (name, arguments of CBAM, arguments of the oracle)."""

import torch

from cbam import CBAM
from tests.nn.oracle import hardsigmoid

TABLE = [
    ("paper", {}, {}),
    ("official", {"preset": "official"}, {"maps": ("max", "avg")}),
    ("timm", {"preset": "timm"}, {}),
    ("avg pooling", {"channel_pooling": "avg"}, {"pooling": "avg"}),
    ("max pooling", {"channel_pooling": "max"}, {"pooling": "max"}),
    ("avg descriptor", {"spatial_descriptor": "avg"}, {"maps": ("avg",)}),
    ("max descriptor", {"spatial_descriptor": "max"}, {"maps": ("max",)}),
    ("conv descriptor", {"spatial_descriptor": "conv"}, {}),
    ("3x3", {"kernel_size": 3}, {}),
    ("1x1", {"kernel_size": 1}, {}),
    ("spatial first", {"arrangement": "spatial-channel"}, {"arrangement": "spatial-channel"}),
    ("parallel", {"arrangement": "parallel"}, {"arrangement": "parallel"}),
    ("parallel official", {"arrangement": "parallel", "preset": "official"},
     {"arrangement": "parallel", "maps": ("max", "avg")}),
    ("channel only", {"arrangement": "channel"}, {"arrangement": "channel"}),
    ("spatial only", {"arrangement": "spatial"}, {"arrangement": "spatial"}),
    ("mlp bias", {"mlp_bias": True}, {}),
    ("hardsigmoid", {"gate": "hardsigmoid"}, {"gate": hardsigmoid}),
    ("doubled gates", {"gate_scale": 2.0}, {"scale": 2.0}),
    ("divided logits", {"gate_scale": 2.0}, {"scale": 2.0}),  # as `set_identity` leaves it
]  # fmt: skip
NAMES = [row[0] for row in TABLE]
SHAPES = [(2, 32, 7, 9), (1, 5, 1, 1), (3, 1, 4, 1), (2, 17, 1, 6), (0, 8, 3, 3)]


def build(name, channels, **more):
    """A block with random weights everywhere, also where a preset starts at zero or one."""
    torch.manual_seed(0)
    block = CBAM(channels, 4, **{**dict(TABLE_BY_NAME[name][0]), **more})
    if name == "divided logits":
        block.spatial_attention.set_divisor(98)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        for key, buffer in block.named_buffers():
            if "norm" in key and buffer.dtype.is_floating_point:
                buffer.copy_(torch.rand_like(buffer) + (0.5 if "var" in key else 0.0))
    return block


def eca_gate(x, block):
    """ECA's gate from its definition: the average of each channel, and of its neighbours, weighted."""
    (weight,) = block.parameters()
    k = weight.shape[-1]
    mean = torch.nn.functional.pad(x.double().mean((-2, -1)), (k // 2, k // 2))
    return torch.sigmoid((mean.unfold(-1, k, 1) * weight.double().flatten()).sum(-1))


# The kinds that are not CBAM: (name, options, its gate for a batch x and a module, as (N, C)).
KINDS = [
    ("eca", {}, eca_gate),
    ("eca", {"kernel_size": 5}, eca_gate),
]

TABLE_BY_NAME = {row[0]: row[1:] for row in TABLE}
