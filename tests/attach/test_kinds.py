"""Attention of other people's classes and functions, at the sites of a network."""

import copy
import logging

import pytest
import torch
from torch import nn

import cbam
from cbam.attach import WithEpilogue
from cbam.errors import CBAMError
from cbam.nn import AttentionModule
from cbam.nn.base import Gate
from cbam.nn.foreign import ForeignAttention
from cbam.nn.timm_attention import timm_names
from tests.attach.networks import resnet

IMAGE = torch.rand(2, 3, 64, 64)


class Plain(nn.Module):
    """A gate that knows nothing of this library."""

    def __init__(self, channels, width=4, bias=True):
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1, bias=bias)
        self.up = nn.Conv2d(width, channels, 1, bias=bias)

    def forward(self, x):
        return x * torch.sigmoid(self.up(self.down(x.mean((2, 3), keepdim=True))))


class WithIdentity(Plain):
    def forward(self, x):
        return x * 2 * torch.sigmoid(self.up(self.down(x.mean((2, 3), keepdim=True))))

    def set_identity(self):
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)


def zero_conv(channels):
    """A residual gate that is the identity as it is built."""

    class Residual(nn.Conv2d):
        def forward(self, x):
            return x + super().forward(x)

    module = Residual(channels, channels, 1)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


class Ours(AttentionModule):
    """A module of our base class without operator and without an identity."""

    def __init__(self, in_channels):
        super().__init__()
        self.in_channels = in_channels

    def attend_eagerly(self, x):
        return x / 2


CHANGES = "Plain cannot start as the identity: the model's output changes (at 8 of 8 sites)"


@pytest.mark.parametrize(
    "builder", [WithIdentity, zero_conv, "eca", cbam.SqueezeExcitation, cbam.ChannelAttention]
)
def test_the_output_stays_where_the_module_can_be_the_identity(builder, caplog):
    model = resnet().eval()
    before = model(IMAGE)
    made = cbam.attach(model, builder, input_size=64)
    assert torch.equal(model(IMAGE), before)
    assert made.init == "identity"
    assert not made.notes
    assert not caplog.records


@pytest.mark.parametrize(
    "builder", [Plain, Ours, lambda channels: nn.Conv2d(channels, channels, 3, padding=1)]
)
def test_the_plan_and_the_log_say_where_it_changes(builder, caplog):
    model = resnet().eval()
    before, plan = model(IMAGE), cbam.plan(model, builder, input_size=64)
    assert plan.init == "as built"
    assert "init as built" in str(plan)
    assert "cannot start as the identity: the model's output changes (at 8 of 8 sites)" in str(plan)
    assert not caplog.records, "a plan only shows it"
    cbam.attach(model, builder, input_size=64)
    assert not torch.equal(model(IMAGE), before)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_fresh_gates_are_no_surprise(caplog):
    model = resnet()
    assert cbam.attach(model, Plain, init="paper", input_size=64).init == "paper"
    assert not caplog.records


def test_options_reach_the_module():
    model = resnet()
    made = cbam.attach(
        model, sites={"layer1.*.bn2": {"width": 2}, "layer2": {"attention": "cbam"}}, attention=Plain, bias=False,
        init="paper", input_size=64,
    )  # fmt: skip
    assert [site.attention for site in made.sites][::2] == [
        "Plain (bias=False, width=2)",
        "cbam (preset paper, r=16, k=7)",
    ]
    block = model.layer1[0].bn2.cbam
    assert isinstance(block, ForeignAttention)
    assert block.module.down.weight.shape == (2, 64, 1, 1)
    assert made.sites[0].parameters == sum(p.numel() for p in block.parameters()) == 4 * 64
    with pytest.raises(CBAMError, match=r"unknown option of Plain 'widht'\. Did you mean 'width'"):
        cbam.plan(resnet(), Plain, widht=2, input_size=64)


def test_off_copied_taken_out_and_back():
    model = resnet().eval()
    before = model(IMAGE)
    cbam.attach(model, Plain, init="paper", input_size=64)
    attended = model(IMAGE)
    with cbam.disabled(model):
        assert torch.equal(model(IMAGE), before)
    assert torch.equal(model(IMAGE), attended)
    twin = copy.deepcopy(model)
    state = model.state_dict()
    assert state["layer1.0.bn2.cbam.module.up.weight"] is not None
    assert cbam.detach(model) == 8
    assert torch.equal(model(IMAGE), before)
    assert torch.equal(twin(IMAGE), attended)
    cbam.attach(model, Plain, init="paper", input_size=64)
    model.load_state_dict(state)
    assert torch.equal(model(IMAGE), attended)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(IMAGE), attended)
    assert torch.equal(torch.export.export(model, (IMAGE,)).module()(IMAGE), attended)
    assert not any(isinstance(module, WithEpilogue) for module in model.modules()), (
        "the operator has no part in it"
    )


def test_nothing_is_left_of_a_plan():
    model = resnet()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cbam.plan(model, Plain, input_size=64)
    assert torch.equal(torch.rand(3), expected)
    assert cbam.plan(model, "eca", input_size=64).added_parameters == 2 * 3 + 6 * 5


