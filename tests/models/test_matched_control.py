"""The parameter-matched control: how near, what it keeps, what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cbam.attach import attach
from cbam.errors import CBAMError
from cbam.models import build_model, match_parameters
from cbam.models.matched_control import _distribute, _find_joints


def _parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def _target(name, **options):
    model = build_model(name, 10)
    attach(model, **options)
    return _parameters(model)


def _alive(name):
    """Return a model whose norms have statistics and weights that hide nothing."""
    torch.manual_seed(0)
    model = build_model(name, 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return model.eval()


def _close(found, expected):
    # In units of the largest output: sums over more (zero) terms round differently.
    assert float((found - expected).detach().abs().max()) <= 1e-5 * float(expected.detach().abs().max())


CASES = [
    ("resnet20", {}),
    ("resnet20", {"preset": "official"}),
    ("resnet20", {"attention": "se"}),
    ("resnet56", {}),
    ("resnet18", {}),
    ("timm/resnet18", {"preset": "timm"}),
    ("resnet50", {"preset": "official"}),
    ("timm/resnet50", {}),
    ("timm/resnet50d", {}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_as_many_parameters_as_with_attention_and_the_same_function(name, options):
    target = _target(name, **options)
    model = _alive(name)
    plain = _parameters(model)
    images = torch.rand(2, 3, 64, 64)
    before = model(images)
    assert match_parameters(model, target) is model
    assert plain < _parameters(model)
    assert abs(_parameters(model) - target) <= 0.001 * target
    _close(model(images), before)


@pytest.mark.parametrize("name", ["resnet20", "timm/resnet50"])
def test_old_values_stay_and_new_ones_train(name):
    model = _alive(name)
    old = {key: value.clone() for key, value in model.state_dict().items()}
    match_parameters(model, int(_parameters(model) * 1.05))
    new = model.state_dict()
    assert old.keys() == new.keys()
    for key, value in old.items():
        corner = tuple(slice(0, size) for size in value.shape)
        assert torch.equal(new[key][corner] if value.shape else new[key], value), key
    grown = [key for key in old if old[key].shape != new[key].shape]
    assert any(".conv1." in key for key in grown)
    assert not any(key.startswith(("conv1", "bn1", "fc")) or "downsample" in key for key in grown)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(torch.rand(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    for name_, parameter in model.named_parameters():
        if name_ in grown and parameter.ndim == 4:
            first = tuple(slice(0, size) for size in old[name_].shape)
            fresh = torch.ones_like(parameter, dtype=torch.bool)
            fresh[first] = False
            assert (parameter.grad[fresh] != 0).any(), f"new weights of {name_} get no gradient"


def test_new_rows_have_the_spread_of_old_ones_and_new_columns_are_zero():
    model = _alive("resnet20")
    match_parameters(model, int(_parameters(model) * 1.5))
    block = model.layer3[1]
    rows = block.conv1.weight[64:].detach()
    assert rows.shape[0] > 10
    assert float(rows.std()) == pytest.approx(float(block.conv1.weight[:64].detach().std()), rel=0.05)
    assert not block.conv2.weight[:, 64:].any()
    assert (
        block.conv1.out_channels
        == block.bn1.num_features
        == block.conv2.in_channels
        == block.conv2.weight.shape[1]
    )


def test_width_is_spread_in_proportion():
    model = build_model("resnet50", 1000)
    before = {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    match_parameters(model, 28_089_624)
    after = {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    grown = {name: after[name] / before[name] for name in before if after[name] != before[name]}
    assert len(grown) == 32, "both inner widths of all 16 blocks"
    assert min(grown.values()) > 1.0
    assert max(grown.values()) - min(grown.values()) < 0.02


def test_the_count_that_is_planned_is_the_count_that_is_built():
    for name, extra in (
        ("resnet50", 1_234_567),
        ("resnet20", 1),
        ("resnet20", 490),
        ("resnet20", 5000),
        ("resnet18", 77_777),
    ):
        model = build_model(name, 10)
        joints, before = _find_joints(model), _parameters(model)
        plan = _distribute(joints, extra)
        assert any(plan), "at least one channel, however small the target"
        with torch.no_grad():
            for joint, channels in zip(joints, plan, strict=True):
                joint.grow(channels)
        smallest = min(joint.channel_cost(0, 0) for joint in joints)
        assert abs(_parameters(model) - before - extra) <= (smallest if extra == 1 else 0.55 * smallest)


def test_random_numbers_decide_the_new_channels_and_nothing_else_draws():
    models = []
    for _ in range(2):
        model = _alive("resnet20")
        torch.manual_seed(9)
        models.append(match_parameters(model, 273_000).state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    untouched = _alive("resnet20")
    torch.manual_seed(9)
    state = torch.get_rng_state()
    _find_joints(untouched)
    assert torch.equal(torch.get_rng_state(), state)


def test_type_frozenness_and_mode_follow_the_host():
    model = build_model("resnet20", 10).double().train()
    model.layer3.requires_grad_(False)
    match_parameters(model, 290_000)
    conv = model.layer3[1].conv1
    assert conv.out_channels > 64
    assert conv.weight.dtype == torch.float64
    assert not conv.weight.requires_grad
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "vgg11", "resnext50_32x4d", "timm/resnext50_32x4d", "convnext_tiny"]
)
def test_networks_without_such_blocks_are_refused_unchanged(name):
    model = build_model(name, 10)
    before = _parameters(model)
    why = "16 blocks look like one, but have grouped" if "resnext" in name else "no block has conv1, bn1"
    with pytest.raises(CBAMError, match=f"{why}.*no 'control' in --attention"):
        match_parameters(model, int(before * 1.1))
    assert _parameters(model) == before


class _PreActivation(nn.Module):
    """Names like a ResNet's block, wired otherwise: bn1 norms the input."""

    def __init__(self):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())


