"""Blocks whose end runs inside the operator: the same function, the same object, and out of the way where it must."""

import copy
import gc
import math
import weakref

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

import cbam
from cbam import set_backend
from cbam.attach.fusion import with_epilogue
from tests.attach.fusion.blocks import IMAGE, SIZE, attached, with_gates
from tests.attach.networks import Seen, ends, resnet
from tests.ops.library import needs_operator, needs_same_bits

pytestmark = [needs_operator, needs_same_bits]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


class TestSameFunction:
    @pytest.mark.parametrize("layout", LAYOUTS, ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_identity_bit_for_bit(self, training, dtype, layout):
        plain = resnet().to(memory_format=layout).train(training)
        image = IMAGE.contiguous(memory_format=layout)
        together, apart = attached(copy.deepcopy(plain)), attached(copy.deepcopy(plain), fuse_epilogue=False)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), Seen() as seen:
            expected = plain(image)
            assert torch.equal(apart(image), expected)
            assert seen.ends == 0
            assert torch.equal(together(image), expected)
            assert seen.ends == 8
        for key, value in plain.state_dict().items():
            assert torch.equal(together.state_dict()[key], value), key

    def test_weights_in_bfloat16(self):
        """There the norm stays outside of the operator."""
        plain = resnet().bfloat16().eval()
        together, image = attached(copy.deepcopy(plain)), IMAGE.bfloat16()
        assert torch.equal(together(image), plain(image))
        assert ends(together, image) == 8

    @pytest.mark.parametrize("name", ["resnet50", "regnet_y_400mf", "mobilenet_v2", "mobilenet_v3_small"])
    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_other_networks(self, name, training):
        torch.manual_seed(0)
        plain = getattr(torchvision.models, name)(
            num_classes=4, **({"dropout": 0.0} if "mob" in name else {})
        )
        plain.train(training)
        together = attached(copy.deepcopy(plain))
        sites = sum(bool(site.epilogue) for site in cbam.plan(plain, **SIZE).sites)
        assert torch.equal(together(IMAGE), plain(IMAGE))
        assert ends(together, IMAGE) == sites > 0

    @pytest.mark.parametrize("name", ["seresnet50", "regnety_002"])
    def test_hosts_that_are_no_norms(self, name):
        import timm

        torch.manual_seed(0)
        plain = timm.create_model(name, num_classes=4).eval()
        together = attached(copy.deepcopy(plain))
        with Seen() as seen:
            assert torch.equal(together(IMAGE), plain(IMAGE))
        assert seen.calls == seen.ends == {"seresnet50": 16, "regnety_002": 13}[name]

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_gradients(self, training):
        together, apart = with_gates()
        found = []
        for model in (together, apart):
            image = IMAGE.clone().requires_grad_()
            y = model.train(training)(image)
            y.square().sum().backward()
            found.append([y.detach(), image.grad, *(p.grad for p in model.parameters())])
        assert torch.equal(found[0][0], found[1][0])
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())

    def test_training_steps(self):
        losses = []
        for model in with_gates():
            model.train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for _ in range(3):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(IMAGE), torch.tensor([1, 2]))
                loss.backward()
                optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)

    def test_nothing_more_is_kept(self):
        found = [cbam.cost(attached(fuse_epilogue=fuse), (3, 64, 64)).bytes_saved for fuse in (False, True)]
        assert found[0] == found[1]

    def test_costs(self):
        apart, together = (cbam.cost(attached(fuse_epilogue=fuse), (3, 64, 64)) for fuse in (False, True))
        assert together.flops == apart.flops
        elements = sum(s.channels * math.prod(s.size) for s in cbam.plan(resnet(), **SIZE).sites)
        # The operator writes y and reads the shortcut; apart, three more maps are written and read again.
        assert apart.bytes_moved - together.bytes_moved == 4 * elements * 4
        assert {row.name for row in together.modules} == {row.name for row in apart.modules}

    def test_shared_blocks(self):
        torch.manual_seed(0)
        block = BasicBlock(8, 8)
        plain = nn.Sequential(nn.Conv2d(3, 8, 1), block, block).eval()
        expected = plain(IMAGE)
        assert torch.equal(attached(plain)(IMAGE), expected)
        assert ends(plain, IMAGE) == 2

    @pytest.mark.parametrize(
        "shortcut", [torch.rand(1), torch.rand(2, 8, 64, 64).double(), torch.rand(8, 64, 64)]
    )
    def test_a_shortcut_that_is_not_like_the_map(self, shortcut):
        class Other(BasicBlock):
            pass

        class Given(nn.Module):
            def forward(self, x):
                return shortcut

        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(3, 8, 1), Other(8, 8)).eval()
        together = attached(copy.deepcopy(plain))
        for model in (plain, together):
            model[1].downsample = Given()
        with Seen() as seen:
            assert torch.equal(together(IMAGE), plain(IMAGE))
        assert (seen.calls, seen.norms, seen.ends) == (1, 1, 0)

    def test_second_derivatives(self):
        found = []
        for model in with_gates():
            image = IMAGE[:1, :, :32, :32].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(model(image).square().sum(), image, create_graph=True)
            (second,) = torch.autograd.grad(gradient.square().sum(), image)
            found.append(second)
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3 * found[1].abs().max().item())


