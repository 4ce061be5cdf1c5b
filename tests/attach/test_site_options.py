"""sites={selector: options}: other options at some of the sites, all of them checked before the first change."""

import re

import pytest
import torch
from torch import nn

import cbam
from cbam.errors import CBAMError
from cbam.nn import CBAM, SqueezeExcitation
from tests.attach.networks import Block, Net, resnet

IMAGE = torch.rand(2, 3, 64, 64)
SITES = {
    "residual": {},
    "layer4.*.bn2": {"attention": "se", "reduction_ratio": 8},
    r"re:layer3\.1\.bn2": {"init": "paper", "kernel_size": 3},
    "layer1": {"preset": "official"},
}


def gates(model):
    return {name.removesuffix(".cbam"): m for name, m in model.named_modules() if name.endswith(".cbam")}


def test_each_site_gets_what_its_key_says():
    model = resnet()
    attachment = cbam.attach(model, sites=SITES, preset="timm", input_size=64)
    found = gates(model)
    assert len(attachment.sites) == len(found) == 9
    assert type(found["layer4.0.bn2"]) is SqueezeExcitation
    assert found["layer4.1.bn2"].layers[0].out_channels == 64
    assert found["layer3.1.bn2"].spatial_attention.conv.kernel_size == (3, 3)
    assert found["layer3.1.bn2"].channel_attention.gate_scale is None  # the paper's first weights
    assert found["layer3.0.bn2"].channel_attention.gate_scale == 2
    assert {found["layer1"].preset, found["layer1.0.bn2"].preset} == {"official", "timm"}
    assert sum(p.numel() for gate in found.values() for p in gate.parameters()) == attachment.added_parameters


def test_all_at_identity_change_no_bit():
    model = resnet().eval()
    before = model(IMAGE)
    sites = {
        "auto": {},
        "layer2": {"attention": "channel"},
        "layer4": {"attention": "spatial", "kernel_size": 3},
    }
    cbam.attach(model, sites=sites, input_size=64)
    assert torch.equal(model(IMAGE), before)
    assert cbam.detach(model) == 10


