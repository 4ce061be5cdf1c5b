"""Which blocks end in relu(attention + shortcut), and which only look like it."""

from collections import Counter
from unittest.mock import ANY

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import cbam
from cbam.attach.fusion.epilogue import find_epilogue
from cbam.attach.fusion.with_epilogue import find_blocks
from cbam.models import build_model
from tests.attach.networks import Block as PlainBlock
from tests.attach.networks import Net

NETWORKS = {
    "resnet18": {"add, relu": 8},
    "resnet50": {"add, relu": 16},
    "resnext50_32x4d": {"add, relu": 16},
    "wide_resnet50_2": {"add, relu": 16},
    "regnet_y_400mf": {"add, relu": 16},
    "mobilenet_v2": {"add": 10},
    "mobilenet_v3_small": {"add": 6},
    "mnasnet0_5": {"add": 10},
    "efficientnet_b0": {"": 9},  # stochastic depth
    "convnext_tiny": {"": 18},
}
TIMM = {
    "resnet18": {"add, relu": 8},
    "resnet50": {"add, relu": 16},
    "seresnet50": {"add, relu": 16},
    "regnety_002": {"add, relu": 13},  # behind an nn.Identity in the place of a drop path
    "resnetv2_50": {"add": 16},
    "darknet53": {"": 23},
}


def epilogues(model, size=64):
    return Counter(site.epilogue for site in cbam.plan(model, input_size=(3, size, size)).sites)


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision(name):
    assert epilogues(getattr(torchvision.models, name)(num_classes=4)) == NETWORKS[name]


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    import timm

    assert epilogues(timm.create_model(name, num_classes=4)) == TIMM[name]


def test_timm_with_a_drop_path():
    import timm

    found = epilogues(timm.create_model("resnet18", num_classes=4, drop_path_rate=0.2))
    assert found == {"add, relu": 1, "": 7}  # the first block never drops


@pytest.mark.parametrize(("name", "count"), [("resnet20", 9), ("paper_resnet50", 16)])
def test_our_own(name, count):
    assert epilogues(build_model(name, 4), 32) == {"add, relu": count}


@pytest.mark.parametrize(
    ("name", "site"), [("vgg11_bn", "features.9"), ("densenet121", "features.denseblock1")]
)
def test_networks_without_additions(name, site):
    plan = cbam.plan(getattr(torchvision.models, name)(num_classes=4), sites=site, input_size=(3, 64, 64))
    assert [site.epilogue for site in plan.sites] == [""]


