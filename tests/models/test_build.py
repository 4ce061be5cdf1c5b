"""From names to classifiers, with and without weights, all without a network."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from cbam.errors import CBAMError
from cbam.models import build_model, model_names


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("resnet20", "cbam.models.cifar", 32),
        ("resnet110", "cbam.models.cifar", 32),
        ("resnet18", "torchvision", 64),
        ("paper_resnet18", "cbam.models.paper_resnet", 64),
        ("torchvision/squeezenet1_1", "torchvision", 64),
        ("mobilenet_v3_small", "torchvision", 64),
        ("timm/resnet18", "timm", 64),
        ("tf_efficientnet_lite0", "timm", 64),
        ("resnet18.a1_in1k", "timm", 64),
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_names_channels_and_classes(name, kind, size, channels):
    model = build_model(name, 7, in_channels=channels).train()
    assert type(model).__module__.startswith(kind)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_training_outputs_are_one_tensor():
    model = build_model("inception_v3", 7, in_channels=1).train()
    assert model(torch.zeros(2, 1, 96, 96)).shape == (2, 7)


def test_the_paper_s_resnet_differs_from_torchvision_s_in_the_stride_alone():
    paper, vision = build_model("paper_resnet50", 10), build_model("resnet50", 10)
    paper.load_state_dict(vision.state_dict())
    block, other = paper.layer2[0], vision.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert (other.conv1.stride, other.conv2.stride) == ((1, 1), (2, 2))
    for stage in (2, 3, 4):
        for number, block in enumerate(getattr(paper, f"layer{stage}")):
            assert block.conv1.stride == ((2, 2) if number == 0 else (1, 1))
    images = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(paper.eval()(images), vision.eval()(images))


def test_basic_blocks_of_the_paper_s_resnets_are_torchvision_s():
    paper, vision = build_model("paper_resnet18", 10).eval(), build_model("resnet18", 10).eval()
    paper.load_state_dict(vision.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(paper(images), vision(images))


def test_the_same_seed_gives_the_same_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(build_model("resnet18", 10, in_channels=1).state_dict())
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


def test_a_fresh_first_convolution_keeps_its_spread():
    torch.manual_seed(0)
    conv = build_model("resnet18", 10, in_channels=1).conv1
    assert conv.weight.shape == (64, 1, 7, 7)
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet21", "unknown model 'resnet21'. Did you mean .*'resnet20'"),
        ("ResNet50x", "Did you mean .*'resnet50'"),
        (
            "torchvision/resnet20",
            "unknown model .*Did you mean .*'torchvision/resnet50'|'torchvision/resnet101'",
        ),
        ("timm/resnet49", "Did you mean .*'timm/resnet"),
        ("keras/resnet50", "unknown library 'keras'.*torchvision/NAME, timm/NAME"),
        ("zzzzqqq", "unknown model 'zzzzqqq'. Valid: resnet20"),
        ("", "unknown model ''"),
        ("resnet18.nope", "no weights 'nope'. Valid: .*resnet18.a1_in1k"),
    ],
)
def test_unknown_names_point_at_the_nearest(name, message):
    with pytest.raises(CBAMError, match=message):
        build_model(name, 10)


def test_all_names_are_listed():
    names = model_names()
    assert {"resnet20", "paper_resnet50", "torchvision/resnet18", "timm/resnet18"} <= set(names)
    assert len(names) == len(set(names)) > 1000


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"num_classes": 3, "in_channels": 0}])
def test_impossible_counts(arguments):
    with pytest.raises(CBAMError, match="must be at least 1"):
        build_model("resnet18", **arguments)


@pytest.mark.parametrize("name", ["resnet20", "paper_resnet50"])
def test_our_own_models_have_no_pretrained_weights(name):
    with pytest.raises(CBAMError, match=r"without pretrained weights.*--weights FILE"):
        build_model(name, 10, pretrained=True)


def test_timm_architectures_without_weights_say_so():
    with pytest.raises(CBAMError, match=r"no pretrained weights for 'seresnet18'.*--weights FILE"):
        build_model("timm/seresnet18", 10, pretrained=True)


def test_pretrained_and_a_file_exclude_each_other():
    with pytest.raises(CBAMError, match="either pretrained or weights"):
        build_model("resnet18", 10, pretrained=True, weights=Path("x.pth"))


def test_torchvision_without_a_network(tmp_path, monkeypatch):
    def no_network(*_args, **_kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(CBAMError, match=r"torchvision/resnet18 .*no network here.*--weights FILE"):
        build_model("resnet18", 10, pretrained=True)


def test_timm_without_a_network(tmp_path, monkeypatch):
    # tests/conftest.py sets HF_HUB_OFFLINE before the hub is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CBAMError, match=r"weights of timm/resnet18.*--weights FILE"):
        build_model("timm/resnet18", 10, pretrained=True)


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A resnet18 checkpoint where torchvision keeps the one that it has downloaded."""
    torch.manual_seed(1)
    model = torchvision.models.resnet18()
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(model.state_dict(), file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return model.eval()


def test_pretrained_torchvision_keeps_everything_where_it_fits(downloaded):
    model = build_model("resnet18", 1000, pretrained=True).eval()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(images), downloaded(images))


def test_pretrained_torchvision_with_grey_images_and_other_classes(downloaded):
    model = build_model("resnet18", 10, in_channels=1, pretrained=True).eval()
    grey = torch.rand(2, 1, 64, 64)
    assert model(grey).shape == (2, 10)
    model.fc = downloaded.fc = nn.Identity()
    torch.testing.assert_close(model(grey), downloaded(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
