"""Files of one format as files of another: names of whole networks, what is said beside the tensors, refusals."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cbam import CBAMError, fold_gate_scale, load_weights
from cbam.checkpoints.backbones import from_pytorchcv
from cbam.checkpoints.converting import convert
from tests.checkpoints import networks, peers
from tests.checkpoints.networks import attached, image, with_peer


@pytest.fixture
def authors(tmp_path):
    """A network of the authors' format, and its file as they wrote it."""
    theirs = with_peer(lambda c: {"cbam": peers.Official(c)})
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save(
        {"state_dict": state, "epoch": -1}, tmp_path / "authors.pth", _use_new_zipfile_serialization=False
    )
    return theirs, tmp_path / "authors.pth"


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_network_for_timm(authors, tmp_path):
    """Into timm's place, `.se`, for timm's real module."""
    theirs, path = authors
    report = convert(path, tmp_path / "timm.safetensors", "timm")
    target = with_peer(lambda c: {"se": peers.timm_cbam(c, mlp_bias=True)}, seed=5)
    target.load_state_dict(load_file(tmp_path / "timm.safetensors"), strict=True)
    close(target(image()), theirs(image()))
    assert report.blocks[0].target == "layer1.0.se"
    assert "kernel planes swapped" in str(report)


def test_a_network_for_pytorchcv_and_back(authors, tmp_path):
    theirs, path = authors
    convert(path, tmp_path / "cv.pth", "pytorchcv")
    state = torch.load(tmp_path / "cv.pth", weights_only=True)
    assert all(key.startswith(("features.", "output.")) for key in state)
    assert {from_pytorchcv(k) for k in state if "gate" not in k} <= theirs.state_dict().keys()
    convert(tmp_path / "cv.pth", tmp_path / "back.pth", "official")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in theirs.state_dict().items())


def test_ours_says_its_order(authors, tmp_path):
    """One file, models that read it in either order."""
    theirs, path = authors
    report = convert(path, tmp_path / "ours.safetensors")
    assert "cbam.attach(model, preset='official')" in str(report)
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        said = json.loads(file.metadata()["cbam.switches"])
    assert said["layer1.0.cbam.spatial_attention"]["descriptor_order"] == "max-avg"
    for order in ("max-avg", "avg-max"):
        model = attached(preset="official", descriptor_order=order)
        load_weights(model, tmp_path / "ours.safetensors")
        close(model(image()), theirs(image()))
    convert(tmp_path / "ours.safetensors", tmp_path / "timm.safetensors", "timm")
    target = with_peer(lambda c: {"se": peers.timm_cbam(c, mlp_bias=True)}, seed=5)
    target.load_state_dict(load_file(tmp_path / "timm.safetensors"), strict=True)
    close(target(image()), theirs(image()))


def test_attached_attention_for_other_code(tmp_path):
    """`layer1.0.bn2.cbam` hangs on a norm; the authors' network has it as `layer1.0.cbam`."""
    model = attached(preset="official")
    peers.shaken(model, 6)
    for module in model.modules():
        if hasattr(module, "gate_scale"):
            module.set_gate_scale(1.0)  # the norm of the official form has no divisor
    torch.save(model.state_dict(), tmp_path / "ours.pth")
    convert(tmp_path / "ours.pth", tmp_path / "authors.pth", "official")
    target = with_peer(lambda c: {"cbam": peers.Official(c)}, seed=5)
    target.load_state_dict(torch.load(tmp_path / "authors.pth", weights_only=True), strict=True)
    close(target(image()), model(image()))


def test_doubled_gates_are_folded_first(tmp_path):
    model = attached()
    with pytest.raises(CBAMError, match=r"gates of 2 sigmoid\(z / 32\).*cbam\.fold_gate_scale"):
        convert(model.state_dict(), tmp_path / "out.pth", "luuuyi")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "spatial_attention" in name:
                parameter.normal_()
    before = model(image())
    fold_gate_scale(model)
    close(model(image()), before)
    report = convert(dict(model.state_dict()), tmp_path / "out.pth", "luuuyi")
    assert any("assumed to read [mean, max]" in note for note in report.notes)
    target = with_peer(lambda c: {n: getattr(peers.Luuuyi(c), n) for n in ("ca", "sa")})
    target.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=True)
    close(target(image()), model(image()))


def test_refusals_write_nothing(authors, tmp_path):
    _, path = authors
    out = tmp_path / "out.pth"
    for arguments, message in [
        (("luuuyi",), "has biases|would need a bias"),
        (("tim",), "Did you mean 'timm'"),
        (("timm", "luuuyi"), "no block of the format 'luuuyi'"),
    ]:
        with pytest.raises(CBAMError, match=message):
            convert(path, out, *arguments)
    with pytest.raises(CBAMError, match=r"unknown kind of file '\.txt'"):
        convert(path, tmp_path / "out.txt")
    with pytest.raises(CBAMError, match="holds no block of CBAM, so there is nothing to convert"):
        convert(networks.plain().state_dict(), out, "timm")
    with pytest.raises(CBAMError, match=r"networks are ResNets; 'head\.weight' is no name in one"):
        convert({"head.weight": torch.zeros(2), **peers.Official(32).state_dict()}, out, "pytorchcv")
    with pytest.raises(CBAMError, match="unknown descriptor_order"):
        convert(attached(preset="official").state_dict(), out, "timm", descriptor_order="max")
    assert [p.name for p in tmp_path.iterdir()] == ["authors.pth"]