class TestSameObject:
    def test_names_keys_classes_and_parts(self):
        model = resnet()
        blocks = {name: module for name, module in model.named_modules() if isinstance(module, BasicBlock)}
        attached(model)
        apart = attached(fuse_epilogue=False)
        assert list(model.state_dict()) == list(apart.state_dict())
        for what in ("named_modules", "named_parameters", "named_buffers"):
            assert [n for n, _ in getattr(model, what)()] == [n for n, _ in getattr(apart, what)()]
        for name, block in blocks.items():
            assert model.get_submodule(name) is block
            assert isinstance(block, BasicBlock)
            assert "ends together with its attention" in repr(block)

    def test_detach_restores_the_classes(self):
        model = resnet()
        types = [(name, module, type(module)) for name, module in model.named_modules()]
        attached(model)
        model(IMAGE)
        cbam.detach(model)
        assert [(name, module, type(module)) for name, module in model.named_modules()] == types
        assert "together" not in repr(model)
        attached(model)
        assert ends(model.eval(), IMAGE) == 8

    def test_attaching_again_can_leave_it_out(self):
        model = attached()
        cbam.detach(model)
        assert ends(attached(model, fuse_epilogue=False).eval(), IMAGE) == 0

    def test_table(self):
        text = str(cbam.plan(resnet(), **SIZE))
        assert "the epilogue of the block (add, relu) runs inside the operator at 8 sites" in text
        assert "block's end" not in str(cbam.plan(resnet(), fuse_epilogue=False, **SIZE))
        assert str(attached(resnet()) and cbam.plan(resnet(), **SIZE)) == text

    def test_blocks_are_not_kept_alive(self):
        model = attached().eval()
        model(IMAGE)
        block = weakref.ref(model.layer1[0])
        del model
        gc.collect()
        assert block() is None


class TestBackends:
    def test_eager(self):
        together, apart = with_gates()
        with set_backend("eager"):
            assert torch.equal(together(IMAGE), apart(IMAGE))
            assert ends(together, IMAGE) == 0
        assert together.layer1[0] not in with_epilogue._found  # nobody looked

    def test_forced(self):
        with set_backend("cpp"):
            assert ends(attached().eval(), IMAGE) == 8

    def test_where_the_norm_must_run_apart(self, monkeypatch):
        monkeypatch.setattr("cbam.nn.after_norm.exact", lambda *_: False)
        plain = resnet().eval()
        model = attached(copy.deepcopy(plain))
        assert torch.equal(model(IMAGE), plain(IMAGE))
        assert ends(model, IMAGE) == 8

    def test_double_precision(self):
        plain = resnet().double().eval()
        model = attached(copy.deepcopy(plain))
        assert torch.equal(model(IMAGE.double()), plain(IMAGE.double()))
        assert ends(model, IMAGE.double()) == 8

    @pytest.mark.parametrize("arrangement", ["parallel", "spatial-channel"])
    def test_arrangements_that_one_call_does_not_compute(self, arrangement):
        plain = resnet().eval()
        model = attached(copy.deepcopy(plain), arrangement=arrangement)
        assert torch.equal(model(IMAGE), plain(IMAGE))
        assert ends(model, IMAGE) == 0

    def test_function_transforms(self):
        model = attached(init="paper").eval()
        image = IMAGE.clone().requires_grad_()
        model(image).square().sum().backward()
        got = torch.func.grad(lambda x: model(x).square().sum())(IMAGE)
        torch.testing.assert_close(got, image.grad, rtol=1e-4, atol=1e-4 * image.grad.abs().max().item())

    @pytest.mark.filterwarnings("ignore")
    def test_jit_trace(self):
        model = attached(init="paper").eval()
        traced = torch.jit.trace(model, IMAGE)
        other = torch.rand(3, 3, 64, 64)
        torch.testing.assert_close(traced(other), model(other))
