"""Tools that fold norms into convolutions, or branches into one: attention outlives them, or an error says why."""

import copy

import pytest
import timm
import torch
import torchvision
from packaging.version import Version
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import cbam
from cbam.attach import WithAttention
from cbam.attach.folding import METHODS
from cbam.errors import CBAMError
from tests.attach.networks import Block, Bottleneck, Net, RepBlock, calibrate, move_gates, resnet

# In float64 what folding changes by rounding is far below what gates do.
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()


def gates(model):
    return sum(isinstance(module, WithAttention) for module in model.modules())


def attached(model, image=IMAGE, **options):
    model = calibrate(model.to(image.dtype), image)
    attachment = cbam.attach(model, input_size=tuple(image.shape[1:]), **options)
    return move_gates(model), attachment


def check_the_gates_act(model, image=IMAGE):
    before = model(image)
    with cbam.disabled(model):
        assert not torch.allclose(model(image), before)


class TestTheWrapperIsNotTakenForItsHost:
    def test_a_norm_with_attention_is_not_folded_by_hand(self):
        model, _ = attached(Net(Block(8)))
        block = model.blocks[0]
        with pytest.raises(
            CBAMError, match=r"would lose the attention behind it\. Fold first and attach then"
        ):
            fuse_conv_bn_eval(block.conv2, block.bn2)

    def test_what_the_error_says_to_do_works(self):
        model, _ = attached(Net(Block(8)))
        block, before = model.blocks[0], model(IMAGE)
        block.conv2 = fuse_conv_bn_eval(block.conv2, block.bn2.host)
        block.bn2.host = nn.Identity()
        torch.testing.assert_close(model(IMAGE), before)
        assert gates(model) == 1
        check_the_gates_act(model)

    def test_a_norm_is_not_folded_through_the_attention(self):
        """Attention between the two: the folded weights would go through the wrapper into the convolution."""
        model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
        cbam.attach(model, sites="0", input_size=(3, 16, 16))
        with pytest.raises(CBAMError, match="where attention is between the two"):
            fuse_conv_bn_eval(model[0], model[1])

    @pytest.mark.parametrize("name", METHODS)
    def test_methods_that_fold_are_not_handed_on(self, name):
        host = type("Host", (nn.Conv2d,), {name: lambda self: nn.Conv2d(8, 8, 1)})(8, 8, 1)
        wrapper = WithAttention(host, cbam.CBAM(8))
        assert not hasattr(wrapper, name)
        assert hasattr(wrapper.host, name)
        with pytest.raises(AttributeError, match=f"{name} would replace a module without the attention"):
            getattr(wrapper, name)

    def test_what_model_code_reads_still_is(self):
        model = resnet()
        cbam.attach(model, input_size=(3, 32, 32))
        norm = model.layer1[0].bn2
        nn.init.zeros_(norm.weight)  # zero_init_residual
        norm.momentum = 0.2
        assert norm.host.weight.abs().sum() == 0
        assert (norm.num_features, norm.host.momentum, norm.running_var.shape) == (64, 0.2, (64,))


class TestBlocksThatFoldThemselves:
    def test_a_convolution_with_its_norm_as_in_ultralytics(self):
        model, attachment = attached(Net(Bottleneck(8), Bottleneck(8, act=False)))
        before = model(IMAGE)
        for module in model.modules():
            if hasattr(module, "forward_fuse"):
                module.conv = fuse_conv_bn_eval(module.conv, module.bn)
                del module.bn
                module.forward = module.forward_fuse
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        torch.testing.assert_close(model(IMAGE), before)
        attachment.check(model)
        check_the_gates_act(model)

    def test_deploying_repvgg(self):
        model, attachment = attached(Net(RepBlock(8), RepBlock(8)))
        before = model(IMAGE)
        for module in list(model.modules()):
            if hasattr(module, "switch_to_deploy"):
                module.switch_to_deploy()
        assert (
            sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in model.modules())
            == 3
        )
        torch.testing.assert_close(model(IMAGE), before)
        attachment.check(model)
        check_the_gates_act(model)

    def test_attention_on_a_branch_that_is_merged_stops_the_merging(self):
        model, _ = attached(Net(RepBlock(8)), sites="**.dense.1")
        with pytest.raises(CBAMError, match="would lose the attention"):
            model.blocks[0].switch_to_deploy()

    @pytest.mark.parametrize(
        ("name", "sites"),
        [  # every file of timm that has fuse(), reparameterize() or switch_to_deploy()
            ("efficientvim_m1", 2),
            ("efficientvit_m0", 38),
            ("fastvit_t8", 24),
            ("ghostnetv3_050", 6),
            ("iformer_t", 26),
            ("lcnetv2_base", 5),
            ("levit_conv_128s", 20),
            ("mobileone_s0", 5),
            ("nextvit_small", 40),
            ("repghostnet_050", 31),
            ("repvgg_a0", 17),
            ("repvit_m0_9", 26),
            ("shvit_s1", 39),
            ("tiny_vit_5m_224", 2),
        ],
    )
    def test_timm(self, name, sites):
        if not timm.is_model(name) and Version(timm.__version__) < Version("1.0.31"):
            pytest.skip(f"timm {timm.__version__} has no {name}")
        torch.manual_seed(0)
        fixed = ("efficientvit", "levit", "tiny_vit", "iformer", "shvit", "efficientvim")
        size = 224 if name.startswith(fixed) else 64
        image = torch.rand(2, 3, size, size)  # some of them fold in float32 only
        model = timm.create_model(name, num_classes=5)
        model = calibrate(model, image, share=0.5)  # two images' variances may be next to 0
        attachment = cbam.attach(model, input_size=size)
        assert len(attachment.sites) == sites
        move_gates(model, 0.3)
        with torch.no_grad():
            before = model(image)
            merged = timm.utils.model.reparameterize_model(model)
            attachment.check(merged)
            changed = float((merged(image) - before).abs().max())
            with cbam.disabled(merged):
                assert float((merged(image) - before).abs().max()) > 100 * changed

    def test_timm_says_what_to_do_where_it_would_lose_attention(self):
        model, _ = attached(
            timm.create_model("repvgg_a0"), torch.rand(2, 3, 64, 64), sites="stages.**.conv_kxk.bn"
        )
        with pytest.raises(CBAMError, match=r"lose the attention behind it\. Fold first and attach then"):
            timm.utils.model.reparameterize_model(model)