class Block(nn.Module):
    """The modules of many kinds of block."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.gelu, self.leaky, self.relu6 = nn.GELU(), nn.LeakyReLU(), nn.ReLU6()
        self.downsample = nn.Conv2d(4, 4, 1)
        self.identity, self.drop = nn.Identity(), nn.Dropout2d(0.5)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))


def adds_in_place(self, x):
    out = self.bn(self.conv(x))
    out += x
    return self.relu(out)


def adds_by_method(self, x):
    return self.relu(self.bn(self.conv(x)).add_(x))


def a_projection_behind(self, x):
    out = self.bn(self.conv(x))
    shortcut = self.downsample(x)
    return self.relu(torch.add(shortcut, out))


def into_the_shortcut(self, x):
    shortcut = self.downsample(x)
    shortcut += self.bn(self.conv(x))
    return self.relu(shortcut)


def into_the_input(self, x):
    return self.relu(x.add_(self.bn(self.conv(x))))


def added_to_itself(self, x):
    out = self.bn(x)
    return out + out


def used_twice(self, x):
    out = self.bn(self.conv(x))
    return self.relu(out + x) + out


def used_meanwhile(self, x):
    out = self.bn(self.conv(x))
    y = out + x
    self.gelu(out)
    return self.relu(y)


def returns_something_else(self, x):
    self.relu(self.bn(self.conv(x)) + x)
    return x


def site_called_twice(self, x):
    return self.relu(self.bn(self.bn(self.conv(x))) + x)


def something_behind(self, x):
    out = self.relu(self.bn(self.conv(x)) + x)
    self.gelu(x)
    return out


def u_used_meanwhile(self, x):
    u = self.conv(x)
    out = self.bn(u)
    return self.relu(out + self.downsample(u))


ENDS = {
    "in place": (adds_in_place, "add, relu"),
    "a method": (adds_by_method, "add, relu"),
    "a projection": (a_projection_behind, "add, relu"),
    "the input of the norm": (lambda self, x: self.bn(x) + x, "add"),
    "F.relu": (lambda self, x: F.relu(self.bn(self.conv(x)) + x, inplace=True), "add, relu"),
    "torch.relu": (lambda self, x: torch.relu(self.bn(self.conv(x)) + x), "add, relu"),
    "relu_": (lambda self, x: (self.bn(self.conv(x)) + x).relu_(), "add, relu"),
    "an identity between": (lambda self, x: self.relu(self.identity(self.bn(self.conv(x))) + x), "add, relu"),
    "no relu": (lambda self, x: x + self.bn(self.conv(x)), "add"),
    "a shared relu": (lambda self, x: self.relu(self.bn(self.relu(self.conv(x))) + x), "add, relu"),
    "another activation": (lambda self, x: self.gelu(self.bn(self.conv(x)) + x), None),
    "a leaky relu": (lambda self, x: self.leaky(self.bn(self.conv(x)) + x), None),
    "a relu up to 6": (lambda self, x: self.relu6(self.bn(self.conv(x)) + x), None),
    "dropout between": (lambda self, x: self.relu(self.drop(self.bn(self.conv(x))) + x), None),
    "dropout behind": (lambda self, x: self.relu(self.drop(self.bn(self.conv(x)) + x)), None),
    "a scale between": (lambda self, x: self.relu(self.scale * self.bn(self.conv(x)) + x), None),
    "a factor": (lambda self, x: self.relu(torch.add(self.bn(self.conv(x)), x, alpha=2)), None),
    "a number": (lambda self, x: self.relu(self.bn(self.conv(x)) + 1.0), None),
    "itself": (added_to_itself, None),
    "a difference": (lambda self, x: self.relu(self.bn(self.conv(x)) - x), None),
    "no addition": (lambda self, x: self.relu(self.bn(self.conv(x))), None),
    "into the shortcut": (into_the_shortcut, None),
    "into the input": (into_the_input, None),
    "used twice": (used_twice, None),
    "used meanwhile": (used_meanwhile, None),
    "something else is returned": (returns_something_else, None),
    "the site twice": (site_called_twice, None),
    "something behind": (something_behind, None),
    "u is used meanwhile": (u_used_meanwhile, None),
    "two results": (lambda self, x: (self.relu(self.bn(self.conv(x)) + x), x), None),
}


@pytest.mark.parametrize("name", ENDS)
def test_ends(name):
    forward, expected = ENDS[name]
    block = type("Mine", (Block,), {"forward": forward})().eval()
    epilogue = find_epilogue(block, block.bn)
    assert (None if epilogue is None else str(epilogue)) == expected
    if epilogue is not None:  # and its two parts put together are the whole
        x = torch.randn(2, 4, 5, 5)
        u, shortcut = epilogue.front()(block, x)
        torch.testing.assert_close(epilogue.back()(block, block.bn(u), shortcut), block(x))


def test_attributes_decide():
    model = Net(PlainBlock(8), PlainBlock(8, "scale"), PlainBlock(8, "drop"))
    assert [site.epilogue for site in cbam.plan(model, input_size=(3, 8, 8)).sites] == ["add, relu", "", ""]


def test_the_innermost_block_is_taken_and_never_the_model():
    inner = PlainBlock(8)
    model = Net(nn.Sequential(inner))
    assert list(find_blocks(model, ["blocks.0.0.bn2"])["blocks.0.0.bn2"]) == [inner, ANY]
    assert find_blocks(inner, ["bn2"]) == {}


def test_a_block_has_one_end():
    model = nn.Sequential(torchvision.models.regnet_y_400mf().trunk_output[0])
    branch, shortcut = "0.block1-0.f.c.1", "0.block1-0.proj.1"
    for sites in ([branch, shortcut], [shortcut, branch]):
        assert list(find_blocks(model, sites)) == sites[:1]


class Strict:
    def __init_subclass__(cls, *, needed):
        pass


def test_classes_that_take_no_subclass_or_copy_in_their_own_way():
    class Copied(PlainBlock):
        def __reduce__(self):
            return Copied, (8,)

    class Fixed(PlainBlock, Strict, needed=1):
        pass

    for kind in (Copied, Fixed):
        assert find_blocks(Net(kind(8)), ["blocks.0.bn2"]) == {}
    assert find_blocks(nn.Sequential(torch.fx.symbolic_trace(PlainBlock(8))), ["0.bn2"]) == {}
