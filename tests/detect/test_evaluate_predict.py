"""`cbam detect evaluate` and `predict` on a detector that was saved."""

from __future__ import annotations

import json

import pytest

from cbam.checkpoints.switches import switches_of
from cbam.cli.main import main
from cbam.data.detection import load_detection
from cbam.detect.build import build, detector_arguments
from cbam.detect.config import DetectRunConfig
from cbam.detect.run import describe
from cbam.detect.saved import save_detector


@pytest.fixture(scope="module")
def saved(garments, tmp_path_factory):
    """An untrained Mask R-CNN that finds a lot."""
    folder = tmp_path_factory.mktemp("saved") / "detector"
    config = DetectRunConfig(
        data=garments["coco"], model="maskrcnn_mobilenet_v1_fpn", width=0.25, image_size=64,
        detector_options="rpn_post_nms_top_n_test=20,box_score_thresh=0.01,box_detections_per_img=5",
    )  # fmt: skip
    model = build(config, "cbam", 0, 3)
    arguments = detector_arguments(config, "cbam", None, 3)
    about = describe(load_detection(garments["coco"]), config, arguments, model)
    save_detector(folder, model.state_dict(), about, switches_of(model))
    return folder


def evaluate(saved, *arguments):
    return main(["detect", "evaluate", str(saved), "--device", "cpu", *map(str, arguments)])


def test_coco_s_figures_of_boxes_and_masks(saved, garments, tmp_path, capsys):
    output, found = tmp_path / "scores.json", tmp_path / "found.json"
    assert evaluate(saved, "--data", garments["coco"], "--output", output, "--detections", found) == 0
    content = json.loads(output.read_text())
    assert len(content["boxes"]["figures"]) == len(content["masks"]["figures"]) == 12
    assert "AR 100" in capsys.readouterr().out
    rows = json.loads(found.read_text())
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= set(rows[0])


def test_another_metric_and_a_part_of_the_images(saved, garments, capsys):
    assert evaluate(saved, "--data", garments["coco"], "--metric", "voc", "--limit-val", 3) == 0
    assert "below the curve, IoU above 0.5, 3 images" in capsys.readouterr().out


def test_without_a_run_the_images_must_be_named(saved, capsys):
    assert evaluate(saved) == 2
    assert "Type: --data coco:FOLDER" in capsys.readouterr().err


def test_other_classes_are_refused(saved, tmp_path, capsys):
    from cbam.data.detection import write_generated

    other = write_generated(
        tmp_path / "other", ("coco",), images=4, size=64, classes=("Dress", "Coat", "Bag")
    )
    assert evaluate(saved, "--data", other["coco"]) == 2
    assert "'Trouser' there and 'Dress' here" in capsys.readouterr().err


def test_pictures(saved, garments, tmp_path, capsys):
    pictures = garments["coco"].removeprefix("coco:") + "/val2017"
    output = tmp_path / "found"
    words = ["detect", "predict", str(saved), pictures, "--output", str(output), "--least-score", "0.02"]
    assert main([*words, "--device", "cpu"]) == 0
    assert "in 8 pictures" in capsys.readouterr().out
    assert len(list(output.rglob("*.jpg"))) == 8
    assert (output / "detections.json").exists()
