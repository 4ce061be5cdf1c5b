"""The functions give what the modules give, and check their input."""

import pytest
import torch

import cbam.functional as F
from cbam import CBAM, ChannelAttention, SpatialAttention, SqueezeExcitation
from cbam.errors import CBAMError

X = torch.randn(2, 12, 5, 6)


@pytest.mark.parametrize("arrangement", ["channel-spatial", "spatial-channel", "parallel"])
def test_cbam(arrangement):
    block = CBAM(12, 4, arrangement=arrangement, mlp_bias=True, descriptor_order="max-avg")
    mlp, kernel = block.channel_attention.mlp, block.spatial_attention.conv.weight
    got = F.cbam(
        X,
        mlp[0].weight,
        mlp[2].weight,
        kernel,
        mlp[0].bias,
        mlp[2].bias,
        order="max-avg",
        arrangement=arrangement,
    )
    assert torch.equal(got, block(X))


def test_two_dimensional_weights_are_taken_too():
    block = ChannelAttention(12, 4)
    w0, w1 = (block.mlp[i].weight[:, :, 0, 0] for i in (0, 2))
    assert torch.equal(F.channel_attention(X, w0, w1), block(X))


def test_halves():
    se, spatial = SqueezeExcitation(12, 4), SpatialAttention(3, spatial_descriptor="max")
    w = se.mlp[0].weight, se.mlp[2].weight, se.mlp[0].bias, se.mlp[2].bias
    assert torch.equal(F.squeeze_excitation(X, *w), se(X))
    assert torch.equal(F.spatial_attention(X, spatial.conv.weight, descriptor="max"), spatial(X))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.channel_logits(X, torch.rand(2, 8), torch.rand(8, 2)), "built for 8 channels"),
        (lambda: F.channel_logits(X, torch.rand(2, 12), torch.rand(12, 2), pooling="sum"), "unknown pooling"),
        (lambda: F.spatial_logits(X, torch.rand(1, 2, 3, 3), order="mean-max"), "unknown order"),
        (lambda: F.spatial_logits(X, torch.rand(1, 2, 3, 3), descriptor="sum"), "unknown descriptor"),
        (lambda: F.cbam(X, *[torch.rand(2, 12)] * 3, arrangement="both"), "unknown arrangement"),
    ],
)
def test_errors(call, message):
    with pytest.raises(CBAMError, match=message):
        call()
