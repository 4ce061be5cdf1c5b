"""Weights from files: what fits is loaded, what does not is named, nothing is half done."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cbam.attach import attach
from cbam.checkpoints.converting import convert
from cbam.errors import CBAMError
from cbam.models import build_model
from cbam.models.files import adapt_channels, load_backbone, widen_input


@pytest.fixture
def source():
    torch.manual_seed(2)
    return build_model("resnet20", 10).eval()


IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


@pytest.mark.parametrize("form", ["safetensors", "pth", "state_dict", "module", "compiled", "no counters"])
def test_forms_of_files(source, tmp_path, form):
    state = source.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        content = {
            "pth": state,
            "state_dict": {"state_dict": state, "epoch": 3},
            "module": {f"module.{key}": value for key, value in state.items()},
            "compiled": {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
            "no counters": {key: value for key, value in state.items() if "num_batches" not in key},
        }[form]
        torch.save(content, path)
    model = build_model("resnet20", 10, weights=path).eval()
    assert torch.equal(model(IMAGES), source(IMAGES))


def test_another_number_of_classes_keeps_the_fresh_classifier(source, tmp_path, caplog):
    path = tmp_path / "w.safetensors"
    save_file(source.state_dict(), path)
    model = build_model("resnet20", 4)
    fresh = model.fc.weight.clone()
    with caplog.at_level(logging.INFO, logger="cbam"):
        report = load_backbone(model, path)
    assert len(report.loaded) == len(source.state_dict()) - 2
    assert report.notes == ("the classifier is newly initialised (fc.weight, fc.bias)",)
    assert torch.equal(model.fc.weight, fresh)
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    assert (
        f"{len(report.loaded)} tensors loaded\nnote: the classifier is newly initialised (fc.weight, fc.bias)"
        in caplog.text
    )


def test_grey_images_see_what_rgb_saw(source, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    model = build_model("resnet20", 10, in_channels=1)
    assert load_backbone(model, path).notes == ("conv1 adapted to other input channels",)
    grey = IMAGES[:, :1]
    torch.testing.assert_close(
        model.eval()(grey),
        source(grey.expand(-1, 3, -1, -1)),
        rtol=1e-4,
        atol=1e-4 * float(source(IMAGES).detach().abs().max()),
    )


def test_channels_are_repeated_and_scaled():
    weight = torch.arange(6.0).reshape(2, 3, 1, 1)
    assert adapt_channels(weight, 1).flatten().tolist() == [3.0, 12.0]
    assert adapt_channels(weight, 5)[0].flatten().tolist() == pytest.approx([0, 0.6, 1.2, 0, 0.6])
    same = torch.ones(1, 5, 4, 4)
    assert float((same * adapt_channels(torch.ones(1, 3, 4, 4), 5)).sum()) == pytest.approx(48)


def test_another_architecture_is_refused_and_nothing_changes(source, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    model = build_model("resnet32", 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        CBAMError, match=r"does not fit CifarResNet: 60 missing \(layer1\.3\.conv1\.weight, .*, \.\.\.\)"
    ):
        load_backbone(model, path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_weights_with_attention_are_not_taken_for_a_plain_network(source, tmp_path):
    attach(source)
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    with pytest.raises(
        CBAMError, match=r"9 blocks of CBAM \(cbam\), and the model has no attention\. Attach it first"
    ):
        build_model("resnet20", 10, weights=path)


def test_fresh_gates_are_not_put_into_trained_weights(source, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    with pytest.raises(
        CBAMError, match=r"fresh gates of 'resnet20_cbam' would spoil .*Build 'resnet20' with it"
    ):
        build_model("resnet20_cbam", 10, weights=path)


def test_another_checkpoint_format_is_converted(tmp_path):
    """The names of timm, whose kernels read [mean, max]; the network's read [max, mean]."""
    torch.manual_seed(3)
    trained = build_model("resnet20_cbam", 10).eval()
    convert(trained.state_dict(), tmp_path / "timm.pth", to="timm", descriptor_order="max-avg")
    model = build_model("resnet20_cbam", 10, weights=tmp_path / "timm.pth").eval()
    assert torch.equal(model(IMAGES), trained(IMAGES))


def test_other_shapes_are_named(source, tmp_path):
    state = source.state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(17, 16, 3, 3)
    path = tmp_path / "w.pth"
    torch.save(state, path)
    with pytest.raises(
        CBAMError, match=r"layer1\.0\.conv1\.weight is \(17, 16, 3, 3\), needs \(16, 16, 3, 3\)"
    ):
        build_model("resnet20", 10, weights=path)


def test_unreadable_files(source, tmp_path):
    with pytest.raises(CBAMError, match=r"no weights file at .*absent\.pth"):
        build_model("resnet20", 10, weights=tmp_path / "absent.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(CBAMError, match=f"cannot read .*{name}"):
            build_model("resnet20", 10, weights=tmp_path / name)
    torch.save(source, tmp_path / "pickled.pth")
    with pytest.raises(CBAMError, match=r"cannot read .*pickled\.pth.*not a pickled model"):
        build_model("resnet20", 10, weights=tmp_path / "pickled.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CBAMError, match=r"holds no state dict .* but list"):
        build_model("resnet20", 10, weights=tmp_path / "list.pth")


def test_a_model_without_a_first_convolution():
    with pytest.raises(CBAMError, match="no plain first convolution to adapt to 1 channels"):
        widen_input(nn.Linear(3, 3), 1, keep=True)


def test_weights_with_attention_load_after_attach(source, tmp_path):
    attach(source, init="paper")
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    model = build_model("resnet20", 10)
    attach(model)
    load_backbone(model, path)
    assert torch.equal(model.eval()(IMAGES), source(IMAGES))
