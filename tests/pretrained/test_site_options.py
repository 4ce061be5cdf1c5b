"""Networks with other attention at some of their sites, saved and loaded."""

import pytest
import torch

import cbam
from cbam.checkpoints.converting import convert
from cbam.models import build_model
from cbam.pretrained.describe import describe_attention

IMAGE = torch.rand(2, 3, 32, 32)
SITES = {
    "residual": {},
    "layer2.*.bn2": {"attention": "se", "reduction_ratio": 5},
    "layer3.0.bn2": {"reduction_ratio": 3, "preset": "official"},
    "layer3.1.bn2": {"attention": "spatial", "kernel_size": 3},
    "head": {"attention": "channel", "reduction_ratio": 7},
}


def attached(seed=0):
    torch.manual_seed(seed)
    model = build_model("resnet20", 10)
    cbam.attach(model, sites=SITES, init="paper", input_size=(3, 32, 32))
    return model.eval()


def hidden(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items() if ".cbam." in key}


@pytest.mark.parametrize("content", ["full", "attention"])
def test_a_folder_gives_every_site_back(content, tmp_path):
    model = attached()
    folder = cbam.save_pretrained(model, tmp_path, "resnet20", attention_only=content == "attention")
    base = None
    if content == "attention":
        base = build_model("resnet20", 10)
        base.load_state_dict({key: v for key, v in model.state_dict().items() if ".cbam." not in key})
    same = cbam.from_pretrained(folder, base)
    assert torch.equal(same(IMAGE), model(IMAGE))
    assert hidden(same) == hidden(model)
    assert len(describe_attention(model)) == len({repr(setting) for setting in SITES.values()})


def test_load_weights_into_the_same_sites(tmp_path):
    model, other = attached(), attached(seed=1)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    cbam.load_weights(other, tmp_path / "weights.pth")
    assert torch.equal(other(IMAGE), model(IMAGE))


def test_plain_gates_that_read_their_maps_in_different_orders(tmp_path):
    """Nothing in the weights tells these two apart: the file says that each site reads its own way."""
    torch.manual_seed(0)
    model = build_model("resnet20", 10)
    sites = {"layer1.*.bn2": {}, "layer2.*.bn2": {"descriptor_order": "max-avg"}}
    cbam.attach(model, sites=sites, init="paper", input_size=(3, 32, 32))
    folder = cbam.save_pretrained(model, tmp_path, "resnet20")
    assert torch.equal(cbam.from_pretrained(folder)(IMAGE), model.eval()(IMAGE))
    convert(folder / "model.safetensors", tmp_path / "again.pth", "cbam")
    again = build_model("resnet20", 10)
    cbam.attach(again, sites=sites, input_size=(3, 32, 32))
    cbam.load_weights(again, tmp_path / "again.pth")
    assert torch.equal(again.eval()(IMAGE), model(IMAGE))
