"""attach, plan, detach, disabled: identity, keys, errors before any change."""

import contextlib
import re

import pytest
import torch
import torchvision
from torch import nn

import cbam
from cbam.attach import WithAttention
from cbam.errors import CBAMError
from tests.attach.networks import Block, Net, pretrained_lite0, resnet

IMAGE = torch.rand(2, 3, 64, 64)
OPTIONS = {"input_size": (3, 64, 64)}


def states(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class TestIdentity:
    @pytest.mark.parametrize("attention", ["cbam", "se", "channel", "spatial"])
    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_output_is_the_same_bit_for_bit(self, attention, training):
        model = resnet().train(training)
        expected = resnet().train(training)(IMAGE)
        cbam.attach(model, attention, **OPTIONS)
        assert {module.training for module in model.modules()} == {training}
        assert torch.equal(model(IMAGE), expected)

    @pytest.mark.parametrize("preset", ["paper", "official", "timm"])
    def test_presets(self, preset):
        model = resnet().eval()
        expected = model(IMAGE)
        cbam.attach(model, preset=preset, **OPTIONS)
        assert torch.equal(model(IMAGE), expected)

    @pytest.mark.parametrize(
        "switch",
        [
            {"arrangement": "parallel"},
            {"arrangement": "spatial-channel"},
            {"spatial_descriptor": "conv"},
            {"gate": "hardsigmoid"},
        ],
    )
    def test_switches(self, switch):
        model = resnet().eval()
        expected = model(IMAGE)
        cbam.attach(model, **switch, **OPTIONS)
        assert torch.equal(model(IMAGE), expected)

    def test_real_imagenet_weights_on_a_photograph(self):
        """A trained network classifies the cat as before, to the last bit; fresh gates change its logits by a fifth."""
        from skimage import data

        photo = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None].float() / 255
        photo = torch.nn.functional.interpolate(photo[:, :, :, 75:375], (224, 224), mode="bilinear") * 2 - 1
        model = pretrained_lite0()
        with torch.no_grad():
            expected = model(photo)
            assert expected.argmax().item() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
            attachment = cbam.attach(model)
            assert len(attachment.sites) == 9
            assert torch.equal(model(photo), expected)
            cbam.detach(model)
            cbam.attach(model, init="paper")
            assert (model(photo) - expected).norm() > 0.2 * expected.norm()

    def test_one_training_step_moves_the_gates(self):
        model = resnet()
        cbam.attach(model, **OPTIONS)
        optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if ".cbam." in n], lr=0.1)
        before = model(IMAGE)
        before.square().sum().backward()
        optimizer.step()
        assert not torch.equal(model(IMAGE), before)


@pytest.mark.parametrize("attention", ["cbam", "se", "channel"])
def test_a_single_hidden_unit_is_alive_in_every_seed(attention):
    x = torch.rand(4, 3, 12, 12)
    for seed in range(40):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        cbam.attach(model, attention, sites=["2"], input_size=12)
        (model(x) * torch.randn(16, 10, 10)).sum().backward()
        dead = [n for n, p in model.named_parameters() if "mlp.2.weight" in n and not p.grad.any()]
        assert not dead, f"seed {seed}"


