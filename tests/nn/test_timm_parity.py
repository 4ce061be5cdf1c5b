"""The preset "timm" against the real timm module, values, gradients and training-mode batch norm."""

import pytest
import torch

from cbam import CBAM

timm_cbam = pytest.importorskip("timm.layers.cbam")

KEYS = {
    "channel.fc1.weight": "channel_attention.mlp.0.weight",
    "channel.fc2.weight": "channel_attention.mlp.2.weight",
    "spatial.conv.conv.weight": "spatial_attention.conv.weight",
    "spatial.conv.bn.weight": "spatial_attention.norm.weight",
    "spatial.conv.bn.bias": "spatial_attention.norm.bias",
    "spatial.conv.bn.running_mean": "spatial_attention.norm.running_mean",
    "spatial.conv.bn.running_var": "spatial_attention.norm.running_var",
    "spatial.conv.bn.num_batches_tracked": "spatial_attention.norm.num_batches_tracked",
}


@pytest.mark.parametrize("channels", [16, 64, 208])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_equals_timm(channels, training):
    torch.manual_seed(channels)
    theirs = timm_cbam.CbamModule(channels).double().train(training)
    ours = CBAM(channels, preset="timm", dtype=torch.float64).train(training)
    ours.load_state_dict({KEYS[key]: value for key, value in theirs.state_dict().items()}, strict=True)
    x = torch.randn(3, channels, 9, 7, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(ours(a), theirs(b), atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(x)
    (ours(a) * weights).sum().backward()
    (theirs(b) * weights).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=1e-12)  # no ties in random float64 data
    for theirs_key, ours_key in KEYS.items():
        torch.testing.assert_close(ours.state_dict()[ours_key], theirs.state_dict()[theirs_key])


def test_ties_differ_from_timm_as_documented():
    """timm's amax spreads the gradient over ties; ours sends it to the first index."""
    theirs, ours = timm_cbam.CbamModule(1).double().eval(), CBAM(1, preset="timm", dtype=torch.float64).eval()
    ours.load_state_dict({KEYS[key]: value for key, value in theirs.state_dict().items()})
    for block in (theirs, ours):
        x = torch.ones(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
        block(x)[..., 1, 1].sum().backward()
        block.first, block.last = x.grad[0, 0, 0, 0], x.grad[0, 0, 1, 0]
    assert theirs.first != ours.first
