"""The page of benchmarks/fine_tuning.py: numbers of several runs side by side, and what is not there yet."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import fine_tuning

from tests.compare.conftest import write_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A main run with a missing seed, and one with another rate for the gates."""
    main, gates = tmp_path / "compare", tmp_path / "gates"
    write_run(main, {"none": (0.80, 0.82, 0.81), "cbam": (0.78, 0.81)})
    write_run(gates, {"cbam": (0.83, 0.84, 0.86), "cbam:fresh": (0.79, 0.80, 0.80)})
    config = main / "config.yaml"
    recipe = {"image_size": 96, "batch_size": 32, "lr": 0.01, "weight_decay": 5e-4}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | recipe))
    monkeypatch.setattr(fine_tuning, "MAIN", main)
    monkeypatch.setattr(fine_tuning, "GATES", {gates: "gates: x 10"})
    monkeypatch.setattr(fine_tuning, "INSERTION", tmp_path / "insertion.json")
    return tmp_path


def test_the_page_of_unfinished_runs(runs):
    text = fine_tuning.page()
    assert "**Unfinished:** 1 trainings are missing" in text
    assert "| CBAM | 2 | 79.50 ± 2.12 | −1.50 [no bounds] |" in text
    assert "| CBAM, gates: x 10 | 3 | 84.33 ± 1.53 | +3.33 [" in text, (
        "paired with the plain networks of the main run"
    )
    assert "Not measured yet" in text


def test_step_0_and_insertion_are_shown(runs):
    measured = {
        f"{variant}-{seed}": {
            "variant": variant,
            "seed": seed,
            "step_0": 0.1,
            "features": 0.7,
            "inserted": kept,
        }
        | {"gradients": {"network": 3.0, "spatial": 2.5}}
        for variant, kept in (("none", 0.8), ("cbam:fresh", 0.4))
        for seed in (0, 1)
    }
    fine_tuning.INSERTION.write_text(json.dumps(measured))
    text = fine_tuning.page()
    assert "| plain | 10.00 ± 0.00 |" in text
    assert "| CBAM (fresh gates) | 70.00 ± 0.00 | 40.00 ± 0.00 | 2.5 |  | 3.0 |" in text


def test_the_nearest_mean_is_by_angle():
    train = torch.tensor([[1.0, 0.0], [3.0, 0.2], [0.0, 1.0], [0.1, 5.0]])
    found = fine_tuning.nearest_mean(
        train, torch.tensor([0, 0, 1, 1]), torch.tensor([[9.0, 8.0], [0.1, 0.2]])
    )
    assert found.tolist() == [0, 1]
