"""Networks with attached attention in torchcam, pytorch-grad-cam and captum, as their users call them."""

from __future__ import annotations

import pytest
import pytorch_grad_cam
import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from tests.attach.networks import Block, Net, resnet
from torchcam import methods

import cbam

# A block, a site, the wrapped norm, and the attention itself.
LAYERS = ("blocks.1", "blocks.1.bn2", "blocks.1.bn2.host", "blocks.1.bn2.cbam")
CLASS = 1


def network():
    """A small network without operations in place, of which these libraries see the later values."""
    torch.manual_seed(3)
    found = Net(*(Block(8, "norm") for _ in range(2)))
    for module in found.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return found.eval()


@pytest.fixture(params=["identity", "paper"])
def networks(request):
    """A plain network, and one with attention, in evaluation mode."""
    plain, attended = network(), network()
    cbam.attach(attended, init=request.param, input_size=(3, 12, 12))
    return plain, attended, request.param


@pytest.fixture
def images():
    return torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def in_plain(layer):
    return layer.removesuffix(".host").removesuffix(".cbam")


def state(network):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        (name, type(module), module.training, [len(getattr(module, hook)) for hook in hooks])
        for name, module in network.named_modules()
    ]


def compare(networks, layer, compute):
    """At identity the maps are those of the plain network; fresh gates give others. Nothing is left behind."""
    plain, attended, init = networks
    before = state(attended)
    expected, found = compute(plain, in_plain(layer)), compute(attended, layer)
    assert found.shape == expected.shape
    assert found.abs().max() > 0
    assert bool(torch.allclose(found, expected, rtol=1e-4, atol=1e-5)) == (init == "identity")
    assert state(attended) == before


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM", "ScoreCAM"])
def test_torchcam(networks, images, layer, method):
    def compute(network, name):
        with getattr(methods, method)(network, name) as extractor:
            return extractor(CLASS, network(images))[0]

    compare(networks, layer, compute)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", ["GradCAM", "AblationCAM"])
def test_pytorch_grad_cam(networks, images, layer, method):
    def compute(network, name):
        with getattr(pytorch_grad_cam, method)(network, [network.get_submodule(name)]) as cam:
            return torch.from_numpy(cam(images, [ClassifierOutputTarget(CLASS)]))

    compare(networks, layer, compute)


@pytest.mark.parametrize("layer", LAYERS)
def test_captum(networks, images, layer):
    def compute(network, name):
        return LayerGradCam(network, network.get_submodule(name)).attribute(images, CLASS).detach()

    compare(networks, layer, compute)


@pytest.mark.parametrize("layer", ["layer3.1", "layer3.1.bn2"])
@pytest.mark.parametrize("init", ["identity", "paper"])
def test_a_resnet_whose_norm_and_addition_are_in_the_operator_s_call(layer, init):
    plain, attended = resnet().eval(), resnet().eval()
    cbam.attach(attended, init=init)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))

    def compute(network, name):
        with methods.GradCAM(network, name) as extractor:
            return extractor([2, 5], network(images), normalized=False)[0]

    compare((plain, attended, init), layer, compute)
