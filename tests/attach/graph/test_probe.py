"""A probe leaves no trace, also when the forward fails."""

import pytest
import torch
from torch import nn

from cbam.attach.graph.probe import default_inputs, run_probe
from cbam.errors import CBAMError
from tests.attach.networks import Block, Net


def fingerprint(model):
    return (
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        {k: v.clone() for k, v in model.state_dict().items()},
        [p.grad for p in model.parameters()],
    )


def same(a, b):
    return (
        a[0] == b[0]
        and a[1] == b[1]
        and a[3] == b[3]
        and all(torch.equal(v, b[2][k]) for k, v in a[2].items())
    )


@pytest.mark.parametrize("channels", [3, 5], ids=["works", "fails"])
def test_leaves_no_trace(channels):
    model, image = Net(Block(8), Block(8, "drop")), (torch.rand(1, channels, 8, 8),)
    model.blocks[0].eval()  # a mixed state must come back as it was
    before = fingerprint(model)
    if channels == 3:
        run_probe(model, image)
    else:
        with pytest.raises(
            CBAMError, match=r"input of shape \[\(1, 5, 8, 8\)\] failed.*input_size=\(C, H, W\)"
        ):
            run_probe(model, image)
    assert same(before, fingerprint(model))


def test_random_state_is_kept():
    model, x = Net(Block(8, "drop")), torch.rand(1, 3, 8, 8)
    state = torch.get_rng_state()
    run_probe(model, (x,))
    default_inputs(model, None)
    assert torch.equal(torch.get_rng_state(), state)


def test_in_place_modules_make_a_new_tensor():
    probe = run_probe(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)), (torch.rand(1, 3, 4, 4),))
    relu = probe.calls[1]
    assert relu.source != relu.output


def test_default_input_follows_the_model():
    model = nn.Conv2d(1, 4, 3).half()
    x = default_inputs(model, None)[0]
    assert (x.shape, x.dtype) == ((1, 1, 224, 224), torch.float16)
    model.default_cfg = {"input_size": (1, 32, 40)}
    assert default_inputs(model, None)[0].shape == (1, 1, 32, 40)
    with pytest.raises(CBAMError, match="input_size expects"):
        default_inputs(model, (32, 32))
