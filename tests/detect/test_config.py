"""Options outside their range, or that would be ignored, are refused by name; the schedule counts steps or epochs."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest

from cbam.data.detection.transforms import AUGMENTATIONS
from cbam.detect.config import DetectorConfig, DetectRunConfig
from cbam.detect.recipe import DetectTrainConfig
from cbam.errors import CBAMError


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("iterations", 0, "--iterations must be at least 1"),
        ("warmup_steps", -1, "--warmup-steps must be at least 0"),
        ("clip_gradients", -1.0, "--clip-gradients must be at least 0"),
        ("evaluate_every", 0, "--evaluate-every must be at least 1"),
        ("drops", "16,x", "--drops takes whole numbers between 0 and 26"),
        ("drops", "30", "--drops takes whole numbers between 0 and 26"),
        ("schedule", "stepp", "Did you mean 'step'"),
        ("optimizer", "momentun", "Did you mean 'momentum'"),
    ],
)
def test_refuses_what_cannot_work(field, value, expected):
    with pytest.raises(CBAMError, match=expected):
        DetectTrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"model": "ssd300_vgg16", "image_size": 512},
            "--image-size 512 has no effect with --model ssd300_vgg16",
        ),
        ({"model": "stairnet300_vgg16", "augment": "multiscale"}, "Type: --augment ssd"),
        ({"image_size": 800, "max_size": 700}, "--max-size must be at least the shorter side, 800"),
        ({"detector_options": "box_score_thresh"}, "takes name=value with commas"),
        ({"augment": "flips"}, "Did you mean 'flip'"),
        ({"metric": "coco17"}, "Did you mean 'coco'"),
        ({"attention": "none", "sites": "head"}, "--sites head has no effect with --attention none"),
        ({"attention": "none", "reduction_ratio": 8}, "--reduction-ratio 8 has no effect"),
        ({"track": "tensorbord"}, "Did you mean 'tensorboard'"),
    ],
)
def test_refuses_what_would_be_ignored(settings, expected):
    with pytest.raises(CBAMError, match=expected):
        DetectRunConfig(data="coco:x", **settings)


def test_torchvision_s_recipe():
    plan = DetectTrainConfig().plan(steps=7330)
    assert plan.steps == 26 * 7330
    assert plan.drops == (16 * 7330, 22 * 7330)
    assert plan.warmup == 1000
    assert DetectTrainConfig().peak_lr("maskrcnn_resnet50_fpn") == 0.02


def test_iterations_count_steps_and_end_inside_an_epoch():
    recipe = DetectTrainConfig(iterations=120_000, drops="80000,100000", batch_size=32)
    plan = recipe.plan(steps=517)
    assert (plan.steps, plan.drops) == (120_000, (80_000, 100_000))
    assert recipe.peak_lr("ssd300_vgg16") == 0.002


def test_the_metric_follows_the_set():
    assert DetectorConfig(data="voc:VOCdevkit").judged_by == "voc07"
    assert DetectorConfig(data="yolo:x").judged_by == "coco"
    assert DetectorConfig(data="voc:VOCdevkit", metric="coco").judged_by == "coco"


def test_several_scales_are_drawn_by_the_detector():
    sides = DetectorConfig(data="coco:x", augment="multiscale").more_options()["min_size"]
    assert (sides[0], sides[-1], len(sides)) == (480, 800, 11)


def test_augmentations_are_those_of_the_transforms():
    assert get_args(get_type_hints(DetectorConfig)["augment"]) == tuple(AUGMENTATIONS)
