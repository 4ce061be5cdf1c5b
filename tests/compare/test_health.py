"""Trainings that failed are named, and those that did not are not."""

from __future__ import annotations

import math

import pytest
from tests.compare.test_verdict import trained

from cbam.compare.health import levels, problems, too_few_steps


def texts(*results, rows=(), **options):
    return [problem.text for problem in problems(results, rows, **options)]


def losses(*values, variant="none", seed=0):
    return [
        {"variant": variant, "seed": seed, "epoch": epoch, "train_loss": loss}
        for epoch, loss in enumerate(values, start=1)
    ]


def test_sound_networks_have_no_problem():
    assert texts(trained("none", 0, 0.5), trained("cbam", 0, 0.94, 1.5), rows=losses(1.2, 0.6)) == []


@pytest.mark.parametrize(
    ("loss", "text"), [(15_489.0, "validation loss 15,489; a guess has 1.39"), (14, "loss 14;")]
)
def test_a_loss_that_exploded(loss, text):
    assert text in texts(trained("none", 0, 0.6, loss))[0]
    assert texts(trained("none", 0, 0.6, 13)) == [], "overconfident, but not broken"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(loss):
    assert texts(trained("none", 0, 0.6, loss)) == ["validation loss not finite"]
    assert texts(trained("none", 0, 0.6), rows=losses(1.0, loss)) == ["training loss not finite"]


def test_at_chance_means_what_so_many_images_cannot_tell_from_it():
    # 1.96 sqrt(0.25 * 0.75 / 200) is 6.0 points.
    assert "cannot be told from chance, 25.00 %" in texts(trained("none", 0, 0.30))[0]
    assert texts(trained("none", 0, 0.32)) == []


def test_the_share_of_the_largest_class():
    result = {"variant": "none", "seed": 0, "val_accuracy": 0.9, "confusion": [[88, 2], [8, 2]]}
    assert "the share of the largest class, 90.00 %" in texts(result)[0]
    assert levels([result]) == {"chance": 0.5, "largest class": 0.9}
    assert levels([{"confusion": []}]) == {}


def test_one_class_for_every_image():
    assert texts(trained("none", 0, 0.0, predicted=2)) == ["0.00 % accuracy, the same class for every image"]


def test_a_detector_that_finds_nothing():
    result = {"variant": "none", "seed": 0, "val_map": 0.004}
    assert texts(result, score="val_map") == ["average precision 0.40 %, it finds nothing"]
    assert texts({**result, "val_map": 0.1}, score="val_map", rows=losses(2.0, 2.0)) == []


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ((1.40, 1.39, 1.38), "1.4 in the first epoch and 1.38 in the last: it did not learn"),
        ((1.40, 0.9, 1.0, 1.0, 0.95), "lowest in epoch 2 of 5: it learned nothing more"),
        ((0.03, 0.031), None),
        ((1.4, 1.0, 0.9, 0.8), None),
        ((1.4,), None),
    ],
)
def test_a_loss_that_does_not_fall(row, text):
    found = texts(trained("none", 0, 0.6), rows=losses(*row))
    assert found == [] if text is None else text in found[0]
    assert texts(trained("cbam", 0, 0.6), rows=losses(*row)) == [], "another network's"


def test_too_few_steps():
    assert too_few_steps(2000, 64, 3).startswith("Only 96 steps of 64 images")
    assert too_few_steps(100, 128, 1).startswith("Only 1 step of")
    assert too_few_steps(6000, 64, 4) == ""
