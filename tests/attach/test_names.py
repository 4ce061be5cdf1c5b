"""Parameters, buffers and the state dict have one set of names, the plain network's and `.cbam.`."""

import copy
import pickle

import accelerate
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import cbam
from cbam.attach import WithAttention
from cbam.attach.names import HostName
from cbam.errors import CBAMError
from tests.attach.networks import Block, Net, resnet

IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NESTED = ["auto", "layer2", "layer2.0"]


def attached(seed=0, sites="auto"):
    model = resnet(seed)
    cbam.attach(model, init="paper", sites=sites, input_size=32)
    return model.eval()


def small(seed=0, attach=True):
    torch.manual_seed(seed)
    model = Net(Block(8))
    if attach:
        cbam.attach(model, init="paper", input_size=16)
    return model.eval()


def tensors(model, **how):
    return {**dict(model.named_parameters(**how)), **dict(model.named_buffers(**how))}


@pytest.mark.parametrize("sites", ["auto", NESTED], ids=["norms", "nested"])
class TestOneSetOfNames:
    def test_in_all_lists(self, sites):
        plain, model = resnet(), attached(sites=sites)
        state = model.state_dict()
        names = tensors(model)
        assert set(names) == set(state)
        assert all(names[key].data_ptr() == tensor.data_ptr() for key, tensor in state.items())
        assert [key for key in state if ".cbam." not in key] == list(plain.state_dict())
        assert [n for n, _ in model.named_parameters() if ".cbam." not in n] == [
            n for n, _ in plain.named_parameters()
        ]

    def test_each_tensor_is_listed_once(self, sites):
        model = attached(sites=sites)
        every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        assert every == [name for name, _ in model.named_parameters()]
        alone = [p for m in model.modules() for p in m.parameters(recurse=False)]
        assert len(alone) == len(set(alone)) == len(every)

    def test_a_name_leads_to_its_tensor(self, sites):
        model = attached(sites=sites)
        for name, parameter in model.named_parameters():
            assert model.get_parameter(name) is parameter
        for name, buffer in model.named_buffers():
            assert model.get_buffer(name) is buffer
        for name, module in model.named_modules():
            assert model.get_submodule(name) is module

    @pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_have_the_same_and_their_own(self, sites, how):
        model = attached(sites=sites)
        clone = how(model)
        assert list(tensors(clone)) == list(tensors(model))
        parts = clone.layer1[0].bn2
        assert parts._parameters["weight"] is parts.host.weight
        assert parts.host.weight is not model.layer1[0].bn2.host.weight
        assert parts._buffers["running_var"] is parts.host.running_var

    def test_names_with_host_still_load(self, sites):
        """As files of named_parameters() once had them."""
        model, other = attached(0, sites), attached(1, sites)
        old = {}
        for name, tensor in other.state_dict().items():
            parts, path = [], other
            for part in name.split("."):
                if isinstance(path, WithAttention) and part != "cbam":
                    parts, path = [*parts, "host"], path.host
                parts, path = [*parts, part], getattr(path, part)
            old[".".join(parts)] = tensor
        assert any(".host." in name for name in old)
        model.load_state_dict(old)
        assert torch.equal(model(IMAGE), other(IMAGE))


