"""The registry of the kinds of attention: who gets in, what it says of them, and how it finds them."""

import functools
import pickle
import re

import pytest
import torch
from torch import nn

import cbam
from cbam.errors import CBAMError, MissingExtra
from cbam.nn import CBAM, PRESETS, Preset, SqueezeExcitation, timm_attention
from cbam.nn.registry import attention_kind, check_options, describe, kind_names


@cbam.register_attention("registry_test_gate", label="Test", title="Test gate")
class Gate(nn.Module):
    def __init__(self, channels, width=4, *, bias=True, device=None, dtype=None):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=bias, device=device, dtype=dtype)
        self.width = width

    def forward(self, x):
        return x * torch.sigmoid(self.conv(x))


def by_another_name(dim):
    return nn.Conv2d(dim, dim, 1)


def test_what_a_builder_says_of_itself():
    kind = attention_kind("registry_test_gate")
    assert (kind.options, kind.label, kind.title) == ({"width": 4, "bias": True}, "Test", "Test gate")
    assert kind.description({"bias": False}) == "registry_test_gate (bias=False)"
    assert kind.build(4, {"width": 9}).module.width == 9
    assert attention_kind(Gate) is kind
    assert attention_kind(CBAM).name == "cbam"
    assert attention_kind(by_another_name).options == {}
    assert attention_kind(functools.partial(Gate, width=2)).options["width"] == 2


@pytest.mark.parametrize(
    "name", ["My-Gate", "my gate", "timm:x", "", "9", "a" * 51, None, "none", "control", "timm"]
)
def test_names_that_cannot_be(name):
    with pytest.raises(CBAMError, match=r"lower-case letters|another meaning"):
        cbam.register_attention(name, Gate)
    assert name not in kind_names()


def test_a_name_belongs_to_one():
    with pytest.raises(
        CBAMError, match=r"'registry_test_gate' is registered already, for tests.nn.test_registry.Gate"
    ):
        cbam.register_attention("registry_test_gate", by_another_name)
    with pytest.raises(CBAMError, match="'cbam' is registered already"):
        cbam.register_attention("cbam", Gate)
    again = type("Gate", (nn.Module,), {"__module__": Gate.__module__, "__qualname__": "Gate"})
    cbam.register_attention("registry_test_gate", again)  # the cell of a notebook, run again
    assert attention_kind("registry_test_gate").builder is again
    cbam.register_attention("registry_test_gate", Gate, label="Test", title="Test gate")


@pytest.mark.parametrize(
    "given", [7, None, Gate(4), int, object()], ids=["number", "none", "module", "type", "object"]
)
def test_what_is_not_attention(given):
    with pytest.raises(CBAMError, match=r"a class or a function channels -> torch.nn.Module, given"):
        attention_kind(given)
    if given is not None:  # then it is a decorator
        with pytest.raises(CBAMError, match="a class or a function"):
            cbam.register_attention("registry_test_wrong", given)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cbma", "unknown attention 'cbma'. Did you mean 'cbam'"),
        ("timm:gcc", "unknown timm attention 'gcc'. Did you mean 'gc'"),
        ("timm:", "unknown timm attention ''"),
        ("timm", "unknown attention 'timm'"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(CBAMError, match=message):
        attention_kind(name)


def test_timm_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm.layers", None)
    with pytest.raises(MissingExtra, match="attention 'timm:gc' needs the package 'timm'"):
        attention_kind("timm:gc")
    timm_attention.timm_names.cache_clear()
    assert timm_attention.timm_names() == []
    timm_attention.timm_names.cache_clear()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eca", {"reduction_ratio": 8}, "eca has no option 'reduction_ratio'; cbam, se, channel have"),
        (
            "registry_test_gate",
            {"widht": 3},
            "unknown option of registry_test_gate 'widht'. Did you mean 'width'",
        ),
        ("se", {"preset": "papr"}, "unknown preset 'papr'"),
    ],
)
def test_options_that_do_not_exist(name, options, message):
    with pytest.raises(CBAMError, match=message):
        check_options(attention_kind(name), options)


def test_builders_that_fail():
    kind = attention_kind(lambda channels: 1 / 0)
    with pytest.raises(
        CBAMError, match=r"cannot be built for 8 channels \(ZeroDivisionError: division by zero\)"
    ):
        kind.build(8, {})
    with pytest.raises(
        CBAMError, match=r"a class or a function channels -> torch.nn.Module; it returned int"
    ):
        attention_kind(lambda channels: 3).build(8, {})


def test_device_and_dtype_reach_every_builder():
    for builder in (Gate, by_another_name):
        block = attention_kind(builder).build(4, {}, device="meta", dtype=torch.float64)
        assert {(p.device.type, p.dtype) for p in block.parameters()} == {("meta", torch.float64)}


def test_modules_are_recognised():
    assert describe(attention_kind("channel").build(16, {}))[0].name == "cbam"  # as saved files say
    kind, options = describe(SqueezeExcitation(32, 8, gate="hardsigmoid"))
    assert (kind.name, options) == ("se", {"reduction_ratio": 8, "mlp_bias": True, "gate": "hardsigmoid"})
    kind, options = describe(attention_kind("registry_test_gate").build(4, {"width": 2}))
    assert (kind.name, options) == ("registry_test_gate", {"width": 2})
    with pytest.raises(CBAMError, match=re.escape("cbam.register_attention('my_gate', by_another_name)")):
        describe(attention_kind(by_another_name).build(4, {}))


class TestInitOfPresets:
    @pytest.mark.parametrize("preset", [PRESETS["official"], Preset(**vars(PRESETS["official"]))])
    def test_it_belongs_to_the_preset(self, preset):
        torch.manual_seed(0)
        named = CBAM(64, preset="official").state_dict()
        torch.manual_seed(0)
        given = CBAM(64, preset=preset).state_dict()
        assert all(torch.equal(named[key], given[key]) for key in named)
        assert not given["channel_attention.mlp.0.bias"].any()

    def test_it_is_a_switch(self):
        torch.manual_seed(0)
        block = CBAM(64, preset="official", weight_init="default")
        assert block.channel_attention.mlp[0].bias.any()
        with pytest.raises(CBAMError, match="unknown weight_init 'authors'"):
            CBAM(64, weight_init="authors")

    def test_presets_pickled_before_the_field_was_there(self):
        old = pickle.loads(pickle.dumps(PRESETS["official"]))
        del vars(old)["weight_init"]
        old = pickle.loads(pickle.dumps(old))
        assert old.weight_init == "default"
        assert CBAM(16, preset=old).channel_attention.mlp[0].bias.any()  # as such an object did
