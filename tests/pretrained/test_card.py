"""The card of a network on the hub: what it says is what config.json and the network say."""

import re

import pytest
import torch
import yaml
from torch import nn

import cbam
from cbam import CBAMError, attach, save_pretrained
from cbam.models import build_model
from cbam.pretrained import read_config
from cbam.pretrained.card import is_untouched, write_card
from tests.checkpoints import peers

SIZE = (3, 32, 32)
NAME = "somebody/network"


def card(model, folder, backbone="resnet20", metrics=None, revision=None, **facts):
    config = read_config(save_pretrained(model, folder, backbone, **facts))
    return write_card(config, NAME, model, metrics, revision)


def trained(name="resnet20", **options):
    model = build_model(name, 10)
    attach(model, input_size=SIZE, **options)
    return peers.shaken(model, 4)


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_it_says_what_the_network_is(tmp_path):
    model = trained(preset="official", reduction_ratio=8)
    names = [f"class {number}" for number in range(10)]
    facts = {"class_names": names, "input_size": SIZE, "mean": [0.5, 0.25, 0.125], "std": [0.2] * 3}
    text = card(model, tmp_path, metrics={"top-1 accuracy": 0.9125, "trained on": "a | b"}, **facts)
    assert front(text) == {
        "library_name": "torch-cbam",
        "pipeline_tag": "image-classification",
        "tags": ["pytorch", "attention", "cbam"],
    }
    assert "`resnet20` with CBAM (preset `official`) at 9 sites." in text
    gates = sum(p.numel() for key, p in model.named_parameters() if "cbam" in key)
    total = sum(p.numel() for p in model.parameters())
    assert f"| parameters | {total:,}, {gates:,} of them in the attention |" in text
    assert "| classes | 10: class 0, class 1," in text
    assert "| input size | 3 x 32 x 32 |" in text
    assert "| mean | 0.5, 0.25, 0.125 |" in text
    assert "`spatial_norm=True`" in text
    for name, channels in (("layer1.0.bn2", 16), ("layer2.2.bn2", 32), ("layer3.2.bn2", 64)):
        assert f"| `{name}` | output | {channels} | 8 |" in text
    assert "| top-1 accuracy | 0.9125 |" in text
    assert r"| trained on | a \| b |" in text
    assert "Woo, Sanghyun and Park, Jongchan and Lee, Joon-Young and Kweon, In So" in text
    assert "ECCV" in text


def test_many_sites_and_classes_are_shortened(tmp_path):
    model = build_model("resnet56", 100)
    attach(model, input_size=SIZE)
    text = card(model, tmp_path, "resnet56", class_names=[f"c{number}" for number in range(100)])
    assert len(re.findall(r"^\| `layer", text, re.M)) == 11
    assert "And 16 more; `config.json` has them all." in text
    assert "| classes | 100: c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, ... |" in text


def test_squeeze_and_excitation_cites_its_own_paper(tmp_path):
    text = card(trained(attention="se"), tmp_path)
    assert front(text)["tags"] == ["pytorch", "attention", "squeeze-and-excitation"]
    assert "Squeeze-and-excitation (gate `sigmoid`) at 9 sites" in text
    assert "Hu, Jie" in text
    assert "Woo" not in text


def test_no_attention_and_no_classifier(tmp_path):
    """Nothing is claimed that is not known."""
    text = card(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path, None)
    assert front(text) == {"library_name": "torch-cbam", "tags": ["pytorch", "attention"]}
    assert "## Attention" not in text
    assert "## Citation" not in text
    assert "## Results" not in text
    assert "| parameters | 112 |" in text


def loading(text):
    return re.search(r"```python\n(.*?)```", text, re.S)[1]


def test_how_to_load_it(tmp_path):
    """The lines run in test_hub; here is which lines they are."""
    model = trained()
    assert loading(card(model, tmp_path / "a")) == (
        'import cbam\n\nmodel = cbam.from_pretrained("somebody/network")\n'
    )
    assert '("somebody/network", revision="trial")' in loading(card(model, tmp_path / "b", revision="trial"))
    text = card(model, tmp_path / "c", None)
    assert '("somebody/network", network)' in loading(text)
    assert "`network` is the network without attention" in text
    text = card(model, tmp_path / "d", attention_only=True)
    assert '("somebody/network", base)' in loading(text)
    assert "base network, which is needed to load it" in text
    assert "`cbam.models.build_model('resnet20', 10, in_channels=3)`" in text


def test_changed_cards_are_told_from_untouched_ones(tmp_path):
    text = card(trained(), tmp_path, metrics={"top-1": 0.9})
    assert is_untouched(text)
    assert is_untouched(text.replace("\n", "\r\n"))
    assert not is_untouched(text.replace("0.9 |", "0.8 |"))
    assert not is_untouched(text + "More.\n")
    assert not is_untouched("")


@pytest.mark.parametrize("value", [[0.9], None, torch.tensor(0.9)], ids=str)
def test_metrics_are_numbers_or_words(value, tmp_path):
    with pytest.raises(CBAMError, match="metrics expects numbers or strings by name, got 'top-1'"):
        card(trained(), tmp_path, metrics={"top-1": value})


def test_saving_writes_no_card(tmp_path):
    cbam.save_pretrained(trained(), tmp_path, "resnet20")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
