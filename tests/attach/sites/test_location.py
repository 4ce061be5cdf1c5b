"""Which module a site is at: shared activations, and modules that some tool folds."""

import pytest
import torch
from torch import nn

import cbam
from tests.attach.networks import Block, Bottleneck, C2f, ConvNormAct, Net, RepBlock


def sites(model, kind="auto"):
    return [site.name for site in cbam.plan(model, sites=kind, input_size=(3, 16, 16)).sites]


class Shared(Block):
    """A basic block that gets its activation from outside and ends its branch with it."""

    def __init__(self, channels, act):
        super().__init__(channels)
        self.branch = nn.Sequential(self.conv1, act, self.conv2, self.bn2, act)
        self.relu = act

    def forward(self, x):
        return self.branch(x) + x


ACT = nn.ReLU()


class TestSharedActivations:
    """The site is the nearest module around the activation that runs once and returns the very same tensor."""

    @pytest.mark.parametrize(
        ("blocks", "expected"),
        [
            ((Bottleneck(8), Bottleneck(8)), ["blocks.0.cv2", "blocks.1.cv2"]),
            ((C2f(8), C2f(8, 1)), ["blocks.0.m.0.cv2", "blocks.0.m.1.cv2", "blocks.1.m.0.cv2"]),
            ((Shared(8, ACT), Shared(8, ACT)), ["blocks.0.branch", "blocks.1.branch"]),
        ],
        ids=["bottleneck", "C2f", "given by the caller"],
    )
    def test_residual(self, blocks, expected):
        model, image = Net(*blocks).eval(), torch.rand(2, 3, 16, 16)
        before = model(image)
        plan = cbam.attach(model, input_size=(3, 16, 16))
        assert [site.name for site in plan.sites] == expected
        assert [note for note in plan.notes if not note.startswith("narrow channel gates")] == []
        assert torch.equal(model(image), before)
        assert "cbam" not in str(ConvNormAct.default_act)

    def test_the_attention_is_at_the_branch_end(self):
        model = Net(Bottleneck(8)).eval()
        expected = model.blocks[0].cv2(model.blocks[0].cv1(model.stem(torch.ones(1, 3, 16, 16))))
        cbam.attach(model, input_size=(3, 16, 16))
        seen = []
        model.blocks[0].cv2.cbam.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(torch.ones(1, 3, 16, 16))
        assert torch.equal(seen[0], expected)

    def test_conv(self):
        assert sites(Net(Bottleneck(8)), "conv") == ["stem", "blocks.0.cv1", "blocks.0.cv2"]

    def test_conv_in_blocks_that_nothing_folds(self):
        layers = [nn.Sequential(nn.Conv2d(c, 8, 3), nn.BatchNorm2d(8), ACT) for c in (3, 8)]
        assert sites(nn.Sequential(*layers), "conv") == ["0", "1"]
        layers[0][2] = nn.ReLU()
        assert sites(nn.Sequential(*layers), "conv") == ["0.2", "1.2"], "each runs once"

    def test_one_activation_of_its_own_stays_the_site(self):
        block = Bottleneck(8)
        block.cv2.act = nn.SiLU()
        del ConvNormAct.forward_fuse  # a plain block, that no tool folds
        try:
            assert sites(Net(block)) == ["blocks.0.cv2.act"]
        finally:
            ConvNormAct.forward_fuse = lambda self, x: self.act(self.conv(x))

    def test_without_a_module_around_it_the_branch_is_left_out_and_said(self):
        class Open(Shared):
            def forward(self, x):
                return self.relu(self.bn2(self.conv2(self.relu(self.conv1(x))))) + x

        plan = cbam.plan(Net(Open(8, ACT), Bottleneck(8)), input_size=(3, 16, 16))
        assert [site.name for site in plan.sites] == ["blocks.1.cv2"]
        assert "runs 2 times, but ends a residual branch 1 time:" in plan.notes[0]


class TestModulesThatAToolFolds:
    def test_the_block_and_not_its_norm(self):
        assert sites(Net(Bottleneck(8, act=False))) == ["blocks.0.cv2"]

    def test_not_on_a_branch_that_is_merged_with_others(self):
        assert sites(Net(RepBlock(8), RepBlock(8))) == ["blocks.0", "blocks.1"]

    def test_a_network_that_can_be_folded_as_a_whole_keeps_its_sites(self):
        class Whole(Net):
            def fuse(self): ...

        model = nn.Sequential(Whole(Block(8), Block(8)))
        assert sites(model) == ["0.blocks.0.bn2", "0.blocks.1.bn2"]
