"""The study of where networks look: its images, its scores on networks that are there, and its page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import where_it_looks
import where_it_looks_report

import cbam
from cbam.cli.compare import parse
from cbam.compare.grid import build_cell


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Two seeds of untrained networks on a few images."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where_it_looks, "FOLDER", folder)
        patch.setattr(where_it_looks, "SCORED", 4)
        patch.setattr(where_it_looks, "trained", lambda *a: build_cell(*a).eval())
        results = [
            {"variant": v, "seed": s, "val_accuracy": 0.5 + 0.1 * s}
            for v in ("none", "se", "cbam")
            for s in (0, 1)
        ]
        run = type("Run", (), {"results": results, "environment": {}})
        patch.setattr(where_it_looks, "read_run", lambda _: run)
        where_it_looks.write_images(folder, train=24, validation=24)
        options = ["--data", str(folder / "images"), "--image-size", "32", "--attention", "none,se,cbam"]
        config = parse([*options, "--model", "resnet20"])
        data = config.load()
        return data, [where_it_looks.score_seed(seed, config, data) for seed in (0, 1)]


def test_the_folders_hold_one_object_an_image(scored):
    data, _ = scored
    assert set(data.classes) <= set(where_it_looks.CLASSES)
    assert 18 <= len(data.train) <= 24


def test_scores_of_every_network_and_pair(scored):
    for found in scored[1]:
        assert list(found["values"]) == ["none", "se", "cbam", "untrained"]
        assert found["values"]["none"] == found["values"]["untrained"]  # as nothing was trained here
        gap = found["differences"]["cbam-none"]["energy"]["estimate"]
        both = [sum(found["values"][v]["energy"]) / len(found["images"]) for v in ("cbam", "none")]
        assert gap == pytest.approx(both[0] - both[1], abs=1e-3)
        assert list(found["randomised"]) == ["none", "se", "cbam"]
        assert len(found["spatial_gates"]) == 9
    assert scored[1][0]["values"] != scored[1][1]["values"]


def test_spatial_gates_on_the_object_and_beside_it():
    class Mask(nn.Module):
        """Multiplies by its input's first channel."""

        def forward(self, x):
            return x * x[:, :1]

    cbam.register_attention("mask", lambda channels: Mask(), gates=lambda module, x: x[:, :1])
    network = nn.Sequential(nn.AvgPool2d(1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    cbam.attach(network, "mask", sites=["0"], input_size=(3, 8, 8))
    regions = torch.zeros(2, 8, 8, dtype=torch.bool)
    regions[:, 2:4, 2:4] = True
    batch = 0.25 + 0.5 * regions[:, None].expand(2, 3, 8, 8)
    (found,) = where_it_looks.spatial_gates(network, batch, regions).values()
    assert found["estimate"] == pytest.approx(0.5)
    assert found["mean"] == pytest.approx(0.25 + 0.5 * 4 / 64)


def test_the_page_keeps_what_was_written_by_hand(scored, tmp_path):
    folder = tmp_path / "where-it-looks"
    folder.mkdir()
    for found in scored[1]:
        (folder / f"seed{found['seed']}.json").write_text(json.dumps(found))
    page = tmp_path / "where-it-looks.md"
    page.write_text("# Old\n\n## Prediction\n\nNothing.\n\n## Scores\n\nold\n")
    for _ in range(2):
        where_it_looks_report.write_page(folder)
    text = page.read_text()
    assert text.count("## Prediction\n\nNothing.\n") == 1
    assert "| accuracy (%) | more | 55.0 ± 7.1 |" in text
    assert "old" not in text
    assert (folder / "scores.svg").exists()


def test_better_and_worse():
    above, below, open_ = {"low": 0.1, "high": 0.2}, {"low": -0.2, "high": -0.1}, {"low": -0.1, "high": 0.1}
    assert [where_it_looks_report.sign(gap, True) for gap in (above, below, open_)] == [1, -1, 0]
    assert [where_it_looks_report.sign(gap, False) for gap in (above, below, open_)] == [-1, 1, 0]
