"""Recorded gates: the right ones, at the right sites, and the network none the wiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import cbam
from cbam import CBAM, ChannelAttention, SpatialAttention, SqueezeExcitation, attention_maps, set_backend
from cbam.errors import CBAMError
from cbam.nn import ECA
from cbam.ops import cpp
from tests.attach.networks import Seen, a_map, randomised, randomised_gates, resnet

BACKENDS = (
    "eager",
    pytest.param("cpp", marks=pytest.mark.skipif(not cpp.available(), reason="not compiled")),
)
MODULES = {
    "paper": lambda: CBAM(8),
    "official": lambda: CBAM(8, preset="official", norm_weight=0.7),
    "averages": lambda: CBAM(8, channel_pooling="avg", spatial_descriptor="max"),
    "hardsigmoid": lambda: CBAM(8, gate="hardsigmoid", gate_scale=2.0),
    "learned descriptor": lambda: CBAM(8, spatial_descriptor="conv"),
    "spatial first": lambda: CBAM(8, arrangement="spatial-channel"),
    "channel only": lambda: CBAM(8, arrangement="channel"),
    "spatial only": lambda: CBAM(8, arrangement="spatial"),
    "channel attention": lambda: ChannelAttention(8),
    "spatial attention": lambda: SpatialAttention(),
    "se": lambda: SqueezeExcitation(8),
    "eca": lambda: ECA(8),
}


def run(module, x, grad):
    """Output, gradients and buffers of a forward pass."""
    x = x.clone().requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        y = module(x)
    found = [y.detach()]
    if grad:
        gradients = torch.autograd.grad(y.square().sum(), [x, *module.parameters()], allow_unused=True)
        found += [gradient for gradient in gradients if gradient is not None]
    return [*found, *(buffer.clone() for buffer in module.buffers())]


def product(x, gates):
    for gate in gates:
        if gate is not None:
            x = x * (gate[..., None, None] if gate.dim() == 2 else gate)
    return x


class TestModulesAlone:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
    @pytest.mark.parametrize("name", MODULES)
    def test_the_gates_are_those_of_the_output_whose_bits_stay(self, name, grad, backend):
        module, x = randomised(MODULES[name]()).train(grad), a_map()
        with set_backend("auto" if backend == "cpp" else backend):
            plain = run(copy.deepcopy(module), x, grad)
            with attention_maps(module) as maps:
                recorded = run(module, x, grad)
        assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
        assert list(maps) == [""]
        torch.testing.assert_close(product(x, maps[""]), recorded[0])
        assert not any(gate.requires_grad for gate in maps[""] if gate is not None)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_the_dtype_is_that_of_the_arithmetic(self, dtype):
        module, x = randomised(CBAM(8)).to(dtype), a_map(dtype=dtype)
        with attention_maps(module) as maps:
            y = module(x)
        expected = torch.float64 if dtype == torch.float64 else torch.float32
        assert {gate.dtype for gate in maps[""]} == {expected}
        torch.testing.assert_close(product(x.float(), maps[""]).to(dtype), y, rtol=0.02, atol=0.02)

    @pytest.mark.parametrize("backend", ["auto", "eager"])
    def test_layouts_and_single_maps(self, backend):
        module, x = randomised(CBAM(8)), a_map()
        with set_backend(backend):
            for given in (x, x.contiguous(memory_format=torch.channels_last), x[0], x[:0]):
                with attention_maps(module) as maps:
                    module(given)
                n = 1 if given.dim() == 3 else len(given)
                assert maps[""].channel.shape == (n, 8)
                assert maps[""].spatial.shape == (n, 1, 5, 4)
                assert maps[""].spatial.is_contiguous()
                if n:
                    torch.testing.assert_close(product(given, (maps[""].channel, None))[0], x[0] * maps[
                        ""
                    ].channel[0, :, None, None])  # fmt: skip

    def test_gates_hold_nothing_else_in_memory(self):
        module, x = randomised(CBAM(8)), a_map()
        with torch.no_grad(), attention_maps(module) as maps:
            module(x)
        for gate in maps[""]:
            assert gate.untyped_storage().nbytes() == gate.numel() * gate.element_size()

    def test_parallel_gates_are_those_of_each_part(self):
        module, x = randomised(CBAM(8, arrangement="parallel")), a_map()
        with attention_maps(module) as maps:
            y = module(x)
        channel, spatial = (gate.double().logit() for gate in maps[""])
        expected = x * (channel[..., None, None] + spatial).sigmoid()
        torch.testing.assert_close(expected.float(), y, rtol=1e-4, atol=1e-5)

    def test_a_hook_on_one_part_makes_it_run_apart(self):
        module, x = randomised(CBAM(8)), a_map()
        with attention_maps(module) as together:
            module(x)
        module.channel_attention.register_forward_hook(lambda *_: None)
        with attention_maps(module) as apart:
            module(x)
        assert len(apart.calls("")) == 1
        for a, b in zip(together[""], apart[""], strict=True):
            torch.testing.assert_close(a, b)

    def test_modules_in_a_network_by_path(self):
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3), CBAM(8), nn.ModuleDict({"gate": SqueezeExcitation(8)})["gate"]
        )
        with attention_maps(network) as maps:
            network(torch.rand(2, 3, 9, 9))
        assert list(maps) == ["1", "2"]
        assert maps["2"].spatial is None
        assert "1: channel (2, 8), spatial (2, 1, 7, 7)" in repr(maps)


class TestAttached:
    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_outputs_gradients_and_statistics_keep_their_bits(self, backend, training):
        model = resnet()
        cbam.attach(model)
        randomised_gates(model)
        model.train(training)
        x = a_map(shape=(2, 3, 64, 64))
        with set_backend("auto" if backend == "cpp" else backend):
            plain = run(copy.deepcopy(model), x, training)
            with attention_maps(model) as maps:
                recorded = run(model, x, training)
        assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
        assert list(maps) == [f"layer{i}.{j}.bn2" for i in (1, 2, 3, 4) for j in (0, 1)]
        assert maps["layer3.1.bn2"].channel.shape == (2, 256)
        assert maps["layer3.1.bn2"].spatial.shape == (2, 1, 4, 4)

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_the_gates_are_those_of_plain_torch_though_norm_and_epilogue_are_in_the_call(self, training):
        model = resnet()
        cbam.attach(model)
        randomised_gates(model)
        model.train(training)
        x = a_map(shape=(2, 3, 64, 64))
        with set_backend("eager"), attention_maps(model) as expected:
            copy.deepcopy(model)  # which records nothing
            model(x)
        model.train(training)
        with Seen() as seen, attention_maps(model) as found:
            model(x)
        if cpp.available():
            assert (seen.calls, seen.norms, seen.ends) == (8, 8, 8)
        for site in expected:
            for a, b in zip(expected[site], found[site], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
            assert len(found.calls(site)) == len(expected.calls(site)) == 1

    def test_behind_an_activation_and_in_front_of_a_module(self):
        model = resnet().eval()
        cbam.attach(model, "se", sites="stage")
        with attention_maps(model) as maps:
            model(a_map(shape=(1, 3, 64, 64)))
        assert len(maps) >= 4
        assert all(gates.spatial is None for gates in maps.values())

    def test_a_head_that_runs_at_every_level(self):
        from torchvision.models.detection import retinanet_resnet50_fpn

        model = retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
        )
        model.eval()
        cbam.attach(model, sites=["head.classification_head.conv.0"], input_size=(3, 64, 64))
        images = [torch.rand(3, 64, 48), torch.rand(3, 40, 64)]
        with torch.no_grad(), attention_maps(model) as maps:
            model(images)
        (site,) = maps
        calls = maps.calls(site)
        assert len(calls) == 5
        sizes = [call.spatial.shape[-1] for call in calls]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) > 3
        assert maps[site].spatial.shape == calls[-1].spatial.shape


class TestOtherAttention:
    @pytest.fixture
    def kind(self, monkeypatch):
        from cbam.nn import registry

        monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))

        class Contrast(nn.Module):
            def __init__(self, channels):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(channels))

            def gate(self, x):
                return torch.sigmoid(self.weight * x.std((2, 3)))

            def forward(self, x):
                return x * self.gate(x)[..., None, None]

        def register(gates):
            cbam.register_attention("contrast", Contrast, gates=gates)
            model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
            cbam.attach(model, "contrast", sites=["1"], input_size=(3, 9, 9))
            return model

        return register

    def test_a_kind_that_tells_its_gates(self, kind):
        model, x = kind(lambda module, x: module.gate(x)), torch.rand(2, 3, 9, 9)
        plain = model(x)
        with attention_maps(model) as maps:
            assert torch.equal(model(x), plain)
        assert list(maps) == ["1"]
        torch.testing.assert_close(torch.relu(model[0](x)) * maps["1"].channel[..., None, None], plain)
        assert not maps["1"].channel.requires_grad

    def test_both_gates_as_a_tuple(self, kind):
        model = kind(lambda module, x: (module.gate(x)[..., None, None], x.mean(1, keepdim=True)))
        with attention_maps(model) as maps:
            model(torch.rand(2, 3, 9, 9))
        assert (maps["1"].channel.shape, maps["1"].spatial.shape) == ((2, 8), (2, 1, 7, 7))

    def test_gates_of_another_shape(self, kind):
        model = kind(lambda module, x: x)
        expected = r"gates at '1' must have the shape \(2, 8\).*returned \(2, 8, 7, 7\)"
        with pytest.raises(CBAMError, match=expected), attention_maps(model):
            model(torch.rand(2, 3, 9, 9))
        assert model(torch.rand(2, 3, 9, 9)).shape == (2, 8, 7, 7)

    def test_a_kind_that_does_not(self, kind):
        model = kind(None)
        expected = r"does not tell its gates, the first at '1'.*gates=\.\.\."
        with pytest.raises(CBAMError, match=expected), attention_maps(model):
            pass
        both = nn.Sequential(model, CBAM(8))
        with attention_maps(both) as maps:
            both(torch.rand(2, 3, 9, 9))
        assert (list(maps), maps.without_gates) == (["1"], ("0.1",))

    def test_no_attention_at_all(self):
        expected = r"ReLU has no attention module to record: cbam\.attach"
        with pytest.raises(CBAMError, match=expected), attention_maps(nn.ReLU()):
            pass
