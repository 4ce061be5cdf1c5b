"""Stages, blocks and convolutions, on networks where the answer is known by reading them."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model

import cbam
from cbam.attach.graph.probe import run_probe
from cbam.attach.sites.block import find_blocks
from cbam.attach.sites.conv import find_convolutions
from cbam.attach.sites.location import Location
from cbam.attach.sites.stage import find_stages
from cbam.errors import CBAMError
from tests.attach.networks import Block, Net

NAMES = [
    "vgg16",
    "alexnet",
    "densenet121",
    "squeezenet1_0",
    "inception_v3",
    "googlenet",
    "shufflenet_v2_x0_5",
]
# The end of every stage of networks without residual additions, read from torchvision's sources.
STAGES = {
    "vgg16": ["features.3", "features.8", "features.15", "features.22", "features.29"],
    "alexnet": ["features.1", "features.4", "features.11"],
    "densenet121": ["features.relu0", *(f"features.denseblock{i}" for i in (1, 2, 3)), "features.norm5"],
    "squeezenet1_0": ["features.1", "features.5", "features.10", "features.12"],
    "inception_v3": [
        "Conv2d_1a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"
    ],
    "googlenet": ["conv1", "conv3", "inception3b", "inception4e", "inception5b"],
    "shufflenet_v2_x0_5": ["conv1.2", "maxpool", "stage2.3", "stage3.7", "conv5.2"],
}  # fmt: skip


def build(name):
    torch.manual_seed(0)
    options = {"init_weights": True} if name in ("inception_v3", "googlenet") else {}
    return get_model(name, weights=None, **options).eval()


def names(sites):
    return [site.name for site in sites]


class TestNetworksWithoutResidualBranches:
    @pytest.mark.parametrize("name", NAMES)
    def test_auto_goes_to_the_end_of_every_stage_and_changes_no_bit(self, name):
        model, image = build(name), torch.rand(2, 3, 128, 128)
        keys, before = list(model.state_dict()), model(image)
        attachment = cbam.attach(model, input_size=(3, 128, 128))
        assert names(attachment.sites) == STAGES[name]
        assert "no convolutional residual branches: attention goes to the end of every stage" in str(
            attachment
        )
        assert torch.equal(model(image), before)
        assert [key for key in model.state_dict() if ".cbam." not in key] == keys
        assert cbam.detach(model) == len(STAGES[name])
        assert torch.equal(model(image), before)

    @pytest.mark.parametrize(
        ("name", "number", "first"),
        [
            ("googlenet", 9, "inception3a"),
            ("squeezenet1_0", 8, "features.3"),
            ("densenet121", 58, "features.denseblock1.denselayer1"),
            ("inception_v3", 11, "Mixed_5b"),
        ],
    )
    def test_blocks_are_the_modules_with_several_convolutions(self, name, number, first):
        sites = names(cbam.plan(build(name), sites="block", input_size=(3, 128, 128)).sites)
        assert (len(sites), sites[0]) == (number, first)


class Slices(nn.Module):
    """A residual block whose branch ends in a slice, as those of dual-path networks do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.conv(x)[:, :8])


class TestAutoWithoutAResidualBranchThatEndsInAModule:
    def test_it_goes_to_the_stages_and_says_why(self):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), Slices(), nn.MaxPool2d(2), Slices()).eval()
        plan = cbam.plan(model, input_size=(3, 32, 32))
        assert (
            plan.notes[0] == "no residual branch ends in a module: attention goes to the end of every stage"
        )
        assert "outside any module" in plan.notes[1]
        assert names(plan.sites) == names(cbam.plan(model, sites="stage", input_size=(3, 32, 32)).sites)

    def test_without_stages_it_goes_behind_the_convolutions(self):
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        model = nn.Sequential(stem, nn.Flatten(2), nn.Linear(64, 4))
        plan = cbam.plan(model, input_size=(3, 32, 32))
        assert names(plan.sites) == names(cbam.plan(model, sites="conv", input_size=(3, 32, 32)).sites)


class TestResidualNetworks:
    def test_stages_are_outside_of_the_blocks(self):
        """Behind the addition, and not at a ReLU that runs in two places."""
        sites = names(cbam.plan(get_model("resnet18"), sites="stage").sites)
        assert sites == ["relu", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]

    def test_blocks_are_behind_the_addition(self):
        sites = names(cbam.plan(get_model("resnet18"), sites="block").sites)
        assert sites == [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]

    def test_a_module_that_runs_twice_is_no_place_behind_a_convolution(self):
        sites = names(cbam.plan(get_model("resnet18"), sites="conv").sites)
        assert len(sites) == 20
        assert {"layer1.0.bn1", "layer1.0.bn2", "layer2.0.downsample.1", "relu"} <= set(sites)
        assert "layer1.0.relu" not in sites

    def test_every_convolution_of_a_mobilenet(self):
        model = get_model("mobilenet_v2").eval()
        image = torch.rand(1, 3, 64, 64)
        before = model(image)
        attachment = cbam.attach(model, sites="conv", input_size=(3, 64, 64))
        assert len(attachment.sites) == sum(
            isinstance(m, nn.Conv2d) for n, m in model.named_modules() if "cbam" not in n
        )
        assert torch.equal(model(image), before)


class TestRules:
    def probe(self, model, size=16):
        return run_probe(model, (torch.rand(1, 3, size, size),))

    def test_a_map_of_one_position_and_the_logits_are_left_out(self):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )  # fmt: skip
        probe = self.probe(model)
        assert find_stages(probe).locations == [Location("1", "output")]
        assert find_convolutions(probe).locations == [Location("1", "output")]

    def test_a_pool_alone_makes_no_stage(self):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 5))
        assert find_stages(self.probe(model)).locations == [Location("0", "output")]

    def test_a_branch_is_not_the_end_of_a_stage(self):
        class Forked(nn.Module):
            def __init__(self):
                super().__init__()
                self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

            def forward(self, x):
                return torch.cat([self.left(x), self.right(x)], 1)

        model = nn.Sequential(Forked(), nn.Flatten(), nn.Linear(8 * 196, 5))
        assert find_stages(self.probe(model)).locations == [Location("0", "output")]
        assert find_blocks(self.probe(model)).locations == [Location("0", "output")]

    def test_kinds_and_names_go_together(self):
        sites = names(
            cbam.plan(
                Net(Block(8), Block(8)), sites=["stage", "blocks.0.conv1"], input_size=(3, 16, 16)
            ).sites
        )
        assert sites == ["blocks.0.conv1", "blocks.1"]

    def test_a_kind_wins_over_a_module_of_its_name_and_says_so(self):
        net = Net(Block(8))
        net.block = nn.Identity()
        table = str(cbam.plan(net, sites="block", input_size=(3, 16, 16)))
        assert "the module of that name is sites='re:block'" in table

    def test_a_kind_that_finds_nothing_names_those_that_do(self):
        with pytest.raises(
            CBAMError, match=r"'residual' finds no site in VGG.*Kinds that it has: 'stage' \(5\)"
        ):
            cbam.plan(build("vgg16"), sites="residual", input_size=(3, 64, 64))

    def test_a_kind_that_is_misspelt(self):
        with pytest.raises(CBAMError, match=r"'blok' matches none of .* Closest: 'block'"):
            cbam.plan(Net(Block(8)), sites="blok", input_size=(3, 16, 16))