def test_of_two_keys_the_last_one_holds():
    model = resnet()
    cbam.attach(model, sites={"auto": {"reduction_ratio": 4}, "layer1.0.bn2": {}}, input_size=64)
    hidden = {name: gate.channel_attention.layers[0].out_channels for name, gate in gates(model).items()}
    assert (hidden["layer1.0.bn2"], hidden["layer1.1.bn2"]) == (64 // 16, 64 // 4)
    cbam.detach(model)
    cbam.attach(model, sites={"layer1.0.bn2": {}, "auto": {"reduction_ratio": 4}}, input_size=64)
    assert gates(model)["layer1.0.bn2"].channel_attention.layers[0].out_channels == 64 // 4


def test_a_kind_gives_the_position_whichever_key_holds():
    net = Net(Block(8, "scale, drop"))
    plan = cbam.plan(
        net, sites={"blocks.0.drop": {"init": "paper"}, "auto": {"reduction_ratio": 2}}, input_size=8
    )
    assert [(site.name, site.position) for site in plan.sites] == [("blocks.0.drop", "input")]
    assert "r=2" in plan.attention


def test_the_table_shows_what_differs():
    text = str(cbam.plan(resnet(), sites=SITES, preset="timm", input_size=64))
    assert (
        "cbam (preset timm, r=16, k=7) in ResNet: 9 sites, init identity, 4 of them with options of their own"
        in text
    )
    assert re.search(r"layer4\.1\.bn2 .* se \(r=8\), init identity\n", text)
    assert re.search(r"layer2\.0\.bn2 +BatchNorm2d +after +128 +8x8 +2,148\n", text)


def test_another_attention_takes_those_options_of_the_call_that_it_knows():
    plan = cbam.plan(
        resnet(),
        sites={"layer3": {}, "layer4": {"attention": "se"}},
        reduction_ratio=4, kernel_size=3, arrangement="parallel", input_size=64,
    )  # fmt: skip
    assert [site.attention for site in plan.sites] == [
        "cbam (preset paper, r=4, k=3, arrangement=parallel)",
        "se (r=4)",
    ]


def test_keys_may_be_types_modules_and_predicates():
    model = resnet()
    sites = {
        nn.MaxPool2d: {}, model.layer2: {"attention": "se"}, lambda name, module: name == "layer3": {"kernel_size": 5}
    }  # fmt: skip
    plan = cbam.plan(model, sites=sites, input_size=64)
    assert [site.name for site in plan.sites] == ["maxpool", "layer2", "layer3"]


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"layer3": 8}, r"sites\['layer3'\] expects a dict of options, .* got 8"),
        (
            {"layer3": {"attenion": "se"}},
            r"sites\['layer3'\]: unknown option of cbam 'attenion'. Did you mean 'attention'",
        ),
        (
            {"layer3": {}, "layer4": {"reduction_ration": 8}},
            r"sites\['layer4'\].*Did you mean 'reduction_ratio'",
        ),
        (
            {"layer3": {"attention": "se", "kernel_size": 3}},
            r"sites\['layer3'\]: se has no option 'kernel_size'",
        ),
        ({"layer3": {"init": "papr"}}, r"unknown init 'papr'. Did you mean 'paper'"),
        ({"layer3": {}, "layer5": {}}, r"'layer5' matches none of 67 modules"),
        ({nn.Linear: {"kernel_size": 2}}, r"sites\[Linear\]: kernel_size must be odd"),
        ({}, "sites is empty"),
    ],
)
def test_errors_come_before_the_first_change(sites, message):
    model = resnet()
    modules = list(model.named_modules())
    with pytest.raises(CBAMError, match=message):
        cbam.attach(model, sites=sites, input_size=64)
    assert list(model.named_modules()) == modules


class TestUsability:
    def test_one_side_is_a_square_image_with_the_models_channels(self):
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        assert cbam.plan(net, sites="0", input_size=12).input_shapes == ((1, 1, 12, 12),)

    def test_a_module_is_a_site(self):
        model = resnet()
        assert cbam.plan(model, sites=model.layer4[1], input_size=64).sites[0].name == "layer4.1"
        with pytest.raises(CBAMError, match="the given Sequential is not a part of this model"):
            cbam.plan(model, sites=resnet().layer1, input_size=64)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                {"input_size": "224"},
                r"input_size expects \(channels, height, width\), or one side, got '224'",
            ),
            ({"input_size": (224, 224)}, "or one side, got"),
            ({"input_size": True}, "or one side, got True"),
            ({"input_size": 0}, "or one side, got 0"),
            (
                {"sites": lambda name: True},
                r"a predicate takes \(name, module\), but <lambda> takes \(name\)",
            ),
            ({"sites": []}, "sites is empty"),
            ({"exclude": {"layer1": {}}}, "sites expects 'auto'"),
            (
                {"attention": "se", "kernel_size": 7},
                "se has no option 'kernel_size'; cbam, .* have. .* attention='cbam'",
            ),
            ({"attention": "se", "arrangement": "parallel"}, "se has no option 'arrangement'; cbam has"),
            ({"attention": "se", "gaet": "sigmoid"}, "unknown option of se 'gaet'. Did you mean 'gate'"),
            ({"attention": "se", "preset": "papr"}, "unknown preset 'papr'"),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(CBAMError, match=message):
            cbam.plan(resnet(), **{"input_size": 64, **arguments})

    def test_se_lets_the_preset_stand(self):
        assert cbam.plan(resnet(), "se", preset="official", input_size=64).attention == "se (r=16)"

    def test_cbam_keeps_its_own_class(self):
        model = resnet()
        cbam.attach(model, input_size=64)
        assert {type(gate) for gate in gates(model).values()} == {CBAM}
