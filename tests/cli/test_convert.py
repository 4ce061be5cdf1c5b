"""`cbam convert`, as it is typed."""

import pytest
import torch

from cbam import attach, load_weights
from cbam.cli.main import main
from cbam.models import build_model
from tests.checkpoints import peers

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def theirs(tmp_path):
    """A ResNet-20 with the authors' module in every block, and its file."""
    model = build_model("resnet20", 10)
    attach(model, preset="official", input_size=(3, 32, 32), init="paper")
    peers.shaken(model, 1)
    state = {}
    names = {
        "channel_attention.mlp.0": "ChannelGate.mlp.1", "channel_attention.mlp.2": "ChannelGate.mlp.3",
        "spatial_attention.conv": "SpatialGate.spatial.conv", "spatial_attention.norm": "SpatialGate.spatial.bn",
    }  # fmt: skip
    for key, value in model.state_dict().items():
        site, dot, inside = key.partition(".bn2.cbam.")
        for ours, other in names.items():
            if dot and inside.startswith(ours):
                key = f"{site}.cbam.{other}{inside.removeprefix(ours)}"
                value = value.flatten(1) if "mlp" in inside and "weight" in inside else value
        state[f"module.{key}"] = value
    torch.save({"state_dict": state}, tmp_path / "authors.pth")
    return model, tmp_path


@pytest.mark.parametrize("out", ["ours.safetensors", "ours.pth"])
def test_into_the_names_of_a_model(theirs, capsys, out):
    model, folder = theirs
    assert main(["convert", f"{folder}/authors.pth", f"{folder}/{out}", "--model", "resnet20"]) == 0
    printed = capsys.readouterr().out
    assert "format official" in printed
    assert "layer3.2.cbam" in printed
    assert "cbam.attach(model, preset='official', descriptor_order='max-avg')" in printed
    fresh = build_model("resnet20", 10)
    attach(fresh, preset="official", input_size=(3, 32, 32), descriptor_order="avg-max")
    load_weights(fresh, folder / out)
    torch.testing.assert_close(fresh.eval()(IMAGES), model(IMAGES))


def test_from_format_to_format(theirs, capsys):
    _, folder = theirs
    assert (
        main(["convert", f"{folder}/authors.pth", f"{folder}/t.pth", "--to", "timm", "--from", "official"])
        == 0
    )
    assert "official to timm" in capsys.readouterr().out
    assert "layer1.0.se.channel.fc1.bias" in torch.load(folder / "t.pth", weights_only=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "luuuyi"], "luuuyi's has none"),
        (["--model", "resnet32"], "does not fit CifarResNet: "),
        (["--model", "resnet20", "--to", "timm"], "Leave out --to"),
        (["--to", "tim"], "Did you mean 'timm'?"),
        (["--num-classes", "5"], "--num-classes has no effect without --model"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_no_file(theirs, arguments, message, capsys):
    _, folder = theirs
    assert main(["convert", f"{folder}/authors.pth", f"{folder}/out.safetensors", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cbam: ")
    assert message in said
    assert not (folder / "out.safetensors").exists()


def test_a_file_that_does_not_fit_names_what_can_be_typed(theirs, capsys):
    _, folder = theirs
    files = [f"{folder}/authors.pth", f"{folder}/out.safetensors"]
    assert main(["convert", *files, "--model", "resnet20", "--num-classes", "5"]) == 2
    said = capsys.readouterr().err
    assert "fc.weight" in said
    assert "pass partial=True" not in said
    assert "In Python, cbam.load_weights(model, file, partial=True) loads what fits." in said
