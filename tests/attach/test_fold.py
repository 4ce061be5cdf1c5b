"""Folding the identity start: the same bits, the paper's keys, nothing half done."""

import pytest
import torch

import cbam
from cbam.errors import CBAMError
from tests.attach.networks import Block, Net, resnet

IMAGE = torch.rand(2, 3, 64, 64)


def trained(**options):
    """An attached model whose gates are no longer zero."""
    model = resnet()
    cbam.attach(model, input_size=(3, 64, 64), **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".cbam." in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@pytest.mark.parametrize("options", [
    {}, {"preset": "official"}, {"preset": "timm"}, {"arrangement": "spatial-channel"}, {"arrangement": "parallel"},
    {"spatial_descriptor": "conv"}, {"attention": "se"}, {"attention": "channel"}, {"attention": "spatial"},
], ids=str)  # fmt: skip
def test_no_output_changes_by_a_bit(options):
    model = trained(**options)
    divides = any("variance" in key for key in model.state_dict())
    assert divides == (set(options.values()).isdisjoint({"official", "timm", "se", "channel"}))
    with torch.no_grad():
        before = model(IMAGE)
        assert cbam.fold_gate_scale(model) == 8
        assert torch.equal(model(IMAGE), before)
    assert not [key for key in model.state_dict() if key.endswith(("gate_scale", "variance"))]


def test_folded_weights_load_into_a_model_with_the_papers_gates():
    model, other = trained(), resnet(1)
    cbam.fold_gate_scale(model)
    cbam.attach(other, init="paper", input_size=(3, 64, 64))
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.eval()(IMAGE), model(IMAGE))


def test_nothing_to_fold():
    model = resnet()
    cbam.attach(model, init="paper", input_size=(3, 64, 64))
    with pytest.raises(CBAMError, match="nothing to fold"):
        cbam.fold_gate_scale(model)


def test_a_host_that_cannot_take_the_factor():
    model = Net(Block(8), Block(8, "scale, drop"))
    cbam.attach(model, input_size=(3, 8, 8))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CBAMError, match=r"site 'blocks.1.drop' cannot be folded: its host Dropout2d"):
        cbam.fold_gate_scale(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("weight", [30000.0, 1e-7], ids=["overflow", "lost bits"])
def test_what_does_not_fit_half_precision_is_refused_and_leaves_the_model(weight):
    model = resnet().half()
    cbam.attach(model, sites="layer4.1.bn2", input_size=(3, 64, 64))
    with torch.no_grad():
        model.layer4[1].bn2.host.weight.fill_(1.0)
        model.layer4[1].bn2.cbam.channel_attention.mlp[0].weight.fill_(0.5 if weight > 1 else weight)
        model.layer4[1].bn2.host.weight[3] = max(weight, 1.0)
        model.layer4[1].bn2.host.bias.zero_()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CBAMError, match=r"does not fit torch.float16. Fold in float32"):
        cbam.fold_gate_scale(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
