"""`cbam detect compare`: the grid, what follows the last training, the page; a finished run grows by a variant."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cbam.cli.main import main
from cbam.compare.detection.report import RECALLS, _mean_curve
from cbam.detect.saved import open_detector

SMALL = [
    *("--model", "fasterrcnn_resnet18_fpn", "--image-size", "64", "--limit-train", "8", "--limit-val", "6"),
    *("--batch-size", "4", "--epochs", "1", "--seeds", "1", "--device", "cpu", "--norm", "batch"),
    "--detector-options",
    "rpn_post_nms_top_n_train=20,rpn_post_nms_top_n_test=20,box_batch_size_per_image=8,box_score_thresh=0.001",
]


@pytest.fixture(scope="module")
def run(garments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "run"
    words = ["detect", "compare", "--data", garments["voc"], *SMALL, "--output", str(folder)]
    assert main([*words, "--attention", "none,cbam"]) == 0
    first = (folder / "cells" / "cbam-seed0" / "model.safetensors").stat().st_mtime_ns
    assert main([*words, "--attention", "none,cbam,control"]) == 0
    assert (folder / "cells" / "cbam-seed0" / "model.safetensors").stat().st_mtime_ns == first, (
        "trained again"
    )
    return folder


def test_every_cell_has_a_result_and_a_detector(run):
    for variant in ("none", "cbam", "control"):
        cell = run / "cells" / f"{variant}-seed0"
        result = json.loads((cell / "result.json").read_text())
        assert 0 <= result["val_map"] <= 1
        assert len(result["per_class_ap"]) == 3
        assert json.loads((cell / "evaluation.json").read_text())["metric"] == "voc07"
        model, about = open_detector(cell)
        assert sum(p.numel() for p in model.parameters()) == result["parameters"]
        assert (about.widened_to is not None) == (variant == "control")


def test_the_control_is_as_large_as_cbam(run):
    costs = json.loads((run / "costs.json").read_text())
    assert costs["control"]["parameters"] == pytest.approx(costs["cbam"]["parameters"], rel=0.01)
    assert costs["cbam"]["macs"] > costs["none"]["macs"] > 0
    assert set(costs["cbam"]["latency"]) == {"1", "4"}


def test_intervals_over_the_images_are_of_the_stored_detections(run):
    results = {
        name: json.loads((run / "cells" / f"{name}-seed0" / "result.json").read_text())
        for name in ("none", "cbam")
    }
    images = json.loads((run / "images.json").read_text())
    assert set(images) == {"cbam", "control"}
    difference = results["cbam"]["val_map"] - results["none"]["val_map"]
    assert images["cbam"]["difference"] == pytest.approx(difference, abs=1e-6)
    assert images["cbam"]["low"] <= images["cbam"]["high"]


def test_the_page_and_the_table(run):
    page = (run / "report.html").read_text()
    for part in (
        "What the detectors find",
        "Precision over recall",
        "over images",
        "VOC 2007",
        "cbam detect compare",
    ):
        assert part in page
    assert "Grad-CAM" not in page
    assert (run / "summary.csv").read_text().startswith("variant,seeds,mean_average_precision")


def test_a_curve_is_the_highest_precision_at_a_recall_or_above():
    curve = {"recall": [0.5, 0.5, 1.0], "precision": [1.0, 0.5, 0.6]}
    found = np.array(_mean_curve([curve]))
    at = np.array(RECALLS)
    assert np.allclose(found[at <= 0.5], 1.0)
    assert np.allclose(found[at > 0.5], 0.6)
    half = {"recall": [0.5], "precision": [1.0]}
    assert np.allclose(np.array(_mean_curve([half]))[at > 0.5], 0.0)
