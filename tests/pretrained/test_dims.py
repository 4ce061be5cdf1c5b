"""Saved attention of signals, volumes and video: the description says which, and no other network takes it."""

import json

import pytest
import torch
from torch import nn

import cbam
from cbam.errors import CBAMError
from tests.attach.networks import move_gates
from tests.attach.test_dims import SIZE, ResNet

every_dims = pytest.mark.parametrize("dims", [1, 3])
every_kind = pytest.mark.parametrize("attention", ["cbam", "se", "spatial", "eca"])


def attended(dims, attention="cbam", **options):
    model = ResNet(dims).eval()
    cbam.attach(model, attention, input_size=SIZE[dims], **options)
    return move_gates(model)


@every_dims
@every_kind
@pytest.mark.parametrize("only", [False, True], ids=["full", "attention only"])
def test_from_a_folder(dims, attention, only, tmp_path):
    model, x = attended(dims, attention), torch.rand(2, *SIZE[dims])
    folder = cbam.save_pretrained(model, tmp_path / "saved", attention_only=only, input_size=SIZE[dims])
    (group,) = json.loads((tmp_path / "saved" / "config.json").read_text())["attention"]
    assert group["options"]["dims"] == dims
    again = cbam.from_pretrained(folder, ResNet(dims)).eval()
    assert torch.equal(again(x), model(x))


@every_dims
def test_a_folder_for_another_network(dims, tmp_path):
    folder = cbam.save_pretrained(attended(dims), tmp_path / "saved")
    other = ResNet(2)
    with pytest.raises(
        CBAMError, match=rf"'blocks.0.bn2' is for maps .* for \(N, C, H, W\). Build the network of {dims}"
    ):
        cbam.from_pretrained(folder, other)
    assert type(other.blocks[0].bn2) is nn.BatchNorm2d


def test_images_say_nothing_new(tmp_path):
    cbam.save_pretrained(attended(2), tmp_path / "saved")
    (group,) = json.loads((tmp_path / "saved" / "config.json").read_text())["attention"]
    assert "dims" not in group["options"]


@pytest.mark.parametrize(("dims", "kernel"), [(4, 7), ("3", 7), (True, 7), (3, 999)])
def test_hostile_numbers(dims, kernel, tmp_path):
    cbam.save_pretrained(attended(3), tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    said = json.loads(file.read_text())
    said["attention"][0]["options"].update(dims=dims, kernel_size=kernel)
    file.write_text(json.dumps(said))
    with pytest.raises(CBAMError, match=r"dims|kernel_size"):
        cbam.from_pretrained(tmp_path / "saved", ResNet(3))


@every_dims
def test_input_size_has_as_many_numbers(dims, tmp_path):
    with pytest.raises(CBAMError, match=r"input_size.*(two|four) numbers"):
        cbam.save_pretrained(attended(dims), tmp_path / "saved", input_size=(2, 8, 8))


class TestWeights:
    @every_dims
    @pytest.mark.parametrize("preset", ["paper", "official"])
    def test_load(self, dims, preset):
        model, other, x = (
            attended(dims, preset=preset),
            attended(dims, preset=preset),
            torch.rand(2, *SIZE[dims]),
        )
        move_gates(model)
        assert not torch.equal(other(x), model(x))
        report = cbam.load_weights(other, model.state_dict())
        assert len(report.blocks) == 2
        assert torch.equal(other(x), model(x))

    @every_dims
    @pytest.mark.parametrize("arrangement", ["channel-spatial", "channel"])
    def test_other_forms_are_converted(self, dims, arrangement):
        """From maximum first to average first, with biases of zero dropped."""
        model = attended(dims, arrangement=arrangement, mlp_bias=True)
        other, x = attended(dims, arrangement=arrangement), torch.rand(2, *SIZE[dims])
        with torch.no_grad():
            for name, p in model.named_parameters():
                if ".cbam." in name and name.endswith("bias"):
                    p.zero_()
        cbam.load_weights(other, model.state_dict(), adapt=True)
        torch.testing.assert_close(other(x), model(x))

    def test_of_other_dimensions(self):
        model = nn.Sequential(cbam.CBAM(8, dims=3))
        before = {k: v.clone() for k, v in model.state_dict().items()}
        message = r"the file's block is for maps \(N, C, H, W\), the site for \(N, C, D, H, W\)"
        with pytest.raises(CBAMError, match=message):
            cbam.load_weights(model, nn.Sequential(cbam.CBAM(8)).state_dict())
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_the_authors_channel_gate_fits_any(self):
        linear = {
            "ChannelGate.mlp.1.weight": torch.randn(2, 8), "ChannelGate.mlp.1.bias": torch.randn(2),
            "ChannelGate.mlp.3.weight": torch.randn(8, 2), "ChannelGate.mlp.3.bias": torch.randn(8),
        }  # fmt: skip
        x, found = torch.rand(2, 8, 4, 6, 6), []
        for dims, map_ in ((3, x), (2, x.flatten(2, 3))):
            block = cbam.CBAM(8, 4, dims=dims, preset="official", arrangement="channel")
            cbam.load_weights(block, linear)
            found.append(block(map_).flatten())
        torch.testing.assert_close(*found)
