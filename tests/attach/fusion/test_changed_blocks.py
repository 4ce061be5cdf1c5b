"""A block whose end runs inside the operator, and somebody who listens to a part of it or puts in another one."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d

import cbam
from cbam.models import build_model
from tests.attach.fusion.blocks import IMAGE, attached, with_gates
from tests.attach.networks import ends, resnet
from tests.ops.library import needs_operator, needs_same_bits

pytestmark = [needs_operator, needs_same_bits]


def doubled(module, inputs, output):
    return output * 2


class TestHooks:
    """Who listens hears what he would have heard, and what he changes is changed."""

    @pytest.mark.parametrize(
        "path",
        [
            "layer1.0",
            "layer1.0.relu",
            "layer1.0.bn2",
            "layer1.0.bn2.host",
            "layer1.0.bn2.cbam",
            "layer1.0.conv2",
        ],
    )
    @pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
    def test_on_a_part(self, path, kind):
        seen = []
        for fuse in (True, False):
            torch.manual_seed(0)
            model = build_model("resnet20", 4)
            attached(model, init="paper", fuse_epilogue=fuse)
            for module in model.modules():
                if isinstance(module, nn.ReLU):
                    module.inplace = False  # torch's backward hooks do not go with it
            calls = []
            hook = lambda module, *values, calls=calls: calls.append(values)  # noqa: E731
            getattr(model.get_submodule(path), f"register_{kind}_hook")(hook)
            image = IMAGE.clone().requires_grad_()
            model(image).sum().backward()
            seen.append([image.grad, *tree_leaves(calls)])
        assert len(seen[0]) > 1
        for got, expected in zip(*seen, strict=True):
            if isinstance(expected, torch.Tensor):
                torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())

    @pytest.mark.parametrize("path", ["layer2.0", "layer2.0.relu", "layer2.0.bn2", "layer2.0.downsample.1"])
    def test_that_changes_the_output(self, path):
        together, apart = with_gates()
        before = together(IMAGE)
        for model in (together, apart):
            model.get_submodule(path).register_forward_hook(doubled)
        assert torch.equal(together(IMAGE), apart(IMAGE))
        assert not torch.equal(together(IMAGE), before)

    def test_only_their_own_block_is_apart(self):
        model = attached().eval()
        handle = model.layer4[1].relu.register_forward_hook(lambda *_: None)
        assert ends(model, IMAGE) == 7
        handle.remove()
        assert ends(model, IMAGE) == 8

    def test_on_a_container_around_the_site(self):
        plain = torchvision.models.regnet_y_400mf(num_classes=4).eval()
        model = attached(copy.deepcopy(plain))
        block, same = model.trunk_output[0][0], plain.trunk_output[0][0]
        for module in (block, same):
            module.f.register_forward_hook(doubled)
        assert torch.equal(model(IMAGE), plain(IMAGE))
        assert ends(model, IMAGE) == 15

    def test_on_all_modules(self):
        model, seen = torchvision.models.regnet_y_400mf(num_classes=4), []
        apart, together = attached(copy.deepcopy(model), fuse_epilogue=False).eval(), attached(model).eval()
        handle = register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
        try:
            assert ends(apart, IMAGE) == 0
            expected = sorted(seen)
            seen.clear()
            assert ends(together, IMAGE) == 0
        finally:
            handle.remove()
        assert sorted(seen) == expected


CHANGES = {
    "another activation": lambda block: setattr(block, "relu", nn.GELU()),
    "a subclass": lambda block: setattr(
        block, "relu", type("Mine", (nn.ReLU,), {"forward": lambda s, x: x})()
    ),
    "its class": lambda block: setattr(block.relu, "__class__", nn.SiLU),
    "its forward": lambda block: setattr(block.relu, "forward", lambda x: x),
    "the site": lambda block: setattr(block, "bn2", nn.Identity()),
    "the shortcut": lambda block: setattr(block, "downsample", nn.Conv2d(64, 64, 1, bias=False)),
    "the block's forward": lambda block: setattr(block, "forward", lambda x: block.conv1(x)),
    "the site's forward": lambda block: setattr(block.bn2, "forward", lambda x: x * 3),
}


class TestReplacedParts:
    """What is put in after `attach` is what runs."""

    @pytest.mark.parametrize("name", CHANGES)
    def test_follows(self, name):
        together, apart = with_gates()
        expected = together(IMAGE)
        for model in (together, apart):
            torch.manual_seed(0)
            CHANGES[name](model.layer1[0])
        if name in ("another activation", "the shortcut"):
            assert torch.equal(together(IMAGE), apart(IMAGE))
        torch.testing.assert_close(together(IMAGE), apart(IMAGE))
        assert not torch.allclose(together(IMAGE), expected, atol=1e-3)
        assert ends(together, IMAGE) == (8 if name == "the shortcut" else 7)

    @pytest.mark.parametrize(
        "norm", [lambda n: FrozenBatchNorm2d(64), nn.SyncBatchNorm.convert_sync_batchnorm]
    )
    def test_another_norm(self, norm):
        together, apart = with_gates()
        for model in (together, apart):
            model.layer1[0].bn2.host = norm(model.layer1[0].bn2.host)
        assert torch.equal(together(IMAGE), apart(IMAGE))
        assert ends(together, IMAGE) == 8  # behind the norm, it is the operator's all the same

    def test_it_comes_back(self):
        model = attached().eval()
        relu, model.layer1[0].relu = model.layer1[0].relu, nn.GELU()
        assert ends(model, IMAGE) == 7
        model.layer1[0].relu = relu
        assert ends(model, IMAGE) == 8

    def test_the_class_s_forward(self, monkeypatch):
        model, original = attached().eval(), BasicBlock.forward
        before = model(IMAGE)
        monkeypatch.setattr(BasicBlock, "forward", lambda self, x: original(self, x) * 2)
        assert ends(model, IMAGE) == 0
        assert not torch.allclose(model(IMAGE), before)

    def test_a_container_that_grows(self):
        plain = torchvision.models.regnet_y_400mf(num_classes=4).eval()
        model = attached(copy.deepcopy(plain))
        model(IMAGE)
        for network in (model, plain):
            network.trunk_output[0][0].f.append(nn.Tanh())
        assert torch.equal(model(IMAGE), plain(IMAGE))
        assert ends(model, IMAGE) == 15

    def test_frozen_and_switched_off(self):
        model, plain = attached(init="paper").eval(), resnet().eval()
        with cbam.disabled(model):
            assert torch.equal(model(IMAGE), plain(IMAGE))
            assert ends(model, IMAGE) == 0
        assert ends(model, IMAGE) == 8

    def test_more_than_one_argument(self):
        class Given(BasicBlock):
            def forward(self, x, factor=1.0):
                out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
                return self.relu(out + x) * factor if factor != 1.0 else self.relu(out + x)

        plain = nn.Sequential(nn.Conv2d(3, 8, 1), Given(8, 8)).eval()
        model = attached(copy.deepcopy(plain), init="identity")
        x = torch.rand(1, 8, 9, 9)
        assert torch.equal(model[1](x, 2.0), plain[1](x, 2.0))
        assert torch.equal(model[1](x=x), plain[1](x=x))
        assert torch.equal(model[1](x), plain[1](x))
        assert [ends(model[1], x), ends(model[1], x, 2.0)] == [1, 0]
