"""Batches, parts, losses, and the form in which a detector is saved."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from cbam.checkpoints.switches import switches_of
from cbam.compare.detection.config import DetectCompareConfig
from cbam.compare.detection.run import build_cell
from cbam.compare.grid import Cell
from cbam.data.detection import load_detection
from cbam.detect.build import build, detector_arguments
from cbam.detect.config import DetectRunConfig
from cbam.detect.recipe import DetectTrainConfig
from cbam.detect.run import DetectJob, describe, detection
from cbam.detect.saved import find_detector, open_detector, save_detector
from cbam.errors import CBAMError
from cbam.runs.folder import RunFolder
from cbam.runs.progress import Progress

FEW = "rpn_post_nms_top_n_train=20,rpn_post_nms_top_n_test=20,box_batch_size_per_image=8"


@pytest.fixture(scope="module")
def data(garments):
    return load_detection(garments["coco"])


def vars_of(garments, **settings):
    kept = {"model": "fasterrcnn_mobilenet_v1_fpn", "width": 0.25, "image_size": 64, "detector_options": FEW}
    return {"data": garments["coco"], **kept, **settings}


def config(garments, **settings):
    return DetectRunConfig(**vars_of(garments, **settings))


def test_parts_hold_every_image_once(garments, data):
    task = detection(config(garments), DetectTrainConfig(batch_size=8, accumulate=4), data)
    loader, _ = task.loaders(0, 0, 1)
    batch = task.to_device(next(iter(loader)), torch.device("cpu"))
    parts = task.parts(batch, seed=0)
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert torch.equal(parts[3].images[1], batch.images[7])
    assert set(batch.targets[0]) == {"boxes", "labels"}, (
        "outlines are not decoded where no detector reads them"
    )


@pytest.mark.parametrize("attention", ["none", "cbam", "se", "cbam:official:r8"])
def test_variants_of_a_seed_start_from_the_same_weights(garments, attention):
    plain, ours = (build(config(garments), name, 3, 3).state_dict() for name in ("none", attention))
    assert all(torch.equal(value, ours[name]) for name, value in plain.items())
    assert (len(ours) > len(plain)) == (attention != "none")


def test_a_control_alone_is_that_of_the_comparison(garments, data, tmp_path):
    settings = {"model": "fasterrcnn_resnet18_fpn", "norm": "batch", "width": 1.0}
    many = DetectCompareConfig(**vars_of(garments, **settings), attention="none,se,control")
    parameters = {}
    theirs = build_cell(Cell("control", 3), many, 3, parameters).state_dict()
    alone = config(garments, **settings, attention="control", widened_to=parameters["se"], seed=3)
    job = DetectJob(
        config=alone, command=[], folder=RunFolder(tmp_path / "run"), progress=Progress(),
        processes=Accelerator(cpu=True), data=data,
    )  # fmt: skip
    ours = job.build().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    job.write_network("best", ours)
    again, about = open_detector(tmp_path / "run")
    assert about.widened_to == parameters["se"]
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in ours.items()}


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_saved_and_opened_it_finds_the_same(garments, data, tmp_path, norm):
    settings = config(garments, norm=norm, attention="cbam:official")
    model = build(settings, "cbam:official", 0, 3).eval()
    about = describe(data, settings, detector_arguments(settings, "cbam:official", None, 3), model)
    save_detector(tmp_path / "best", model.state_dict(), about, switches_of(model))
    again, told = open_detector(tmp_path)
    assert told.classes == data.classes
    assert told.category_ids == data.category_ids
    images = [torch.rand(3, 60, 64)]
    with torch.no_grad():
        (ours,), (theirs,) = model(images), again(images)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_no_detector_there(tmp_path):
    with pytest.raises(CBAMError, match="does not exist"):
        find_detector(tmp_path / "no")
    with pytest.raises(CBAMError, match="holds no detector"):
        find_detector(tmp_path)
    (tmp_path / "detector.json").write_text('{"format": 9}')
    with pytest.raises(CBAMError, match="format 9"):
        open_detector(tmp_path)


def test_masks_are_judged_where_the_detector_finds_them(garments, data):
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = config(garments, model="maskrcnn_mobilenet_v1_fpn")
    task = detection(settings, DetectTrainConfig(batch_size=4), data)
    model = build(settings, "none", 0, 3)
    loader, validation = task.loaders(0, 0, 1)
    part = task.to_device(next(iter(loader)), torch.device("cpu"))
    loss, _ = task.loss(model.train(), part)
    assert torch.isfinite(loss)
    scores = task.evaluate(model, validation, Accelerator(cpu=True))
    assert {"val_map", "val_mask_map"} <= set(task.row(scores, None))
    assert model.training