class TestKeys:
    def test_old_keys_stay_and_new_ones_say_cbam(self):
        model = resnet()
        before = list(model.state_dict())
        cbam.attach(model, **OPTIONS)
        after = list(model.state_dict())
        assert [key for key in after if ".cbam." not in key] == before
        assert "layer1.0.bn2.cbam.channel_attention.mlp.0.weight" in after
        assert not [key for key in after if "host" in key]

    def test_old_checkpoint_loads_with_only_cbam_keys_missing(self):
        model, other = resnet(0), resnet(1)
        cbam.attach(model, **OPTIONS)
        result = model.load_state_dict(other.state_dict(), strict=False)
        assert result.unexpected_keys == []
        assert result.missing_keys
        assert all(".cbam." in key for key in result.missing_keys)
        assert torch.equal(model.eval()(IMAGE), other.eval()(IMAGE))

    def test_attached_checkpoint_loads_strictly_into_an_attached_model(self):
        model, other = resnet(0), resnet(1)
        cbam.attach(model, init="paper", **OPTIONS)
        cbam.attach(other, init="identity", **OPTIONS)
        other.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(other.eval()(IMAGE), model.eval()(IMAGE))

    def test_plain_model_takes_the_old_part_of_an_attached_checkpoint(self):
        model = resnet()
        cbam.attach(model, **OPTIONS)
        state = {k: v for k, v in model.state_dict().items() if ".cbam." not in k}
        resnet(1).load_state_dict(state, strict=True)

    def test_nested_sites(self):
        model = resnet().eval()
        before = list(model.state_dict())
        expected = model(IMAGE)
        cbam.attach(model, sites=["auto", "layer2"], **OPTIONS)
        assert torch.equal(model(IMAGE), expected)
        assert [key for key in model.state_dict() if ".cbam." not in key] == before
        clone = resnet(1)
        cbam.attach(clone, sites=["auto", "layer2"], **OPTIONS)
        clone.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(clone.eval()(IMAGE), expected)

    def test_host_attributes_are_still_read(self):
        model = resnet()
        cbam.attach(model, sites=["layer1.0.bn2", "layer2"], **OPTIONS)
        assert isinstance(model.layer1[0].bn2, WithAttention)
        assert model.layer1[0].bn2.num_features == 64
        assert model.layer2[0].conv1.out_channels == 128
        with pytest.raises(AttributeError, match="nonsense"):
            _ = model.layer1[0].bn2.nonsense

    def test_host_attributes_are_written_to_the_host(self):
        model = resnet()
        cbam.attach(model, **OPTIONS)
        wrapped, host = model.layer1[0].bn2, model.layer1[0].bn2.host
        weight = nn.Parameter(torch.full((64,), 2.0))
        wrapped.weight, wrapped.momentum, wrapped.remark = weight, 0.3, "mine"
        assert host.weight is weight
        assert host.momentum == 0.3
        assert not hasattr(host, "remark")
        wrapped.eval()
        assert not host.training


class TestDetach:
    def test_restores_modules_and_values(self):
        model = resnet()
        modules, before = list(model.named_modules()), states(model)
        cbam.attach(model, **OPTIONS)
        assert cbam.detach(model) == 8
        assert list(model.named_modules()) == modules
        assert equal(states(model), before)
        cbam.attach(model, **OPTIONS)  # and it can be attached again

    def test_nothing_attached(self):
        with pytest.raises(CBAMError, match=r"carries no attached attention.*cbam.attach"):
            cbam.detach(resnet())

    def test_nested(self):
        model = resnet()
        modules = list(model.named_modules())
        cbam.attach(model, sites=["auto", "layer2"], **OPTIONS)
        cbam.detach(model)
        assert list(model.named_modules()) == modules


class TestDisabled:
    def test_switches_off_and_back_on_also_after_an_exception(self):
        model = resnet().eval()
        plain = model(IMAGE)
        cbam.attach(model, init="paper", **OPTIONS)
        attended = model(IMAGE)
        assert not torch.equal(attended, plain)

        def interrupted():
            with cbam.disabled(model):
                assert torch.equal(model(IMAGE), plain)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert torch.equal(model(IMAGE), attended)

    def test_inside_itself_it_stays_off(self):
        model = resnet().eval()
        plain = model(IMAGE)
        cbam.attach(model, init="paper", **OPTIONS)
        with cbam.disabled(model):
            with cbam.disabled(model):
                pass
            assert torch.equal(model(IMAGE), plain)

    def test_blocks_of_two_threads_may_overlap(self):
        model = cbam.CBAM(8)
        model.gates[0].enabled = False
        with contextlib.ExitStack() as one, contextlib.ExitStack() as other:
            one.enter_context(cbam.disabled(model))
            other.enter_context(cbam.disabled(model))
            one.close()
            assert not model.enabled
        assert model.enabled
        assert not model.gates[0].enabled  # by the user, before

    def test_nothing_to_switch_off(self):
        with pytest.raises(CBAMError, match="has no attention module"), cbam.disabled(resnet()):
            pass