def test_blocks_that_only_have_the_names_are_found_out():
    with pytest.raises(CBAMError, match="1 blocks look like one"):
        match_parameters(_PreActivation(), 100_000)


class _PerChannel(_PreActivation):
    """A part between the convolutions that knows how many channels there are."""

    def __init__(self):
        super().__init__()
        self.act = nn.PReLU(8)

    def forward(self, x):
        return x + self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))


def test_blocks_with_parts_for_each_channel_are_found_out():
    with pytest.raises(CBAMError, match="1 blocks look like one"):
        match_parameters(_PerChannel(), 100_000)


@pytest.mark.parametrize("target", [269_722, 1000, -5])
def test_targets_that_are_not_larger(target):
    with pytest.raises(
        CBAMError, match=r"can only add parameters: the target of .* is not above the 269,722"
    ):
        match_parameters(build_model("resnet20", 10), target)


def test_targets_between_two_channels_name_the_closest():
    model = build_model("resnet20", 10)
    with pytest.raises(CBAMError, match=r"to 269,800 parameters within 0\.01%: the closest .* is 270,012"):
        match_parameters(model, 269_800, tolerance=0.0001)
    assert _parameters(model) == 269_722
    assert _parameters(match_parameters(model, 269_800)) == 270_012


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0", "timm/mobilenetv2_050"])
def test_inverted_residuals_grow_with_their_depthwise_convolution(name):
    """As the control of a fine-tuned network has to: the same answers, in evaluation mode."""
    torch.manual_seed(0)
    model = build_model(name, 10).eval()
    before, images = _parameters(model), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain = model(images)
        assert abs(_parameters(match_parameters(model, before + 20_000)) - before - 20_000) < 1000
        torch.testing.assert_close(model(images), plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
        widened = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
        assert all(conv.weight.shape[0] == conv.groups == conv.out_channels for conv in widened)
    model.train()(images).sum().backward()