def test_dtype_and_device_of_the_host():
    model = resnet().to(torch.bfloat16)
    cbam.attach(model, Plain, init="paper", input_size=64)
    assert model.layer1[0].bn2.cbam.module.up.weight.dtype == torch.bfloat16
    meta = resnet().to("meta")
    cbam.attach(meta, Plain, init="paper", sites="layer1.*.bn2", input_size=64)
    assert meta.layer1[0].bn2.cbam.module.up.weight.is_meta


def lower(channels):
    return nn.Conv2d(channels, channels, 3, stride=2)


def fewer(channels):
    return nn.Conv2d(channels, 1, 1)


class Double(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x.double()


class Pair(Double):
    def forward(self, x):
        return x, x


class Wrong(Double):
    def forward(self, x):
        raise RuntimeError("no such map")


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (
            lower,
            r"'lower' does not keep the map: for \(2, 64, 16, 16\), torch.float32 it returns \(2, 64, 7, 7\)",
        ),
        (fewer, r"it returns \(2, 1, 16, 16\), torch.float32\. Return the gated map"),
        (Double, r"it returns \(2, 64, 16, 16\), torch.float64"),
        (Pair, "it returns tuple"),
        (Wrong, r"'Wrong' fails on a map of 64x16x16 \(RuntimeError: no such map\)"),
        (nn.Linear, r"'Linear' cannot be built for 64 channels \(TypeError"),
        (Plain(64), "given a Plain itself: every site needs one of its own"),
        (Gate, r"'Gate' cannot be built|logits"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:20]),
)
def test_modules_that_do_not_keep_the_map_are_refused(builder, message):
    model = resnet()
    modules = list(model.named_modules())
    with pytest.raises(CBAMError, match=message):
        cbam.attach(model, builder, input_size=64)
    assert list(model.named_modules()) == modules


def test_folding_leaves_other_modules_alone():
    model = resnet().eval()
    sites = {"layer1.*.bn2": {"attention": Plain}, "layer2.*.bn2": {}, "layer3.0.bn2": {"attention": "eca"}}
    cbam.attach(model, sites=sites, input_size=64)
    before = model(IMAGE)
    assert cbam.fold_gate_scale(model) == 3
    assert torch.equal(model(IMAGE), before)
    assert model.layer3[0].bn2.cbam.gate_scale is None
    with pytest.raises(CBAMError, match="nothing to fold"):
        cbam.fold_gate_scale(model)


class Small(nn.Module):
    """Two sites; maps that every module of timm's factory takes."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean((2, 3)))


# What a module of timm's needs beyond the channels, for maps of 8x8; and what this version of timm cannot build.
NEEDED = {"bottleneck": {"feat_size": (8, 8)}}
SITES = {"bottleneck": "bn2"}
SIZES = {"bat": 14, "halo": 16}


def broken_in_timm(name):
    from timm.layers import create_attn

    try:
        create_attn(name, 16, **NEEDED.get(name, {}))
    except TypeError:
        return True
    return False


@pytest.mark.parametrize("name", timm_names())
def test_every_module_of_timms_factory(name, tmp_path):
    if broken_in_timm(name):
        with pytest.raises(CBAMError, match=rf"'timm:{name}' cannot be built for 16 channels \(TypeError"):
            cbam.plan(Small(), f"timm:{name}", sites=["bn1", "bn2"], input_size=16)
        return
    side = SIZES.get(name, 16)
    options = {"sites": SITES.get(name, ["bn1", "bn2"]), "input_size": side, **NEEDED.get(name, {})}
    image = torch.rand(2, 3, side, side)
    torch.manual_seed(0)
    model = Small()
    before = copy.deepcopy(model).eval()(image)
    made = cbam.attach(model, f"timm:{name}", **options)
    changed = not torch.equal(model.eval()(image), before)
    assert (
        (made.init == "as built")
        == changed
        == any("cannot start as the identity" in note for note in made.notes)
    )
    model.train()(image).square().sum().backward()
    gates = [p for key, p in model.named_parameters() if ".cbam." in key]
    assert gates
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in gates)
    output = model.eval()(image)
    cbam.save_pretrained(model, tmp_path)
    again = cbam.from_pretrained(tmp_path, Small())
    assert torch.equal(again(image), output)
    other = Small().eval()
    cbam.attach(other, f"timm:{name}", **options)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(image), output)
    assert cbam.detach(model) == len(made.sites)


def test_what_timm_needs_is_said():
    with pytest.raises(
        CBAMError, match=r"'timm:bottleneck' cannot be built for 32 channels \(AssertionError: A concrete"
    ):
        cbam.plan(Small(), "timm:bottleneck", sites="bn2", input_size=16)
    with pytest.raises(CBAMError, match=r"unknown option of timm:gc 'reduction'\. Did you mean"):
        cbam.plan(Small(), "timm:gc", reduction=4, input_size=16)


def test_there_are_names():
    pytest.importorskip("timm")
    assert {"se", "ese", "eca", "ecam", "ceca", "ge", "gc", "gca", "cbam", "lcbam"} <= set(timm_names())
