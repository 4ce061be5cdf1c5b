"""The language of sites."""

import re

import pytest
from torch import nn

from cbam.attach.sites.select import matcher, select
from cbam.errors import CBAMError

MODULES = {
    "layer1.0.bn2": nn.BatchNorm2d(4), "layer1.0.conv": nn.Conv2d(4, 4, 1), "layer1.1.bn2": nn.BatchNorm2d(4),
    "layer2.0.bn2": nn.BatchNorm2d(4),
}  # fmt: skip


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("layer2.0.bn2", ["layer2.0.bn2"]),
        ("layer1.*.bn2", ["layer1.0.bn2", "layer1.1.bn2"]),
        ("*.bn2", None),
        ("**.bn2", ["layer1.0.bn2", "layer1.1.bn2", "layer2.0.bn2"]),
        ("layer?.0.bn2", ["layer1.0.bn2", "layer2.0.bn2"]),
        (r"re:layer[12]\.0\.bn2", ["layer1.0.bn2", "layer2.0.bn2"]),
        ("re:bn2", None),  # the whole path must match
        (nn.Conv2d, ["layer1.0.conv"]),
        ("Conv2d", ["layer1.0.conv"]),
        (
            lambda name, module: isinstance(module, nn.BatchNorm2d) and "1." in name,
            ["layer1.0.bn2", "layer1.1.bn2"],
        ),
    ],
)
def test_selectors(selector, expected):
    if expected is None:
        with pytest.raises(CBAMError, match="matches none of 4 modules"):
            select([selector], MODULES)
    else:
        assert select([selector], MODULES) == expected


def test_every_selector_must_match():
    with pytest.raises(CBAMError, match=r"'layer1.0.bn3' matches none.*Closest: 'layer1.0.bn2'"):
        select(["layer1.0.bn2", "layer1.0.bn3"], MODULES)


def test_a_path_goes_before_a_class():
    modules = {"Conv2d": nn.ReLU(), "layer": nn.Conv2d(4, 4, 1)}
    assert select(["Conv2d"], modules) == ["Conv2d"]
    with pytest.raises(CBAMError, match=r"'Conv1d' matches none of 2 modules\. Closest: 'Conv2d'"):
        select(["Conv1d"], modules)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("re:layer[", "is not a regular expression"),
        (int, "must be a torch.nn.Module, got int"),
        (3, "sites expects 'auto'"),
        (nn.Linear, "Linear matches none of 4 modules. Types here: BatchNorm2d, Conv2d"),
    ],
)
def test_errors(selector, message):
    with pytest.raises(CBAMError, match=re.escape(message)):
        select([selector], MODULES)


def test_a_dot_is_a_dot():
    assert not matcher("layer1.0")("layer1x0", nn.ReLU())