class TestWhatGoesByNames:
    @pytest.mark.parametrize("device_map", [{"": "cpu"}, {"stem": "cpu", "blocks": "cpu", "fc": "cpu"}])
    def test_accelerate(self, tmp_path, device_map):
        source = small(1)
        torch.save(source.state_dict(), tmp_path / "weights.bin")
        with accelerate.init_empty_weights():
            empty = copy.deepcopy(source).to("meta")
        model = accelerate.load_checkpoint_and_dispatch(
            empty, str(tmp_path / "weights.bin"), device_map=device_map
        )
        assert not any(tensor.is_meta for tensor in tensors(model).values())
        image = torch.rand(2, 3, 16, 16)
        assert torch.equal(model(image), source(image))
        assert {name: t.shape for name, t in tensors(model).items()} == {
            name: t.shape for name, t in source.state_dict().items()
        }

    def test_attention_for_an_empty_model_of_accelerate(self, tmp_path):
        source = small(1)
        torch.save(source.state_dict(), tmp_path / "weights.bin")
        with accelerate.init_empty_weights():  # parameters on the meta device, buffers not
            empty = small(0, attach=False)
        devices = {name: tensor.device for name, tensor in tensors(empty).items()}
        cbam.attach(empty, init="paper", example_input=torch.rand(1, 3, 16, 16))
        assert {name: tensors(empty)[name].device for name in devices} == devices
        assert len(set(devices.values())) == 2
        model = accelerate.load_checkpoint_and_dispatch(
            empty, str(tmp_path / "weights.bin"), device_map={"": "cpu"}
        )
        image = torch.rand(2, 3, 16, 16)
        assert torch.equal(model(image), source(image))

    def test_an_average_of_weights_by_name(self):
        model, state = small(0), small(1).state_dict()
        for name, parameter in model.named_parameters():
            parameter.data.lerp_(state[name], 1.0)
        for name, buffer in model.named_buffers():
            buffer.copy_(state[name])
        assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())

    def test_optimizers_that_keep_names(self):
        model = small()
        names = torch.optim.SGD(model.named_parameters(), lr=0.1).state_dict()["param_groups"][0][
            "param_names"
        ]
        assert names == [name for name in model.state_dict() if name in dict(model.named_parameters())]

    def test_groups_by_the_type_of_the_module(self):
        """As torchvision's and ultralytics' recipes make them: each parameter is in one group, norms in theirs."""
        model, norms, others = small(), [], []
        for name, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                assert model.get_parameter(name + "." + key if name else key) is parameter
                (norms if isinstance(module, nn.BatchNorm2d) else others).append(parameter)
        assert {id(p) for p in norms} == {
            id(p) for n, p in model.named_parameters() if ".bn2." in n and "cbam" not in n
        }
        assert len(norms) + len(others) == len(list(model.parameters()))

    def test_setting_a_tensor_by_name(self):
        model = small()
        parent = model.get_submodule("blocks.0.bn2")
        new = nn.Parameter(torch.full((8,), 3.0))
        parent._parameters["weight"] = new
        assert parent.host.weight is new
        parent.host.weight = old = nn.Parameter(torch.ones(8))
        assert parent._parameters["weight"] is old
        parent.host = nn.Identity()
        assert "weight" not in parent._parameters

    def test_setting_a_module_by_name(self):
        model = attached(sites="layer2.0")
        model.set_submodule("layer2.0.conv1", nn.Conv2d(64, 128, 1, stride=2))
        assert model.layer2[0].host.conv1.kernel_size == (1, 1)
        assert model.state_dict()["layer2.0.conv1.weight"].shape[-1] == 1

    def test_buffers_that_a_profiler_registers_everywhere(self):
        """As thop does; they are on each module, and go again."""
        model = small()
        model.apply(lambda m: m.register_buffer("total_ops", torch.zeros(1)))
        assert "blocks.0.bn2.total_ops" in model.state_dict()
        copied = copy.deepcopy(model)
        model.blocks[0].bn2.host._buffers.pop("total_ops")
        assert "total_ops" not in model.blocks[0].bn2._buffers
        assert "total_ops" in copied.blocks[0].bn2._buffers

    def test_what_a_load_reports(self):
        model = attached(sites=NESTED)
        state = {k: v for k, v in model.state_dict().items() if k != "layer2.0.bn2.weight"}
        report = model.load_state_dict({**state, "layer1.0.bn2.other": torch.zeros(1)}, strict=False)
        assert report.missing_keys == ["layer2.0.bn2.weight"]
        assert report.unexpected_keys == ["layer1.0.bn2.other"]
        with pytest.raises(RuntimeError, match=r"size mismatch for layer1.0.bn2.weight:"):
            model.load_state_dict({**model.state_dict(), "layer1.0.bn2.weight": torch.zeros(3)})


class TestParametrisations:
    def test_of_the_host(self):
        model = small()
        bn, before = model.blocks[0].bn2, model(IMAGE)
        parametrize.register_parametrization(bn.host, "weight", nn.Identity())
        assert "blocks.0.bn2.parametrizations.weight.original" in dict(model.named_parameters())
        assert torch.equal(model(IMAGE), before)
        parametrize.remove_parametrizations(bn.host, "weight")
        prune.l1_unstructured(bn.host, "weight", 0.5)
        assert not torch.equal(model(IMAGE), before)
        assert {"blocks.0.bn2.weight_orig", "blocks.0.bn2.weight_mask"} <= set(model.state_dict())

    @pytest.mark.parametrize(
        "how",
        [
            lambda m: parametrize.register_parametrization(m, "weight", nn.Identity()),
            lambda m: parametrizations.weight_norm(m, "weight"),
            lambda m: prune.l1_unstructured(m, "weight", 0.5),
        ],
        ids=["parametrize", "weight_norm", "prune"],
    )
    def test_of_the_wrapper_are_refused_and_change_nothing(self, how):
        model = small()
        before, keys = model(IMAGE), list(model.state_dict())
        with pytest.raises(CBAMError, match=r"'weight' is a tensor of the module in front.*pass m\.host"):
            how(model.blocks[0].bn2)
        assert list(model.state_dict()) == keys
        assert type(model.blocks[0].bn2) is WithAttention
        assert torch.equal(model(IMAGE), before)


def test_the_name_of_a_host():
    name = HostName("layer1.0.bn2.host")
    assert name == "layer1.0.bn2.host"
    assert {name: 1}["layer1.0.bn2.host"]
    assert name + "." + "weight" == name + ".weight" == "layer1.0.bn2.weight"
    assert name + "s" == "layer1.0.bn2.hosts"
    assert HostName("host") + "." + "weight" == "weight"
    assert type(pickle.loads(pickle.dumps(name))) is type(copy.deepcopy(name)) is str