class TestPlan:
    def test_changes_nothing_and_prints_the_table(self):
        model = resnet()
        modules, before = list(model.named_modules()), states(model)
        plan = cbam.plan(model, preset="official")
        assert list(model.named_modules()) == modules
        assert equal(states(model), before)
        text = str(plan)
        assert "8 sites" in text
        assert re.search(r"layer1\.0\.bn2 +BatchNorm2d +after +64 +56x56 +680", text)
        added = sum(p.numel() for p in _attached(preset="official").parameters()) - plan.model_parameters
        assert plan.added_parameters == added
        assert f"{plan.model_parameters:,} -> {plan.model_parameters + added:,}" in text

    @pytest.mark.parametrize(
        ("depth", "parameters"), [(18, 11_779_392), (34, 21_960_468), (50, 28_089_624), (101, 49_330_172)]
    )
    def test_parameters_of_the_papers_networks(self, depth, parameters):
        model = getattr(torchvision.models, f"resnet{depth}")()
        cbam.attach(model, preset="official", init="paper", input_size=(3, 32, 32))
        assert sum(p.numel() for p in model.parameters()) == parameters


def _attached(**options):
    model = resnet()
    cbam.attach(model, **options, **OPTIONS)
    return model


class TestSites:
    def test_by_path_glob_regex_type_predicate_and_exclude(self):
        def sites(selector, **more):
            return [site.name for site in cbam.plan(resnet(), sites=selector, **more, **OPTIONS).sites]

        assert sites("layer4") == ["layer4"]
        assert sites("layer4.*.bn2") == ["layer4.0.bn2", "layer4.1.bn2"]
        assert sites(r"re:layer[34]\.1\.bn2") == ["layer3.1.bn2", "layer4.1.bn2"]
        assert sites(nn.MaxPool2d) == ["maxpool"]
        assert sites(lambda name, module: name in ("conv1", "layer1")) == ["conv1", "layer1"]
        kept = sites("auto", exclude=["layer1.*.bn2", "re:layer[23].*"])
        assert kept == ["layer4.0.bn2", "layer4.1.bn2"]

    def test_vgg_by_name(self):
        model = torchvision.models.vgg11(num_classes=4).eval()
        expected = model(IMAGE)
        cbam.attach(model, sites=nn.MaxPool2d, **OPTIONS)
        assert torch.equal(model(IMAGE), expected)

    def test_a_block_that_is_shared_stays_shared(self):
        block = Block(8)
        model = Net(block, block).eval()
        x = torch.rand(1, 3, 8, 8)
        expected = model(x)
        assert len(cbam.attach(model, input_size=(3, 8, 8)).sites) == 1
        assert torch.equal(model(x), expected)
        assert model.blocks[0] is model.blocks[1]

    def test_a_host_registered_twice_is_replaced_in_both_places(self):
        model = Net(Block(8))
        model.alias = model.blocks[0].bn2
        cbam.attach(model, input_size=(3, 8, 8))
        assert model.alias is model.blocks[0].bn2
        assert isinstance(model.alias, WithAttention)

    def test_attention_before_a_dropout_sees_every_sample(self):
        model = Net(Block(8, "scale, drop")).train()
        cbam.attach(model, init="paper", input_size=(3, 8, 8))
        seen = []
        model.blocks[0].drop.cbam.register_forward_hook(lambda m, args, y: seen.append(args[0]))
        model(torch.rand(2, 3, 8, 8))
        assert seen[0].abs().flatten(2).sum(-1).gt(0).all()  # no channel was dropped yet

    def test_a_model_on_the_meta_device(self):
        model = resnet().to("meta")
        assert len(cbam.attach(model, **OPTIONS).sites) == 8
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert cbam.cost(model, (3, 64, 64)).macs > 0

    def test_several_inputs(self):
        class Two(Net):
            def forward(self, x, weight):
                return super().forward(x * weight)

        model = Two(Block(8))
        with pytest.raises(CBAMError, match=r"example_input=\(...\)"):
            cbam.plan(model)
        example = (torch.rand(1, 3, 8, 8), torch.tensor(2.0))
        assert len(cbam.plan(model, example_input=example).sites) == 1

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    def test_new_weights_follow_the_host(self, dtype):
        model = resnet().to(dtype)
        model.layer1.eval()
        cbam.attach(model, **OPTIONS)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert not model.layer1[0].bn2.cbam.training
        assert model.layer2[0].bn2.cbam.training
        assert model(IMAGE.to(dtype)).dtype == dtype


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sites": "layer5"}, "'layer5' matches none of 67 modules. Closest: 'layer"),
            ({"sites": "avgpool.*"}, "matches none"),
            ({"sites": "fc"}, r"site 'fc' \(Linear\) gives shape \(1, 10\), not a feature map"),
            ({"exclude": "layer9.*"}, "exclude: 'layer9.*' matches none of 8 modules"),
            ({"exclude": "**"}, "exclude leaves no site"),
            ({"attention": "cbma"}, "unknown attention 'cbma'. Did you mean 'cbam'"),
            ({"init": "identiy"}, "unknown init 'identiy'. Did you mean 'identity'"),
            ({"preset": "papr"}, "unknown preset 'papr'. Did you mean 'paper'"),
            ({"reduction_ratio": 0}, "reduction_ratio must be at least 1"),
            ({"kernel_size": 4}, "kernel_size must be odd"),
            ({"kernal_size": 3}, "unknown option of cbam 'kernal_size'. Did you mean 'kernel_size'"),
            ({"input_size": (3, 0, 4)}, r"input_size expects \(channels, height, width\)"),
        ],
    )
    def test_leaves_the_model_as_it_was(self, arguments, message):
        model = resnet()
        modules = list(model.named_modules())
        with pytest.raises(CBAMError, match=message):
            cbam.attach(model, **{**OPTIONS, **arguments})
        assert list(model.named_modules()) == modules

    def test_second_attachment(self):
        model = _attached()
        with pytest.raises(CBAMError, match=r"carries attention already, at 8 sites.*cbam.detach\(model\)"):
            cbam.attach(model, "se", **OPTIONS)
        assert len(model.layer1[0].bn2._modules) == 2

    def test_no_map_anywhere(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, 2))
        with pytest.raises(CBAMError, match=r"sites='auto' finds no site in Sequential. Name the sites"):
            cbam.attach(model, input_size=(3, 32, 32))

    def test_a_module_that_does_not_run(self):
        model = resnet()
        model.spare = nn.Conv2d(3, 3, 1)
        with pytest.raises(CBAMError, match=r"'spare'.*did not run"):
            cbam.attach(model, sites="spare", **OPTIONS)

    def test_not_a_module(self):
        with pytest.raises(CBAMError, match=r"expects a torch.nn.Module, got str"):
            cbam.attach("resnet18")

    def test_wrapped_models(self):
        with pytest.raises(CBAMError, match="wrapped in DataParallel"):
            cbam.attach(nn.DataParallel(resnet()))
        with pytest.raises(CBAMError, match="wrapped in OptimizedModule"):
            cbam.attach(torch.compile(resnet()))


@pytest.mark.parametrize(
    ("init", "said"), [("identity", "so that the gate learns"), ("paper", "may be off for every")]
)
def test_narrow_channel_gates_are_noted(init, said):
    sites = {"blocks.0.bn2": {"reduction_ratio": 8}, "blocks.1.bn2": {"reduction_ratio": 4}}
    (note,) = cbam.plan(Net(Block(8), Block(8)), sites=sites, init=init, input_size=8).notes
    assert note.startswith("narrow channel gates at 2 sites (1 hidden unit at blocks.0.bn2, fewer than 4)")
    assert said in note
    assert "reduction_ratio" in note
    wide = cbam.plan(Net(Block(8)), init=init, input_size=8, reduction_ratio=2)
    assert not wide.notes
    assert not cbam.plan(Net(Block(8)), "spatial", init=init, input_size=8).notes
