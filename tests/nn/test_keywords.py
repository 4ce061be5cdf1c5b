"""A keyword that a module does not have is refused with the nearest one, whatever the module."""

from __future__ import annotations

import copy
import inspect
import pickle
from functools import partial

import pytest
import torch
import torchvision

import cbam
from cbam.errors import CBAMError
from cbam.nn import ECA, Preset


@pytest.mark.parametrize(
    ("build", "given", "nearest"),
    [
        (partial(cbam.CBAM, 64), {"reduction": 16}, "reduction_ratio"),
        (partial(cbam.CBAM, 64), {"ratio": 16}, "reduction_ratio"),
        (partial(cbam.CBAM, 64, preset="official"), {"kernal_size": 3}, "kernel_size"),
        (partial(cbam.CBAM, 64, preset="timm"), {"arrangment": "parallel"}, "arrangement"),
        (cbam.CBAM, {"channels": 64}, "in_channels"),
        (partial(cbam.ChannelAttention, 64), {"reduction": 16}, "reduction_ratio"),
        (partial(cbam.SqueezeExcitation, 64), {"reduction": 4}, "reduction_ratio"),
        (cbam.SpatialAttention, {"kernel": 7}, "kernel_size"),
        (partial(ECA, 64), {"kernel": 3}, "kernel_size"),
        (Preset, {"bias": True}, "mlp_bias"),
        (
            lambda **given: cbam.attach(torchvision.models.resnet18(), **given),
            {"reduction": 8},
            "reduction_ratio",
        ),
        (lambda **given: cbam.plan(torchvision.models.resnet18(), **given), {"site": "layer4"}, "sites"),
    ],
)
def test_the_nearest_keyword_is_named(build, given, nearest):
    (name,) = given
    with pytest.raises(CBAMError, match=rf"{name}'.* Did you mean '{nearest}'\?"):
        build(**given)


def test_the_check_changes_nothing_else():
    """Signatures, copies and subclasses are those of the class itself."""
    assert list(inspect.signature(cbam.SpatialAttention).parameters)[:2] == [
        "kernel_size",
        "spatial_descriptor",
    ]

    class Wider(cbam.CBAM):
        def __init__(self, in_channels, extra):
            super().__init__(in_channels, reduction_ratio=4)
            self.extra = extra

    wide = Wider(16, extra=2)
    x = torch.randn(1, 16, 4, 4)
    for other in (copy.deepcopy(cbam.CBAM(16)), pickle.loads(pickle.dumps(cbam.CBAM(16)))):
        assert other(x).shape == wide(x).shape
    assert copy.deepcopy(Preset(mlp_bias=True)) == pickle.loads(pickle.dumps(Preset(mlp_bias=True)))
