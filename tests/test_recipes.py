"""Every recipe holds options that exist; the demo's runs through, on fewer images."""

import subprocess
import sys
from pathlib import Path

import pytest

from cbam.cli.compare import parse

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_options_exist(recipe):
    assert parse(["--config", str(recipe)]).variants[-1] == "control"


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
    assert "No claim can be made from one seed" in done.stdout
    assert (tmp_path / "report.html").exists()
