"""`cbam explain`, as a new user types it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import cbam
from cbam.cli.main import main
from cbam.models import build_model
from tests.attach.networks import randomised_gates


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run folder with a trained network's form, weights of it, and two pictures."""
    folder = tmp_path_factory.mktemp("explain")
    torch.manual_seed(0)
    network = build_model("resnet20_cbam", 3)
    randomised_gates(network)
    options = {"class_names": ["cat", "dog", "cow"], "input_size": (3, 32, 32), "mean": [0.5], "std": [0.5]}
    options |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    cbam.save_pretrained(network, folder / "runs" / "mine" / "best", "resnet20", **options)
    save_file(network.state_dict(), folder / "weights.safetensors")
    other = build_model("resnet20_cbam", 3)
    save_file(other.state_dict(), folder / "other.safetensors")
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 48, 3), np.uint8)).save(folder / name)
    (folder / "names.txt").write_text("cat\ndog\ncow\n")
    (folder / "runs" / "compared" / "cells").mkdir(parents=True)
    return folder


def run(place, *options, images=("a.png", "b.png")):
    return main(["explain", *(str(place / image) for image in images), *map(str, options)])


def test_a_run_beside_itself_with_attention_off(place, tmp_path, capsys):
    code = run(place, "--run", place / "runs" / "mine", "--compare", "off", "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert code == 0
    assert printed.splitlines()[0].split() == ["image", "network", "says", "%", "map", "at"]
    assert printed.splitlines()[-1] == str(tmp_path / "out" / "explain.html")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [image["name"] for image in manifest["images"]] == ["a.png", "b.png"]
    on, off = manifest["images"][0]["models"].values()
    assert list(manifest["images"][0]["models"]) == ["mine", "mine, attention off"]
    assert len(on["sites"]) == 9
    assert off["sites"] == {}
    assert on["probability"] != off["probability"]
    assert {row["class"] for row in on["top"]} == {"cat", "dog", "cow"}
    page = (tmp_path / "out" / "explain.html").read_text()
    assert "--compare off" in page
    assert "standard deviation 0.2, 0.2, 0.2" in page


def test_weights_of_a_model_beside_others(place, tmp_path):
    model = ("--model", "resnet20_cbam", "--weights", place / "weights.safetensors", "--class-names")
    more = (
        "--compare",
        place / "other.safetensors",
        "--image-size",
        32,
        "--class",
        "dog",
        "--method",
        "layercam",
    )
    assert run(place, *model, place / "names.txt", *more, "--output", tmp_path, images=("a.png",)) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (image,) = manifest["images"]
    assert (manifest["method"], image["label"], image["class"]) == ("layercam", 1, "dog")
    assert list(image["models"]) == ["resnet20_cbam", "other"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "name one network: --run RUN"),
        (("--model", "resnet20_cbam"), "resnet20_cbam is a network without published weights"),
        (
            ("--run", "{place}/weights.safetensors"),
            "is a file of weights, which does not say what network it is of. Name it: --model NAME",
        ),
        (("--run", "{place}/runs/compared"), "is a comparison in which no network is finished yet"),
        (("--run", "{place}/nothing"), "there is nothing at"),
        (
            ("--run", "{place}/runs/mine", "--compare", "{place}/other.safetensors"),
            "Name it: --model NAME",
        ),
        (("--model", "resnet20", "--weights", "{place}/no.pth"), "no.pth"),
        (("--model", "resnet32_cbam", "--weights", "{place}/other.safetensors"), "does not fit"),
        (("--run", "{place}/runs/mine", "--cmap", "jett"), "Did you mean 'jet'?"),
        (("--run", "{place}/runs/mine", "--class", "dogg"), "unknown class 'dogg'. Did you mean 'dog'?"),
        (("--run", "{place}/runs/mine", "--layer", "layer9"), "unknown layer 'layer9'"),
    ],
)
def test_what_cannot_be(place, tmp_path, capsys, options, message):
    code = run(place, *(option.format(place=place) for option in options), "--output", tmp_path / "out")
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_pictures(place, tmp_path, capsys):
    for name, message in (("names.txt", "not a readable image"), ("c.png", "missing file")):
        assert run(place, "--run", place / "runs" / "mine", "--output", tmp_path / "out", images=(name,)) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["explain", "--run", str(place / "runs" / "mine"), "--output"])


def test_a_plain_network_has_nothing_to_switch_off(place, tmp_path, capsys):
    network = build_model("resnet20", 10)
    cbam.save_pretrained(network, tmp_path / "plain", "resnet20", input_size=(3, 32, 32))
    assert run(place, "--run", tmp_path / "plain", "--compare", "off", "--output", tmp_path / "out") == 2
    assert "--compare off: plain has no attention to switch off" in capsys.readouterr().err


def test_scores_on_a_detection_set(place, tmp_path, capsys):
    from cbam.data.detection.generate import write_generated
    from cbam.data.fashion_mnist import CLASSES

    where = write_generated(tmp_path / "set", ("coco",), images=2, validation=6, size=64, seed=1)["coco"]
    network = build_model("resnet20_cbam", 10)
    cbam.save_pretrained(network, tmp_path / "net", "resnet20", class_names=CLASSES, input_size=(3, 32, 32))
    options = ("--run", tmp_path / "net", "--compare", "off", "--boxes", where, "--output", tmp_path / "out")
    assert run(place, *options, images=()) == 0
    printed = capsys.readouterr().out
    assert "energy in the object" in printed
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(found["summary"]) == ["net", "net, attention off"]
    assert len(found["values"]["net"]["energy"]) == len(found["images"]) > 2
    page = (tmp_path / "out" / "explain.html").read_text()
    assert f"Scores on {len(found['images'])} images" in page
    assert run(place, "--run", place / "runs" / "mine", "--boxes", where, images=()) == 2
    assert "the network has no class 'T-shirt/top'" in capsys.readouterr().err
