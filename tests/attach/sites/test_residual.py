"""The end of every residual branch: on networks where the answer is known by reading them."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import cbam
from cbam.attach.graph.probe import run_probe
from cbam.attach.sites.location import Location
from cbam.attach.sites.residual import find_branch_ends
from tests.attach.networks import Block, Net


def ends_of(model, size=(3, 16, 16)):
    return find_branch_ends(run_probe(model, (torch.rand(1, *size),)))


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("norm", Location("blocks.0.bn2", "output")),
        ("scale", Location("blocks.0.bn2", "output")),  # back over a bare layer scale
        (
            "drop",
            Location("blocks.0.bn2", "output"),
        ),  # before the dropout, which only hands on in evaluation
        ("scale, drop", Location("blocks.0.drop", "input")),  # nothing but the dropout holds this tensor
    ],
)
def test_how_a_branch_ends(end, expected):
    assert ends_of(Net(Block(8, end))) == ([expected], [])


def test_a_branch_that_ends_outside_any_module_is_left_out_and_said():
    ends, notes = ends_of(Net(Block(8, "function"), Block(8)))
    assert ends == [Location("blocks.1.bn2", "output")]
    assert "ends in an operation outside any module" in notes[0]


def test_a_module_that_also_runs_elsewhere_is_left_out_and_said():
    class Reused(Block):
        def forward(self, x):
            return self.bn2(self.conv2(self.bn2(self.conv1(x)))) + x

    ends, notes = ends_of(Net(Reused(8)))
    assert ends == []
    assert "runs 2 times, but ends a residual branch 1 time:" in notes[0]


def test_a_block_that_runs_twice_is_one_site():
    block = Block(8)
    assert ends_of(Net(block, block))[0] == [Location("blocks.0.bn2", "output")]


def test_in_place_addition_with_the_shortcut_first():
    class Swapped(Block):
        def forward(self, x):
            x = x.clone()
            x += self.bn2(self.conv2(self.conv1(x)))
            return x

    assert ends_of(Net(Swapped(8)))[0] == [Location("blocks.0.bn2", "output")]


def test_a_long_skip_over_the_blocks_is_no_branch():
    class LongSkip(Net):
        def forward(self, x):
            x = self.stem(x)
            return self.fc((x + self.blocks(x)).mean((2, 3)))

    ends, notes = ends_of(LongSkip(Block(8), Block(8)))
    assert [end.name for end in ends] == ["blocks.0.bn2", "blocks.1.bn2"]
    assert notes == []


def test_an_addition_of_equal_ways_is_no_residual():
    class TwoWays(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    assert ends_of(TwoWays()) == ([], [])


def test_two_long_ways_are_no_residual():
    """Such as the fusions of HRNet: the shorter way is a branch of its own, not a shortcut."""

    class Fusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.long = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(3)])
            self.short = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(2)])

        def forward(self, x):
            return self.long(x) + self.short(x)

    assert ends_of(Fusion()) == ([], [])


@pytest.mark.parametrize("up", ["upsample", "transposed", "transposed and 1x1"])
def test_the_sums_of_a_feature_pyramid_are_no_blocks(up):
    """Their ways go through whole stages, whose blocks of fewer channels would be parts of the pyramid's "block"."""

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first = nn.Conv2d(3, 4, 3, padding=1), Block(4)
            self.down, self.second = nn.Conv2d(4, 8, 3, 2, 1), Block(8)
            self.fine, self.coarse = nn.Conv2d(4, 16, 1), nn.Conv2d(8, 16, 1)
            self.up = {
                "upsample": nn.Upsample(scale_factor=2),
                "transposed": nn.ConvTranspose2d(16, 16, 2, 2),
                "transposed and 1x1": nn.Sequential(nn.ConvTranspose2d(16, 16, 2, 2), nn.Conv2d(16, 16, 1)),
            }[up]

        def forward(self, x):
            finer = self.first(self.stem(x))
            coarser = self.second(self.down(finer))
            return self.up(self.coarse(coarser)) + self.fine(finer)

    ends, notes = ends_of(Pyramid())
    assert [location.name for location in ends] == ["first.bn2", "second.bn2"]
    assert notes == []


def test_a_branch_whose_end_is_used_elsewhere_too_is_left_out_and_said():
    class Leaking(Block):
        def forward(self, x):
            y = self.bn2(self.conv2(self.conv1(x)))
            return torch.relu(y + x) + y.mean()

    ends, notes = ends_of(Net(Leaking(8)))
    assert ends == []
    assert len(notes) == 1


def test_a_branch_without_convolution_is_none_of_ours():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x):  # (N, H, W, C), as in Swin
            return x + self.mlp(self.norm(x))

    assert ends_of(nn.Sequential(nn.Conv2d(3, 8, 1), Transformer())) == ([], [])


RESNET50 = [f"layer{s}.{b}.bn3" for s, n in enumerate((3, 4, 6, 3), 1) for b in range(n)]
RESNET18 = [f"layer{s}.{b}.bn2" for s in range(1, 5) for b in range(2)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", RESNET18),
        ("resnet50", RESNET50),
        ("resnext50_32x4d", RESNET50),
        ("wide_resnet50_2", RESNET50),
        ("timm/resnet18", RESNET18),
        ("timm/resnet50", RESNET50),
        ("timm/resnet50d", RESNET50),
        ("timm/resnext50_32x4d", RESNET50),
        ("timm/res2net50_26w_4s", RESNET50),  # and none of the additions between its splits
    ],
)
def test_resnets(name, expected):
    model = timm.create_model(name[5:]) if name.startswith("timm/") else getattr(torchvision.models, name)()
    plan = cbam.plan(model, input_size=(3, 64, 64))
    assert [site.name for site in plan.sites] == expected
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("name", "count", "first", "channels"),
    [
        # MobileNetV2, V3 and EfficientNet add only where stride and channels stay: 10, 6 and 9 times.
        ("mobilenet_v2", 10, "features.3.conv.3", 24),
        ("mobilenet_v3_small", 6, "features.3.block.2.1", 24),
        ("mobilenet_v3_large", 10, "features.1.block.1.1", 16),
        ("efficientnet_b0", 9, "features.2.1.block.3.1", 24),
        ("regnet_y_400mf", 16, "trunk_output.block1.block1-0.f.c.1", 48),
        ("regnet_x_400mf", 22, "trunk_output.block1.block1-0.f.c.1", 32),
        ("convnext_tiny", 18, "features.1.0.stochastic_depth", 96),
        ("mnasnet0_5", 10, "layers.8.1.layers.7", 16),
    ],
)
def test_other_families(name, count, first, channels):
    sites = cbam.plan(getattr(torchvision.models, name)(), input_size=(3, 64, 64)).sites
    assert (len(sites), sites[0].name, sites[0].channels) == (count, first, channels)


def test_the_count_is_that_of_the_additions_in_the_code():
    """Independent of the tracer: torchvision's own flags say which blocks add."""
    model = torchvision.models.efficientnet_b0()
    adding = [m for m in model.modules() if getattr(m, "use_res_connect", False)]
    assert len(cbam.plan(model, input_size=(3, 64, 64)).sites) == len(adding) == 9
