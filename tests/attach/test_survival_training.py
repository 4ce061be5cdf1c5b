"""Ways of training that an attached model must survive: shared weights, frozen norms, checkpointing, low precision."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import cbam
from tests.attach.networks import Block, Net, resnet

IMAGE = torch.rand(2, 3, 32, 32)
HALF = [torch.float16, torch.bfloat16]


def attached(**options):
    model = resnet()
    cbam.attach(model, **{"init": "paper", "preset": "official", "input_size": 32, **options})
    return model


def reached(model):
    """Names of the gates' last layers that a backward pass has reached."""
    last = ("mlp.2.weight", "norm.weight", "spatial_attention.conv.weight")
    gates = {n: p for n, p in model.named_parameters() if ".cbam." in n and n.endswith(last)}
    assert gates
    return {name for name, p in gates.items() if p.grad is not None and p.grad.abs().sum() > 0}


class TestSharedWeights:
    @pytest.mark.parametrize("what", ["block", "norm"])
    def test_shared_stays_shared(self, what):
        first, second = Block(8), Block(8)
        second.bn2 = first.bn2
        net = Net(first, first if what == "block" else second)
        x = torch.rand(2, 3, 8, 8)
        before, modules = net.eval()(x), list(net.named_modules())
        assert len(cbam.attach(net, input_size=8).sites) == 1
        assert torch.equal(net(x), before)
        assert net.blocks[0].bn2 is net.blocks[1].bn2
        calls = []
        net.blocks[0].bn2.cbam.register_forward_hook(lambda *_: calls.append(1))
        net.train()(x).square().sum().backward()
        assert len(calls) == 2  # the one gate runs in both places, and learns from both
        assert len(reached(net)) == 2
        keys = [key for key in net.state_dict() if key.endswith("conv.weight")]
        assert len(keys) == 2  # under both names, as torch does with every shared module
        clone = Net(Block(8), Block(8))
        clone.blocks[1].bn2 = clone.blocks[0].bn2
        if what == "block":
            clone.blocks[1] = clone.blocks[0]
        cbam.attach(clone, input_size=8)
        clone.load_state_dict(net.state_dict())
        assert torch.equal(clone.eval()(x), net.eval()(x))
        cbam.detach(net)
        assert list(net.named_modules()) == modules


class TestFrozenNorms:
    @pytest.mark.parametrize("preset", ["paper", "official"])
    def test_a_detector_with_frozen_norms(self, preset):
        torch.manual_seed(0)
        backbone = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
        )
        few = {"rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20, "box_batch_size_per_image": 16}
        model, images = FasterRCNN(backbone, 3, min_size=64, max_size=64, **few), [torch.rand(3, 64, 64)]
        before = model.eval()(images)
        attachment = cbam.attach(model, preset=preset, example_input=images)
        assert {site.module_type for site in attachment.sites} == {"FrozenBatchNorm2d"}
        after = model(images)
        assert all(torch.equal(after[0][key], before[0][key]) for key in before[0])
        said = any("FrozenBatchNorm2d keep their statistics" in note for note in attachment.notes)
        assert said == (preset == "official")  # the other preset has no norm in its gates
        buffers = {k: v.clone() for k, v in model.named_buffers() if ".cbam." not in k}
        target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
        sum(model.train()(images, [target]).values()).backward()
        # torchvision freezes by name what is not trained; the gates there come new and learn all the same.
        assert len({name.split(".cbam.")[0] for name in reached(model)}) == len(attachment.sites)
        assert all(torch.equal(v, buffers[k]) for k, v in model.named_buffers() if k in buffers)


class TestCheckpointing:
    @pytest.mark.parametrize("reentrant", [True, False])
    def test_torch_gives_the_same_gradients(self, reentrant):
        model = attached().train()
        twin = copy.deepcopy(model)
        stage = twin.layer3.forward
        twin.layer3.forward = lambda x: checkpoint(stage, x, use_reentrant=reentrant)
        self.compare(model, twin)

    def test_timm_gives_the_same_gradients(self):
        import timm

        torch.manual_seed(0)
        model = timm.create_model("resnet18", num_classes=10, zero_init_last=False)
        cbam.attach(model, init="paper", preset="official", input_size=32)
        twin = copy.deepcopy(model)
        twin.set_grad_checkpointing(True)
        self.compare(model.train(), twin.train())

    def compare(self, model, twin):
        outputs = [net(IMAGE) for net in (model, twin)]
        assert torch.equal(*outputs)
        for output in outputs:
            output.square().sum().backward()
        theirs = dict(twin.named_parameters())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(theirs[name].grad, parameter.grad, msg=name)
        assert len(reached(twin)) == 16


class TestLowPrecision:
    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_autocast_trains_the_gates(self, dtype):
        model = attached().eval()
        expected = model(IMAGE)
        with torch.autocast("cpu", dtype=dtype):
            output = model(IMAGE)
            assert output.dtype == dtype
            assert (output - expected).norm() < 0.05 * expected.norm()
            output = model.train()(IMAGE)
        output.float().square().sum().backward()
        assert len(reached(model)) == 16

    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_weights_in_half_precision(self, dtype):
        model = attached().eval()
        expected = model(IMAGE)
        output = model.to(dtype)(IMAGE.to(dtype))
        assert output.dtype == dtype
        assert (output - expected).norm() < 0.05 * expected.norm()

    def test_identity_in_half_precision_is_exact(self):
        model = resnet().half().eval()
        before = model(IMAGE.half())
        cbam.attach(model, input_size=32)
        assert torch.equal(model(IMAGE.half()), before)

    @pytest.mark.parametrize("backend", ["auto", "eager"])
    def test_the_gate_is_computed_in_float32(self, backend):
        """A mean of large values: their sum in float16 would be infinite, and the gate with it not a number."""
        net = Net(Block(8)).half().eval()
        cbam.attach(net, init="paper", input_size=8)
        gate = net.blocks[0].bn2.cbam
        x = torch.full((1, 8, 8, 8), 3e4, dtype=torch.float16)
        with cbam.set_backend(backend), torch.no_grad():
            assert gate(x).isfinite().all()
            assert gate.channel_attention.logits(x).dtype == torch.float32


def test_every_site_stays_where_a_norm_is_frozen_by_hand():
    """Norms in evaluation mode while the rest trains, the usual fine-tuning recipe."""
    model = attached(init="identity").train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    before = {k: v.clone() for k, v in model.named_buffers()}
    model(IMAGE).square().sum().backward()
    assert len({name.split(".cbam.")[0] for name in reached(model)}) == 8
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers())
