"""A model says when it has lost attention: at its next forward pass, when its state dict is taken, or on request."""

import copy
import pickle
import warnings

import pytest
import timm
import torch
from timm.layers import SplitBatchNorm2d, convert_splitbn_model, convert_sync_batchnorm, freeze_batch_norm_2d
from torch import nn
from torch.fx.experimental import optimization
from torchvision.ops import FrozenBatchNorm2d

import cbam
from cbam.attach import WithAttention
from cbam.attach.watch import Watch
from tests.attach.networks import Block, Net, move_gates, resnet

IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def attached(sites="auto"):
    model = Net(Block(8), Block(8)).eval()
    attachment = cbam.attach(model, sites=sites, input_size=32)
    return move_gates(model), attachment


def without_norms(module):
    """A tool that knows nothing of attention: it puts an Identity where something has running statistics."""
    for name, child in module.named_children():
        if hasattr(child, "running_mean"):
            setattr(module, name, nn.Identity())
        else:
            without_norms(child)


def by_the_host(module):
    """A tool that takes the wrapper for its host, and puts a copy of the host there."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, WithAttention):
                parent.add_module(name, copy.deepcopy(child.host))


class TestTheWarning:
    @pytest.mark.parametrize("tool", [without_norms, by_the_host])
    @pytest.mark.parametrize("then", [lambda m: m(IMAGE), lambda m: m.state_dict()], ids=["forward", "save"])
    def test_it_comes_once(self, tool, then):
        model, _ = attached()
        tool(model)
        with pytest.warns(
            UserWarning, match=r"2 of 2 sites have lost.*'blocks.0.bn2', 'blocks.1.bn2'\. A tool"
        ):
            then(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(IMAGE)
            model.state_dict()

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), nn.DataParallel])
    def test_in_copies_and_inside_others(self, how):
        model = how(attached()[0])
        blocks = model.module.blocks if isinstance(model, nn.DataParallel) else model.blocks
        model(IMAGE)
        blocks[1].bn2 = nn.BatchNorm2d(8)
        with pytest.warns(UserWarning, match=r"1 of 2 sites has lost its attention: 'blocks.1.bn2'"):
            model.eval()(IMAGE)

    def test_of_what_save_pretrained_would_lose(self, tmp_path):
        model, _ = attached()
        model.blocks[0].bn2 = nn.BatchNorm2d(8)
        with pytest.warns(UserWarning, match="1 of 2 sites has lost"):
            cbam.save_pretrained(model, tmp_path)

    def test_of_a_loaded_network(self, tmp_path):
        cbam.save_pretrained(attached()[0], tmp_path)
        model = cbam.from_pretrained(tmp_path, Net(Block(8), Block(8)))
        model.blocks[0].bn2 = nn.BatchNorm2d(8).eval()
        with pytest.warns(UserWarning, match="1 of 2 sites has lost"):
            model(IMAGE)

    def test_none_where_attention_moves(self):
        model, attachment = attached("blocks.*.bn2")
        block = model.blocks[0]
        block.conv2 = WithAttention(block.conv2, block.bn2.cbam)
        block.bn2 = block.bn2.host
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(IMAGE)
        attachment.check(model)
        block.conv2 = block.conv2.host
        with pytest.warns(UserWarning, match=r"'blocks.0.conv2'"):
            model(IMAGE)

    def test_none_for_the_layers_of_an_explanation(self):
        """AblationCAM puts a layer of its own in the place of another one, and that back."""
        AblationCAM = pytest.importorskip(
            "pytorch_grad_cam"
        ).AblationCAM  # too much for the oldest torch's environment
        model, attachment = attached()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            with AblationCAM(model=model, target_layers=[model.blocks[1]]) as explanation:
                explanation(IMAGE, None)
            model(IMAGE)
        attachment.check(model)

    def test_none_after_detach(self):
        model, _ = attached()
        cbam.detach(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(IMAGE)
            model.state_dict()
        hooks = [*model._forward_pre_hooks.values(), *model._state_dict_hooks.values()]
        assert not any(isinstance(hook, Watch) for hook in hooks)

    def test_sites_inside_sites(self):
        model = resnet().eval()
        cbam.attach(model, sites=["auto", "layer2", "layer2.0"], input_size=32)
        (watch,) = [hook for hook in model._forward_pre_hooks.values() if isinstance(hook, Watch)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(IMAGE)
        model.layer2.host[0].host.bn2 = model.layer2[0].bn2.host
        with pytest.warns(UserWarning, match=r"1 of 10 sites has lost its attention: 'layer2.0.bn2'"):
            model(IMAGE)
        assert len(watch.sites) == 9


class TestToolsThatRebuildModules:
    @pytest.mark.parametrize(
        ("tool", "kind"),
        [
            (nn.SyncBatchNorm.convert_sync_batchnorm, nn.SyncBatchNorm),
            (convert_sync_batchnorm, nn.SyncBatchNorm),
            (convert_splitbn_model, SplitBatchNorm2d),
            (freeze_batch_norm_2d, FrozenBatchNorm2d),
        ],
        ids=["torch's SyncBatchNorm", "timm's SyncBatchNorm", "SplitBatchNorm", "FrozenBatchNorm"],
    )
    def test_other_norms(self, tool, kind):
        model, attachment = attached()
        before, names = model(IMAGE), set(model.state_dict())
        converted = tool(model).eval()
        assert type(converted.blocks[0].bn2.host) is kind
        attachment.check(converted)
        torch.testing.assert_close(converted(IMAGE), before)
        assert {name.replace(".aux_bn.0", "") for name in converted.state_dict()} >= names - {
            name for name in names if name.endswith("num_batches_tracked")
        }
        with cbam.disabled(converted):
            assert not torch.allclose(converted(IMAGE), before)

    @pytest.mark.parametrize("submodule", ["blocks.0", "blocks.0.bn2"])
    def test_timms_freeze(self, submodule):
        model, attachment = attached()
        before = model(IMAGE)
        timm.utils.freeze(model, submodule)
        assert type(model.blocks[0].bn2.host) is FrozenBatchNorm2d
        torch.testing.assert_close(model(IMAGE), before)
        timm.utils.unfreeze(model, submodule)
        attachment.check(model)

    def test_layers_exchanged_by_type(self):
        """As tools for quantisation and low rank do: other layers for those of one type, anywhere in the tree."""

        class Other(nn.Conv2d):
            pass

        def exchange(module):
            for name, child in module.named_children():
                if type(child) in (nn.Conv2d, nn.Linear):
                    new = Other.__new__(Other) if type(child) is nn.Conv2d else copy.deepcopy(child)
                    new.__dict__.update(child.__dict__)
                    setattr(module, name, new)
                else:
                    exchange(child)

        model, attachment = attached("blocks.*.conv2")
        before = model(IMAGE)
        exchange(model)
        assert type(model.blocks[0].conv2.host) is Other
        attachment.check(model)
        torch.testing.assert_close(model(IMAGE), before)

    def test_check_sees_the_gates_of_an_fx_graph(self):
        model, attachment = attached()
        attachment.check(torch.fx.symbolic_trace(model))
        fused = optimization.fuse(copy.deepcopy(model))
        attachment.check(fused)
        fused.blocks._modules["1"].bn2.cbam = nn.Identity()
        with pytest.raises(cbam.CBAMError, match=r"1 of 2 sites has lost its attention: 'blocks.1.bn2'"):
            attachment.check(fused)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_dtypes(self, dtype):
        model, attachment = attached()
        attachment.check(model.to(dtype))
        assert model(IMAGE.to(dtype)).dtype == dtype
