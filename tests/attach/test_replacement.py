"""Attention in the place of squeeze-excitations: found by what they compute, counted, undone, saved."""

import copy
import io

import pytest
import timm
import torch
from torch import nn
from torchvision.models import get_model

import cbam
from cbam.attach.graph.probe import run_probe
from cbam.attach.replacement import Replacement
from cbam.attach.sites.squeeze import find_squeezes
from cbam.cli.main import main
from tests.attach.networks import Block, Net, resnet

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return get_model("mobilenet_v3_small", num_classes=5).eval()


def squeezes(model, *names):
    return [name for name, module in model.named_modules() if type(module).__name__ in names]


class Legacy(nn.Module):
    """As in the repositories of 2018: a view, linear layers, an expanded gate."""

    def __init__(self, channels, layers=True):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = (
            nn.Sequential(nn.Linear(channels, 2), nn.ReLU(), nn.Linear(2, channels)) if layers else nn.ReLU()
        )

    def forward(self, x):
        y = self.fc(self.pool(x).view(x.shape[0], -1)).sigmoid().view(x.shape[0], -1, 1, 1)
        return x * y.expand_as(x)


class Spatial(nn.Module):
    """No squeeze-excitation: its gate is one number for each location."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x * self.conv(x).sigmoid()


class TestFinding:
    @pytest.mark.parametrize(
        ("build", "kinds"),
        [
            (lambda: get_model("mobilenet_v3_small"), ["SqueezeExcitation"]),
            (lambda: get_model("efficientnet_b0"), ["SqueezeExcitation"]),
            (lambda: get_model("regnet_y_400mf"), ["SqueezeExcitation"]),
            (lambda: timm.create_model("mobilenetv3_small_050"), ["SqueezeExcite"]),
            (lambda: timm.create_model("seresnext26d_32x4d"), ["SEModule"]),
            (lambda: timm.create_model("legacy_seresnet18"), ["SEModule"]),
            (lambda: timm.create_model("ese_vovnet19b_slim"), ["EffectiveSEModule"]),
        ],
        ids=[
            "mobilenet_v3",
            "efficientnet",
            "regnet_y",
            "timm mobilenetv3",
            "SEModule",
            "legacy",
            "effective",
        ],
    )
    @pytest.mark.parametrize("size", [32, 64])
    def test_of_the_libraries(self, build, kinds, size):
        model = build().eval()
        found = find_squeezes(run_probe(model, (torch.rand(1, 3, size, size),)))
        assert found
        assert sorted(found) == sorted(squeezes(model, *kinds))

    @pytest.mark.parametrize("build", [Legacy, cbam.SqueezeExcitation], ids=["legacy", "ours"])
    def test_others(self, build):
        assert find_squeezes(run_probe(Net(build(8)), (torch.rand(1, 3, 8, 8),))) == ["blocks.0"]

    @pytest.mark.parametrize(
        "build",
        [Spatial, Block, cbam.CBAM, cbam.SpatialAttention, lambda channels: Legacy(channels, layers=False)],
        ids=["spatial", "block", "cbam", "spatial gate", "without layers"],
    )
    def test_what_is_none(self, build):
        part = build() if build is cbam.SpatialAttention else build(8)
        assert find_squeezes(run_probe(Net(part), (torch.rand(1, 3, 8, 8),))) == []


class TestReplacing:
    def test_the_plan_counts_them(self):
        model = network()
        theirs = [model.get_submodule(name) for name in squeezes(model, "SqueezeExcitation")]
        before, of_theirs = _count(model), sum(map(_count, theirs))
        plan = cbam.attach(model, replace="se", input_size=64)
        assert len(plan.sites) == len(theirs) == 9
        assert {site.position for site in plan.sites} == {"instead"}
        assert f"in place of 9 squeeze-excitations with {of_theirs:,} parameters" in str(plan)
        assert _count(model) == before + plan.added_parameters
        assert plan.added_parameters == sum(site.parameters for site in plan.sites) - of_theirs

    def test_at_identity_the_network_is_the_one_without_them(self):
        model, without = network(), network()
        for name in squeezes(without, "SqueezeExcitation"):
            without.set_submodule(name, nn.Identity())
        plan = cbam.attach(model, replace="se", input_size=64)
        assert torch.equal(model(IMAGES), without(IMAGES))
        assert not torch.equal(model(IMAGES), network()(IMAGES))
        assert any("the output changes" in note for note in plan.notes)

    def test_detach_puts_them_back_with_their_weights(self):
        model = network()
        before, keys = model(IMAGES), list(model.state_dict())
        cbam.attach(model, "eca", replace="se", input_size=64)
        model.double().train()
        assert cbam.detach(model) == 9
        assert list(model.state_dict()) == keys
        assert all(module.training for module in model.modules())
        assert torch.equal(model.float().eval()(IMAGES), before)

    def test_they_are_not_trained_and_not_saved(self):
        model = network()
        plan = cbam.attach(model, replace="se", input_size=64)
        model.train()(IMAGES).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        under = [key for key in model.state_dict() if key.startswith(tuple(f"{s.name}." for s in plan.sites))]
        assert under
        assert all(".cbam." in key for key in under)

    def test_an_old_checkpoint_loads_and_comes_back(self):
        model, trained = network(), network()
        for parameter in trained.parameters():
            nn.init.normal_(parameter, std=0.1)
        old = trained.state_dict()
        cbam.attach(model, replace="se", input_size=64)
        missing, unexpected = model.load_state_dict(old, strict=False)
        assert not unexpected
        assert all(".cbam." in key for key in missing)
        cbam.detach(model)
        assert all(torch.equal(value, old[key]) for key, value in model.state_dict().items())

    @pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
    def test_copies_bring_them_along(self, copied):
        model = network()
        before = model(IMAGES)
        cbam.attach(model, replace="se", input_size=64)
        if copied == "deepcopy":
            other = copy.deepcopy(model)
        else:
            file = io.BytesIO()
            torch.save(model, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        assert torch.equal(other(IMAGES), model(IMAGES))
        cbam.detach(other)
        assert torch.equal(other(IMAGES), before)
        assert any(isinstance(module, Replacement) for module in model.modules())

    def test_a_saved_network_comes_back(self, tmp_path):
        model = network()
        cbam.attach(model, "cbam", replace="se", init="paper", input_size=64)
        expected = model(IMAGES)
        folder = cbam.save_pretrained(model, tmp_path / "saved", "torchvision/mobilenet_v3_small")
        again = cbam.from_pretrained(folder)
        assert torch.equal(again(IMAGES), expected)
        assert cbam.detach(again) == 9


class TestChoosing:
    def test_some_of_them_with_options_of_their_own(self):
        sites = {"re:features\\.[1-4]\\..*": {}, "features.9.block.2": {"reduction_ratio": 4}}
        plan = cbam.plan(network(), sites=sites, replace="se", input_size=64)
        assert [site.name for site in plan.sites] == [
            "features.1.block.1",
            "features.4.block.2",
            "features.9.block.2",
        ]
        assert [site.attention[-8:] for site in plan.sites] == [
            "=16, k=7)"[-8:],
            "=16, k=7)"[-8:],
            "r=4, k=7)"[-8:],
        ]

    def test_by_class_and_without_the_first(self):
        plan = cbam.plan(
            network(), sites="SqueezeExcitation", exclude="features.1.*.*", replace="se", input_size=64
        )
        assert len(plan.sites) == 8

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"replace": "es"}, r"unknown replace 'es'. Did you mean 'se'"),
            ({"replace": "se", "sites": "stage"}, "sites='stage' does not go with replace='se'"),
            (
                {"replace": "se", "sites": "classifier"},
                "names none of the 9 squeeze-excitations: 'features.1.block.1'",
            ),
        ],
    )
    def test_messages(self, options, message):
        with pytest.raises(cbam.CBAMError, match=message):
            cbam.plan(network(), input_size=64, **options)

    def test_a_network_without_any(self):
        with pytest.raises(cbam.CBAMError, match="replace='se' finds no squeeze-excitation in ResNet"):
            cbam.plan(resnet(), replace="se", input_size=64)


def test_on_the_command_line(capsys):
    small = ["--model", "mobilenet_v3_small", "--input-size", "3", "64", "64"]
    assert main(["plan", *small, "--replace", "se"]) == 0
    assert "in place of 9 squeeze-excitations" in capsys.readouterr().out
    assert main(["cost", *small, "--replace", "se", "--attention", "eca"]) == 0
    added = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("parameters"))
    assert added.split()[-2].startswith("-")
    assert main(["cost", *small, "--replace", "se"]) == 2
    assert "--replace has no effect with --attention none" in capsys.readouterr().err


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())
