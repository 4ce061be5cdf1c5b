"""What is wrong is said before any training, with what to type; nothing is written."""

from __future__ import annotations

import pytest
import torch

from cbam.cli.main import main
from cbam.models import build_model

SMALL = (
    "--model",
    "fasterrcnn_mobilenet_v1_fpn",
    "--width",
    "0.25",
    "--image-size",
    "64",
    "--batch-size",
    "4",
)


def refused(capsys, tmp_path, *arguments):
    """Run `cbam detect train`; return its message after exit code 2."""
    run = tmp_path / "run"
    assert main(["detect", "train", *map(str, arguments), "--device", "cpu", "--output", str(run)]) == 2
    assert not run.exists()
    return capsys.readouterr().err


def test_an_unknown_verb(capsys):
    assert main(["detect", "trian"]) == 2
    assert "Did you mean 'train'" in capsys.readouterr().err


def test_help_names_the_verbs(capsys):
    assert main(["detect", "--help"]) == 0
    assert "predict" in capsys.readouterr().out


def test_no_such_set(capsys, tmp_path):
    assert "there is no folder" in refused(capsys, tmp_path, "--data", "coco:nowhere")


def test_a_set_without_its_format(capsys, tmp_path):
    assert "coco:FOLDER" in refused(capsys, tmp_path, "--data", tmp_path)


def test_an_unknown_detector(capsys, garments, tmp_path):
    told = refused(capsys, tmp_path, "--data", garments["coco"], "--model", "fasterrcnn_resnet18_fnp")
    assert "Did you mean 'fasterrcnn_resnet18_fpn'" in told


def test_an_unknown_attention(capsys, garments, tmp_path):
    assert "cbam" in refused(capsys, tmp_path, "--data", garments["coco"], *SMALL, "--attention", "cbma")


def test_sites_that_match_nothing(capsys, garments, tmp_path):
    told = refused(capsys, tmp_path, "--data", garments["coco"], *SMALL, "--sites", "backbone.nothing")
    assert "nothing" in told


def test_an_unknown_option_of_the_detector(capsys, garments, tmp_path):
    options = ("--detector-options", "rpn_pos_nms_top_n_train=10")
    told = refused(capsys, tmp_path, "--data", garments["coco"], *SMALL, *options)
    assert "Did you mean 'rpn_post_nms_top_n_train'" in told


def test_masks_where_there_are_only_boxes(capsys, garments, tmp_path):
    told = refused(capsys, tmp_path, "--data", garments["voc"], "--model", "maskrcnn_resnet18_fpn")
    assert "--model fasterrcnn_resnet18_fpn" in told


def test_weights_that_are_not_there_or_of_another_network(capsys, garments, tmp_path):
    data = ("--data", garments["coco"], "--model", "fasterrcnn_resnet18_fpn", "--image-size", "64")
    told = refused(capsys, tmp_path, *data, "--weights", tmp_path / "no.pth")
    assert "no weights file" in told
    file = tmp_path / "resnet34.pth"
    torch.save(build_model("resnet34", 10).state_dict(), file)
    assert "layer" in refused(capsys, tmp_path, *data, "--weights", file)


@pytest.mark.parametrize("count", [4, 32])
def test_too_large_a_batch_for_two_processes_and_for_one(garments, tmp_path, count, capsys):
    """One process trains on all images as one batch; the message of several is in the task."""
    from cbam.data.detection import load_detection
    from cbam.detect.recipe import DetectTrainConfig
    from cbam.detect.task import Detection
    from cbam.errors import CBAMError

    task = Detection(
        DetectTrainConfig(batch_size=count), load_detection(garments["coco"]), "coco", "flip", (64, 64)
    )
    if count > 20:
        with pytest.raises(CBAMError, match="Give a smaller --batch-size"):
            task.loaders(0, 0, 2)
        assert len(task.loaders(0, 0, 1)[0]) == 1
    else:
        assert len(task.loaders(0, 0, 2)[0]) == 5