@pytest.mark.filterwarnings("ignore:.*quantization is deprecated")
class TestQuantisationFusesModules:
    LISTS = (["conv1", "bn1", "relu"], ["layer1.0.conv2", "layer1.0.bn2"], ["layer4.1.conv2", "layer4.1.bn2"])

    def test_fuse_modules(self):
        from torch.ao.quantization import fuse_modules

        model, attachment = attached(resnet())
        before = model(IMAGE)
        fused = fuse_modules(model, [list(names) for names in self.LISTS])
        assert isinstance(fused.layer1[0].conv2, WithAttention)
        torch.testing.assert_close(fused(IMAGE), before)
        attachment.check(fused)
        check_the_gates_act(fused)
        fused.layer1[0].conv2.cbam.enabled = False
        assert not torch.allclose(fused(IMAGE), before)  # the one that moved

    def test_fuse_modules_qat_and_then_prepare_qat(self):
        from torch.ao import quantization

        model, attachment = attached(resnet(), IMAGE.float())
        model.train()
        fused = quantization.fuse_modules_qat(model, [list(names) for names in self.LISTS])
        fused.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        prepared = quantization.prepare_qat(fused)
        attachment.check(prepared)
        prepared(IMAGE.float()).sum().backward()
        moved = [
            n for n, p in prepared.named_parameters() if ".cbam." in n and p.grad is not None and p.grad.any()
        ]
        assert any(name.startswith("layer1.0.conv2.") for name in moved)

    def test_attached_to_a_fused_model(self):
        from torch.ao import quantization

        fused = quantization.fuse_modules_qat(resnet().train(), [list(names) for names in self.LISTS])
        attachment = cbam.attach(fused, input_size=(3, 32, 32))
        assert {"layer1.0.conv2", "layer1.1.bn2"} <= {site.name for site in attachment.sites}
        fused.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        attachment.check(quantization.prepare_qat(fused))

    @pytest.mark.parametrize("qat", [False, True], ids=["fuse_modules", "fuse_modules_qat"])
    @pytest.mark.parametrize("attach_first", [True, False], ids=["attach, fuse", "fuse, attach"])
    @pytest.mark.parametrize(
        ("name", "sites"), [("resnet18", 8), ("shufflenet_v2_x0_5", 4), ("mobilenet_v3_large", 10)]
    )
    def test_torchvisions_quantizable_networks(self, name, sites, attach_first, qat):
        """Sites behind norms, and behind ReLUs that are joined with the norm and the convolution in front of them."""
        from torch.ao import quantization

        torch.manual_seed(0)
        image = torch.rand(2, 3, 32, 32)
        model = calibrate(getattr(torchvision.models.quantization, name)(num_classes=5), image, share=0.5)
        if not attach_first:
            model.train(qat).fuse_model(is_qat=qat)
        attachment = cbam.attach(model, input_size=32)
        move_gates(model, 0.1).eval()
        before = model(image)
        if attach_first:
            model.train(qat).fuse_model(is_qat=qat)
            torch.testing.assert_close(model.eval()(image), before)
        if qat:
            model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
            model = quantization.prepare_qat(model.train()).eval()
            model.apply(quantization.disable_fake_quant)  # its steps are longer than what these gates change
        assert gates(model) == len(attachment.sites) == sites
        attachment.check(model)
        check_the_gates_act(model, image)

    def test_attention_in_front_of_the_norm_stops_the_joining(self):
        from torch.ao.quantization import fuse_modules

        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        attached(model, sites="0")
        with pytest.raises(CBAMError, match="cannot join modules where attention is between"):
            fuse_modules(model, ["0", "1"])

    def test_a_relu_behind_the_attention_cannot_be_joined(self):
        from torch.ao.quantization import fuse_modules

        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        attached(model, sites="1")
        with pytest.raises(
            CBAMError,
            match=r"Conv2d and attention and ReLU\. Give it the modules in front of the attention only",
        ):
            fuse_modules(model, ["0", "1", "2"])


def test_fx_folds_norms_below_the_attention():
    from torch.fx.experimental import optimization

    model, _ = attached(resnet())
    before = model(IMAGE)
    fused = optimization.fuse(copy.deepcopy(model))
    torch.testing.assert_close(fused(IMAGE), before)
    left = [m for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d) and ".cbam." not in n]
    assert sum(isinstance(module, cbam.CBAM) for module in fused.modules()) == 8
    assert len(left) < 20  # and it did fold
    check_the_gates_act(fused)


def test_check_names_what_is_lost():
    model, attachment = attached(resnet())
    attachment.check(model)
    attachment.check(copy.deepcopy(model))
    model.layer2[0].bn2 = nn.Identity()
    model.layer4[1].bn2 = nn.Identity()
    with pytest.raises(
        CBAMError, match=r"2 of 8 sites have lost their attention: 'layer2.0.bn2', 'layer4.1.bn2'"
    ):
        attachment.check(model)
