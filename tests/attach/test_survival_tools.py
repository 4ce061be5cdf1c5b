"""What torch's tools do to an attached model: models without memory, quantisation, torch.func."""

import copy
import warnings

import pytest
import torch
from torch import nn

import cbam
from cbam.errors import CBAMError
from tests.attach.networks import resnet

IMAGE = torch.rand(2, 3, 32, 32)


def attached(seed=0, **options):
    model = resnet(seed)
    cbam.attach(model, **{"init": "paper", "preset": "official", "input_size": 32, **options})
    return model.eval()


class TestMetaDevice:
    """Built and attached without memory, then filled: nothing may stay behind or keep its values."""

    @pytest.fixture
    def without_memory(self):
        with torch.device("meta"):
            return attached(init="identity")

    def test_assign(self, without_memory):
        source = attached(1)
        without_memory.load_state_dict(source.state_dict(), assign=True)
        tensors = [*without_memory.parameters(), *without_memory.buffers()]
        assert not any(tensor.is_meta for tensor in tensors)
        assert torch.equal(without_memory(IMAGE), source(IMAGE))

    @pytest.mark.parametrize("how", ["torch", "cbam"])
    def test_to_empty_and_load(self, without_memory, how, tmp_path):
        source = attached(1)
        model = without_memory.to_empty(device="cpu")
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data.fill_(7)  # what is not loaded would show
        if how == "torch":
            model.load_state_dict(source.state_dict())
        else:
            torch.save(source.state_dict(), tmp_path / "weights.pth")
            cbam.load_weights(model, tmp_path / "weights.pth")
        assert torch.equal(model(IMAGE), source(IMAGE))

    def test_a_plain_file_then_attach(self):
        """An old file says nothing of the gates: attach when the network has its memory."""
        source = resnet(1).eval()
        with torch.device("meta"):
            model = resnet()
        model.load_state_dict(source.state_dict(), assign=True)
        cbam.attach(model.eval(), input_size=32)
        assert torch.equal(model(IMAGE), source(IMAGE))


@pytest.mark.filterwarnings("ignore:.*quantization is deprecated")
@pytest.mark.filterwarnings("ignore:.*reduce_range")
class TestQuantisation:
    """torch.ao.quantization, deprecated since torch 2.10: the network is quantised, the gates stay in float32."""

    @pytest.mark.parametrize("how", ["eager", "fx"])
    def test_quantisation_aware_training_moves_the_gates(self, how):
        import torch.ao.quantization as quantization
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

        model = attached().train()
        expected = model(IMAGE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if how == "eager":
                model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
                prepared = quantization.prepare_qat(model)
            else:
                mapping = quantization.get_default_qat_qconfig_mapping("fbgemm")
                prepared = prepare_qat_fx(model, mapping, (IMAGE,))
            output = prepared(IMAGE)
            assert (output - expected).norm() < 0.9 * expected.norm()
            output.square().sum().backward()
            gates = [module for name, module in prepared.named_modules() if name.endswith(".cbam")]
            assert len(gates) == 8
            for gate in gates:
                assert gate.spatial_attention.norm.weight.grad.abs().sum() > 0
                assert type(gate.spatial_attention.conv) is nn.Conv2d
            if how == "fx":
                converted = convert_fx(prepared.eval())
                assert converted(IMAGE).isfinite().all()

    def test_dynamic_quantisation(self):
        model = attached()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        assert type(quantised.fc) is not nn.Linear
        assert (quantised(IMAGE) - model(IMAGE)).norm() < 0.1 * model(IMAGE).norm()


class TestFunctionalCall:
    @pytest.mark.parametrize("sites", ["auto", ["auto", "layer2", "layer2.0"]], ids=["plain", "nested"])
    @pytest.mark.parametrize("names", ["state dict", "parameters"])
    def test_with_either_kind_of_names(self, names, sites):
        model, other = attached(0, sites=sites), attached(1, sites=sites)
        before = model(IMAGE)
        given = other.state_dict()
        if names == "parameters":
            given = {**dict(other.named_parameters()), **dict(other.named_buffers())}
        assert torch.equal(torch.func.functional_call(model, given, (IMAGE,)), other(IMAGE))
        assert torch.equal(model(IMAGE), before)  # and its own weights are back
        assert all(isinstance(p, nn.Parameter) for p in model.parameters())

    def test_gradients_by_state_dict_names(self):
        model = attached()
        weights = {
            k: v.clone().requires_grad_() for k, v in model.state_dict().items() if k.endswith("weight")
        }
        torch.func.functional_call(model, weights, (IMAGE,)).square().sum().backward()
        assert weights["layer3.0.bn2.weight"].grad.abs().sum() > 0
        assert weights["layer3.0.bn2.cbam.channel_attention.mlp.2.weight"].grad.abs().sum() > 0

    def test_what_is_no_tensor_is_still_refused(self):
        with pytest.raises(TypeError):
            attached().layer1[0].bn2.weight = 3.0


class TestVmap:
    def test_over_images(self):
        model, images = attached(), torch.rand(3, 2, 3, 32, 32)
        outputs = torch.vmap(model)(images)
        for output, image in zip(outputs, images, strict=True):
            torch.testing.assert_close(output, model(image), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("preset", ["paper", "official"])
    def test_a_gradient_for_each_sample(self, preset):
        model = attached(preset=preset)
        weights = {name: p.detach() for name, p in model.named_parameters()}

        def loss(weights, image):
            return torch.func.functional_call(model, weights, (image[None],)).square().sum()

        each = torch.vmap(torch.func.grad(loss), (None, 0))(weights, IMAGE)
        name = "layer1.0.bn2.cbam.spatial_attention.conv.weight"
        for i, image in enumerate(IMAGE):
            model.zero_grad()
            model(image[None]).square().sum().backward()
            torch.testing.assert_close(each[name][i], model.get_parameter(name).grad, atol=1e-4, rtol=1e-3)

    def test_running_statistics_in_training(self):
        """torch.func cannot change a buffer that it was not given; it says so in terms of addresses."""
        block, x = cbam.CBAM(8, preset="official"), torch.rand(3, 2, 8, 5, 5)
        weights, buffers = (dict(named) for named in (block.named_parameters(), block.named_buffers()))

        def loss(weights, buffers):
            return torch.func.functional_call(block, {**weights, **buffers}, (x[0],)).square().sum()

        for call in (lambda: torch.vmap(block)(x), lambda: torch.func.grad(loss)(weights, {})):
            with pytest.raises(
                CBAMError, match=r"running statistics.*model\.eval\(\).*replace_all_batch_norm"
            ):
                call()
        given = {name: buffer.clone() for name, buffer in buffers.items()}
        assert torch.func.grad(loss)(weights, given).keys() == weights.keys()
        torch.func.replace_all_batch_norm_modules_(block)
        torch.testing.assert_close(torch.vmap(block)(x)[1], block(x[1]))

    def test_an_ensemble(self):
        models = [attached(seed) for seed in (0, 1)]
        stacked = torch.func.stack_module_state(models)
        shape = copy.deepcopy(models[0]).to("meta")

        def one(parameters, buffers):
            return torch.func.functional_call(shape, (parameters, buffers), (IMAGE,))

        outputs = torch.vmap(one)(*stacked)
        for output, model in zip(outputs, models, strict=True):
            torch.testing.assert_close(output, model(IMAGE), atol=1e-4, rtol=1e-3)
