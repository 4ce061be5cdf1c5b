"""ChannelAttention, SpatialAttention and SqueezeExcitation on their own."""

import numpy as np
import pytest
import torch

import cbam
from cbam import CBAM, ChannelAttention, SpatialAttention, SqueezeExcitation
from cbam.errors import CBAMError
from tests.nn import oracle


def test_channel_then_spatial_is_cbam():
    block, x = CBAM(16), torch.randn(2, 16, 6, 6)
    channel, spatial = ChannelAttention(16), SpatialAttention()
    channel.load_state_dict(
        {k.removeprefix("channel_attention."): v for k, v in block.state_dict().items() if "mlp" in k}
    )
    spatial.load_state_dict({"conv.weight": block.spatial_attention.conv.weight})
    assert torch.equal(spatial(channel(x)), block(x))


def test_squeeze_excitation_equals_its_equation():
    block = SqueezeExcitation(24, 4, dtype=torch.float64)
    x = torch.randn(3, 24, 5, 4, dtype=torch.float64)
    w = {k: v.detach().numpy() for k, v in block.state_dict().items()}
    z = oracle.channel_logits(
        x.numpy(),
        w["mlp.0.weight"][..., 0, 0],
        w["mlp.2.weight"][..., 0, 0],
        w["mlp.0.bias"],
        w["mlp.2.bias"],
        "avg",
    )
    np.testing.assert_allclose(
        block(x).detach().numpy(), x.numpy() * oracle.sigmoid(z)[:, :, None, None], atol=1e-12
    )


@pytest.mark.parametrize(
    "build", [lambda: ChannelAttention(16), lambda: SpatialAttention(), lambda: SqueezeExcitation(16)]
)
def test_identity(build):
    block, x = build(), torch.randn(2, 16, 5, 5)
    assert not torch.equal(block(x), x)
    block.set_identity()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    "build", [ChannelAttention, SqueezeExcitation, lambda c: CBAM(c, preset="official").channel_attention]
)
def test_identity_with_a_single_hidden_unit_can_learn(build):
    maps = (torch.randn(8, 16, 6, 6) + torch.randn(16, 1, 1)).relu()
    for seed in range(60):
        torch.manual_seed(seed)
        block = build(16)
        block.set_identity()
        (block(maps) * torch.randn(16, 6, 6)).sum().backward()
        assert block.layers[1].weight.grad.abs().max() > 0, f"seed {seed}"


def test_gate_shapes():
    x = torch.randn(2, 16, 5, 7)
    assert ChannelAttention(16).gate(x).shape == (2, 16, 1, 1)
    assert SpatialAttention().gate(x).shape == (2, 1, 5, 7)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChannelAttention(16, channel_pooling="mean"), "unknown channel_pooling 'mean'"),
        (lambda: ChannelAttention(16, gate="relu"), "unknown gate 'relu'"),
        (lambda: SqueezeExcitation(0), "in_channels must be at least 1"),
        (lambda: SpatialAttention(4), "nearest: 3 or 5"),
        (lambda: SpatialAttention(spatial_descriptor="conv"), "pass in_channels=C"),
        (lambda: SpatialAttention(descriptor_order="avg"), "unknown descriptor_order"),
    ],
)
def test_errors(build, message):
    with pytest.raises(CBAMError, match=message):
        build()


def test_repr_tells_what_it_is():
    assert "doubled" not in repr(CBAM(16))
    block = CBAM(16, preset="official")
    block.set_identity()
    text = repr(block)
    assert "preset='official'" in text
    assert "descriptor_order='max-avg'" in text
    assert "gate_scale=2" in text


class TestTheNormOfASingleValue:
    """One image with a map of one pixel: torch's batch norm refuses it in training."""

    @pytest.mark.parametrize("backend", ["auto", "eager"])
    def test_says_what_to_do(self, backend):
        block = CBAM(8, preset="official")
        with (
            cbam.set_backend(backend),
            pytest.raises(CBAMError, match=r"norm of the spatial gate cannot take.*1 x 1"),
        ):
            block(torch.rand(1, 8, 1, 1))
        assert block.eval()(torch.rand(1, 8, 1, 1)).shape == (1, 8, 1, 1)

    def test_names_the_site(self):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
        cbam.attach(model, sites="1", preset="official", input_size=16)
        with pytest.raises(CBAMError, match="spatial gate at '1' cannot take the statistics of one value"):
            model.train()(torch.rand(1, 3, 5, 5))
