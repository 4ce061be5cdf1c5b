"""The layer that class activation maps read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cbam.attach import attach
from cbam.errors import CBAMError
from cbam.models import build_model, cam_layer


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("resnet20", (1, 28, 28), "layer3"),
        ("resnet18", (3, 64, 64), "layer4"),
        ("resnet18", (3, 32, 32), "layer3"),
        ("timm/resnet18", (3, 64, 64), "layer4"),
        ("mobilenet_v2", (3, 64, 64), "features"),
        ("regnet_y_400mf", (3, 64, 64), "trunk_output"),
        ("timm/tf_efficientnet_lite0", (3, 64, 64), "bn2"),
        ("convnext_tiny", (3, 64, 64), "features"),
    ],
)
def test_known_networks(name, size, layer):
    model = build_model(name, 10, in_channels=size[0])
    assert cam_layer(model, size) == layer
    shapes = []
    model.get_submodule(layer).register_forward_hook(lambda *a: shapes.append(a[2].shape))
    model.eval()(torch.zeros(1, *size))
    assert min(shapes[0][2:]) > 1


@pytest.mark.parametrize("attention", ["cbam", "se", "spatial"])
def test_attention_does_not_change_the_layer(attention):
    model = build_model("resnet20", 10)
    attach(model, attention)
    assert cam_layer(model, (3, 32, 32)) == "layer3"


def test_the_model_is_left_alone_after_failures_too():
    model = build_model("resnet20", 10)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    cam_layer(model, (3, 32, 32))
    with pytest.raises(CBAMError, match=r"forward pass of CifarResNet failed for input_size=\(7, 32, 32\)"):
        cam_layer(model, (7, 32, 32))
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_networks_without_a_map_are_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(CBAMError, match=r"larger than 1 x 1 for input_size=\(3, 2, 2\)"):
        cam_layer(flat, (3, 2, 2))
