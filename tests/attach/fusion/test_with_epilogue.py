"""Blocks whose end runs inside the operator: the same function, the same object, and out of the way where it must."""

import copy
import gc
import math
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d

import cbam
from cbam import set_backend
from cbam.attach.fusion import with_epilogue
from cbam.models import build_model
from tests.attach.networks import Seen, ends, resnet
from tests.ops.library import needs_operator, needs_same_bits

pytestmark = [needs_operator, needs_same_bits]
SIZE = {"input_size": (3, 64, 64)}
IMAGE = torch.rand(2, 3, 64, 64)
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def attached(model=None, **options):
    model = model or resnet()
    cbam.attach(model, **{**SIZE, **options})
    return model


def with_gates(**options):
    """Two networks whose gates are somewhere, one with the block's end in the operator."""
    together = attached(preset="official", init="paper", **options)
    with torch.no_grad():
        for name, parameter in together.named_parameters():
            if ".cbam." in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    apart = attached(preset="official", init="paper", fuse_epilogue=False)
    apart.load_state_dict(together.state_dict())
    return together.eval(), apart.eval()


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


class TestSurvival:
    """Beside test_survival.py, whose networks are such ones: copies run the end in the operator too."""

    @pytest.mark.parametrize(
        "twin",
        [
            copy.deepcopy,
            lambda model: pickle.loads(pickle.dumps(model)),
            lambda model: pickle.loads(pickle.dumps(model, 0)),
            lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)),
            lambda model: torch.optim.swa_utils.AveragedModel(model).module,
            lambda model: nn.Sequential(*list(model.children())[:-2]),
        ],
        ids=["deepcopy", "pickle", "pickle 0", "SyncBatchNorm", "EMA", "children"],
    )
    def test_copies(self, twin):
        model = attached(init="paper").eval()
        expected = model(IMAGE)
        other = twin(model).eval()
        assert ends(other, IMAGE) == 8
        if isinstance(other, torchvision.models.ResNet):
            torch.testing.assert_close(other(IMAGE), expected)
            assert cbam.detach(other) == 8
            assert type(other.layer1[0]) is BasicBlock
        assert torch.equal(model(IMAGE), expected)

    def test_replicas_that_live_for_one_step(self):
        block = attached().eval().layer1[0]
        replica = block._replicate_for_data_parallel()
        replica._modules = block._modules
        x = torch.rand(1, 64, 8, 8)
        assert torch.equal(replica(x), block(x))
        assert [ends(replica, x), ends(block, x)] == [0, 1]

    def test_a_shallow_copy(self):
        model = attached(init="paper").eval()
        block = copy.copy(model.layer1[0])
        x = torch.rand(1, 64, 8, 8)
        assert torch.equal(block(x), model.layer1[0](x))
        assert ends(block, x) == 1

    @pytest.mark.slow
    def test_another_process_loads_it(self, tmp_path):
        model = attached(init="paper").eval()
        torch.save(model, tmp_path / "model.pt")
        torch.save((IMAGE, model(IMAGE)), tmp_path / "case.pt")
        code = (
            f"import torch; model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False);"
            f"x, y = torch.load({str(tmp_path / 'case.pt')!r}); torch.testing.assert_close(model(x), y)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_copied_names_are_those_of_the_class(self):
        assert type(attached().layer1[0]).__qualname__ == "BasicBlock"
        assert with_epilogue._subclass(BasicBlock) is with_epilogue._subclass(BasicBlock)

    def test_functional_call(self):
        model = attached(init="paper").eval()
        weights = {name: p * 0.9 for name, p in model.named_parameters()}
        got = torch.func.functional_call(model, weights, (IMAGE,))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
        assert torch.equal(got, model(IMAGE))

    def test_checkpointing(self):
        together, apart = with_gates()
        found = []
        for model in (together, apart):
            model.layer1.register_forward_pre_hook(lambda *_: None)
            image = IMAGE.clone().requires_grad_()
            x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
            torch.utils.checkpoint.checkpoint(model.layer1, x, use_reentrant=False).square().sum().backward()
            found.append(image.grad)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4 * found[1].abs().max().item())

    @pytest.mark.slow
    def test_compiled_through_changes_of_mode(self):
        torch._dynamo.reset()
        together, apart = with_gates()
        compiled = torch.compile(together, fullgraph=True, backend="aot_eager")
        for training in (False, True, False):
            together.train(training)
            apart.train(training)
            torch.testing.assert_close(compiled(IMAGE), apart(IMAGE), rtol=1e-4, atol=1e-4)
        for (name, got), expected in zip(together.named_buffers(), apart.buffers(), strict=True):
            torch.testing.assert_close(got, expected, msg=name)
        assert ends(together, IMAGE) == 8  # and without the compiler as before


def test_pickles_that_name_the_file_by_its_old_name_still_load():
    model = resnet().eval()
    cbam.attach(model, init="paper", input_size=(3, 32, 32))
    block, x = model.layer1[0], torch.rand(1, 64, 8, 8)
    old = pickle.dumps(block, protocol=2).replace(
        b"ccbam.attach.fusion.with_epilogue\n_new\n", b"ccbam.attach.with_tail\n_new\n"
    )
    assert b"with_tail" in old
    loaded = pickle.loads(old)
    assert isinstance(loaded, with_epilogue.WithEpilogue)
    assert torch.equal(loaded(x), block(x))
